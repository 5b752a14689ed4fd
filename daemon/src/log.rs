//! The log of a daemon: on standard error, filtered by `PATINA_LOG`. If a line cannot be written (a
//! full disk, a reader that has ended), the line is lost and the daemon continues.

use crate::stderr::Stderr;
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts the log of this process, as JSON lines or for people. Call it once.
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("PATINA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        // It would print its own errors with `eprintln!`, which panics where the log could not be
        // written either.
        .log_internal_errors(false)
        .with_writer(|| Stderr);
    if json {
        log.json().init();
    } else {
        log.init();
    }
}
