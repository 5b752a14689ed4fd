//! Ctrl-C and SIGTERM: what runs is given up, and cleaned away, instead of being left behind.

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};
use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

static REQUESTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on a first signal is only noted; a second one ends the process as it would have.
///
/// # Errors
/// The kernel does not take the handlers.
pub fn watch() -> io::Result<()> {
    let requested = REQUESTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_default(signal, Arc::clone(requested))?;
        flag::register(signal, Arc::clone(requested))?;
    }
    Ok(())
}

/// Whether somebody wants us to end.
#[must_use]
pub fn requested() -> bool {
    REQUESTED.get().is_some_and(|requested| requested.load(Ordering::SeqCst))
}
