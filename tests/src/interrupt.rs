//! Ctrl-C and SIGTERM: running work is stopped and cleaned up, so that nothing is left behind.

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
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
    process,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Exit code of one that a signal has ended, as a shell has it for Ctrl-C.
pub const INTERRUPTED: i32 = 130;

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

/// Ends this process a while after the first signal if it has not ended by then, whatever it waits
/// for. Its [keepers](crate::keeper) then clean up instead.
///
/// # Errors
/// There is no thread to be had.
pub fn end_after(patience: Duration) -> io::Result<()> {
    thread::Builder::new().name("patience".into()).spawn(move || {
        wait();
        thread::sleep(patience);
        patina_daemon::say!("it takes too long to stop; what runs is ended from outside");
        process::exit(INTERRUPTED);
    })?;
    Ok(())
}

/// Waits until somebody wants us to end; for ever where nobody watches.
pub fn wait() {
    let Some(woken) = woken() else { return thread::park() };
    while !requested() {
        // The signal itself may interrupt the wait: that is what it waits for.
        if let Err(error) = poll(&mut [PollFd::new(&woken, PollFlags::IN)], None)
            && error != Errno::INTR
        {
            thread::park();
        }
    }
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
