//! Where tests end a process, or let an operation fail: before each operation that changes files.

use super::error::FileError;
use std::{io, path::Path};

/// Does an operation that changes files.
pub(super) fn change<T, E: Into<io::Error>>(
    operation: &'static str,
    path: &Path,
    change: impl FnOnce() -> Result<T, E>,
) -> Result<T, FileError> {
    step().and_then(|()| change().map_err(Into::into)).map_err(FileError::at(operation, path))
}

/// Stands before an operation that changes files.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in tests it fails")]
fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use in_tests::step;

#[cfg(test)]
pub(super) mod in_tests {
    use super::io;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    /// So many steps are left. 0: no end is planned.
    pub(crate) static LEFT: AtomicU64 = AtomicU64::new(0);
    /// What happens at the last one: the process is aborted, or the step fails with this error.
    pub(crate) static FAIL_WITH: AtomicU64 = AtomicU64::new(0);

    pub(crate) fn step() -> io::Result<()> {
        if LEFT.load(SeqCst) == 0 || LEFT.fetch_sub(1, SeqCst) != 1 {
            return Ok(());
        }
        match FAIL_WITH.load(SeqCst) {
            0 => std::process::abort(),
            errno => Err(io::Error::from_raw_os_error(i32::try_from(errno).unwrap())),
        }
    }
}
