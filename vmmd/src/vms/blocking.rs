//! Runs file operations on threads that may block.

use super::error::Error;
use tokio::task::spawn_blocking;

/// Runs file work where it may block, inside the runtime's context.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}
