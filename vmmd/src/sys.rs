//! Registers descriptors with tokio's reactor.
#![allow(unsafe_code, reason = "AsyncFd's registration is unsafe by signature")]

use std::{io, os::fd::OwnedFd};
use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor for reading. It must be non-blocking, or be waited for only.
///
/// # Errors
/// The reactor cannot take it.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open until it is dropped and `AsRawFd` of it always gives the same
    // number; the AsyncFd owns it, deregisters it before it is closed, and is never taken apart in
    // this crate.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(registered?)
}
