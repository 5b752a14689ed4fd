//! File descriptors that a parent process left open for this one, named by number.

use std::collections::HashSet;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Why a descriptor could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// The descriptor is not open, or is a standard stream.
    #[error("take over descriptor {0}: it is not open, or is one of 0, 1, 2")]
    NotOpen(RawFd),
    /// The descriptor is named twice.
    #[error("take over descriptor {0}: it is named twice")]
    Twice(RawFd),
}

/// The descriptors that this process was started with and may take over, each once.
///
/// Soundness rests on it being made once, at the start of the process, before anything else opens
/// or owns descriptors above 2: see [`Inherited::claim`].
#[derive(Debug, Default)]
pub struct Inherited {
    taken: HashSet<RawFd>,
}

impl Inherited {
    /// Claims the process's inherited descriptors.
    ///
    /// # Safety
    /// To be called once, first thing in `main`, when no Rust object owns a descriptor above 2. No
    /// other code of the process may take ownership of an inherited descriptor.
    #[must_use]
    pub unsafe fn claim() -> Self {
        Self::default()
    }

    /// Takes descriptor `fd` over; it is closed on exec from now on.
    ///
    /// # Errors
    /// It is not open, is a standard stream, or was taken already.
    pub fn take(&mut self, fd: RawFd) -> Result<OwnedFd, InheritError> {
        if fd <= 2 {
            return Err(InheritError::NotOpen(fd));
        }
        if self.taken.contains(&fd) {
            return Err(InheritError::Twice(fd));
        }
        // SAFETY: fcntl with F_SETFD takes any number and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(InheritError::NotOpen(fd));
        }
        self.taken.insert(fd);
        // SAFETY: the descriptor is open (fcntl succeeded) and nobody else owns it: it was
        // inherited (the contract of `claim`) and `taken` gives it out once.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
