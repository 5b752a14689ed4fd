//! A host that does not answer.

use crate::error::CtlError;
use patina_daemon::chain;

/// A host that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error(
    "ask host {label} at {address}: {}; `vmctl host ls` shows its state, and `vmctl --host {address} ls` asks it alone",
    why(.reason)
)]
pub struct Silent {
    /// The host.
    pub label: String,
    /// Where its vmmd listens.
    pub address: String,
    /// The scheduler has given it up.
    pub is_lost: bool,
    /// Why it did not. The message has it, without what to do.
    pub reason: CtlError,
}

impl Silent {
    /// Says it on standard error.
    pub fn report(&self) {
        patina_daemon::say!("error: {self}");
    }
}

/// Without what to do about a host that was named on the command line.
fn why(error: &CtlError) -> String {
    match error {
        CtlError::Unreachable { source, .. } => {
            let mut last: &dyn std::error::Error = source;
            while let Some(cause) = last.source() {
                last = cause;
            }
            last.to_string()
        }
        error => chain(error),
    }
}
