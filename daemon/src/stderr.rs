//! Lines for people on standard error.
//!
//! `eprintln!` panics if standard error is a full disk or a pipe without a reader, and the panic
//! ends the program, or a VM. A message is not worth that: here a line that cannot be written is
//! lost. The lint `print_stderr` keeps `eprintln!` out.

use std::{
    fmt,
    io::{self, Write},
};

/// Standard error that takes everything; what cannot be written is lost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Lossy(io::stderr().lock()).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Standard error has no buffer.
        Ok(())
    }
}

/// A writer that takes everything, whatever becomes of it.
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.write_all(bytes).is_err() {
            // There is no one left to be told.
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a line to standard error in one system call. See [`crate::say`].
pub fn line(text: fmt::Arguments<'_>) {
    let line = format!("{text}\n");
    if Stderr.write_all(line.as_bytes()).is_err() {
        // It takes everything.
    }
}

/// Writes a line to standard error, as `eprintln!` does, but never panics: a line that cannot be
/// written is lost.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::stderr::line(::std::format_args!($($text)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::unix::net::UnixStream};

    #[test]
    fn a_full_disk_and_a_reader_that_went_are_no_errors() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        assert!(writeln!(Lossy(full), "lost").is_ok());
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(writeln!(Lossy(ours), "lost").is_ok());
        let mut taken = Vec::new();
        writeln!(Lossy(&mut taken), "kept {}", 1).unwrap();
        assert_eq!(taken, b"kept 1\n");
    }
}
