//! Ctrl-C and SIGTERM: what runs is given up, and cleaned away, instead of being left behind.

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    low_level::pipe,
};
use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();
/// Readable once a signal has come; nobody reads it.
static WOKEN: OnceLock<UnixStream> = OnceLock::new();

/// From now on a first signal is only noted; a second one ends the process as it would have.
///
/// # Errors
/// The kernel does not take the handlers.
pub fn watch() -> io::Result<()> {
    if REQUESTED.get().is_some() {
        return Ok(());
    }
    let (reader, writer) = UnixStream::pair()?;
    let requested = REQUESTED.get_or_init(Arc::default);
    WOKEN.get_or_init(|| reader);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_default(signal, Arc::clone(requested))?;
        flag::register(signal, Arc::clone(requested))?;
        pipe::register(signal, writer.try_clone()?)?;
    }
    Ok(())
}

/// Whether somebody wants us to end.
#[must_use]
pub fn requested() -> bool {
    REQUESTED.get().is_some_and(|requested| requested.load(Ordering::SeqCst))
}

/// Becomes readable, and stays so, once somebody wants us to end. None where nobody watches.
#[must_use]
pub fn woken() -> Option<BorrowedFd<'static>> {
    WOKEN.get().map(AsFd::as_fd)
}
