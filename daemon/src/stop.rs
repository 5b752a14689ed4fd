//! The signals that end a daemon.

use std::io;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// SIGTERM and SIGINT cannot be watched for.
#[derive(Debug, thiserror::Error)]
#[error("watch for signals")]
pub struct SignalError(#[source] io::Error);

/// Tells when the daemon is to stop. Clones tell the same.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// At the first SIGTERM or SIGINT from now on. To be called in a tokio runtime.
    ///
    /// # Errors
    /// The kernel does not let us watch for them.
    pub fn at_signals() -> Result<Self, SignalError> {
        let mut term = signal(SignalKind::terminate()).map_err(SignalError)?;
        let mut int = signal(SignalKind::interrupt()).map_err(SignalError)?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            sender.send_replace(true);
        });
        Ok(Self(receiver))
    }

    /// Waits until the daemon is to stop; at once if that has been told.
    pub async fn told(mut self) {
        // The sender going away without a word means that the runtime ends: the same.
        if self.0.wait_for(|stop| *stop).await.is_err() {
            tracing::debug!("signals are no longer watched");
        }
    }
}
