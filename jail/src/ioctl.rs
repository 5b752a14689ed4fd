//! Composes the number of an ioctl as the kernel does (`asm-generic/ioctl.h`). The users of a
//! number also assert that it equals the literal of the kernel's headers, and assert the size of
//! its struct: with a wrong size the kernel would write beyond it.

use rustix::io::Errno;

/// The call reads and writes nothing through its argument: `_IO`.
pub const NONE: u64 = 0;
/// The kernel reads the argument: `_IOW`.
pub const WRITE: u64 = 1;
/// The kernel writes the argument: `_IOR`. With [`WRITE`] both: `_IOWR`.
pub const READ: u64 = 2;

/// The number of a call on a kind of file, whose argument is a struct of so many bytes.
#[must_use]
pub const fn request(direction: u64, kind: u8, number: u8, bytes: usize) -> u64 {
    direction << 30 | (bytes as u64) << 16 | (kind as u64) << 8 | number as u64
}

/// The reason why the last call of this thread failed.
#[must_use]
pub fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
