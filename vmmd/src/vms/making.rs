//! The vmms that are being made and are no VM's yet: how many at the same time, and their end when
//! vmmd stops.

use super::error::Error;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

/// Who makes vmms. None are made before [`Self::allow`].
#[derive(Debug)]
pub struct Making {
    turns: Semaphore,
    begun: watch::Sender<usize>,
    stopping: CancellationToken,
}

impl Default for Making {
    fn default() -> Self {
        Self { turns: Semaphore::new(0), begun: watch::Sender::new(0), stopping: CancellationToken::new() }
    }
}

/// One that is being made. Dropped when it is made, or when nothing of it is left.
#[derive(Debug)]
pub struct Turn<'a> {
    making: &'a Making,
    _permit: SemaphorePermit<'a>,
}

impl Making {
    /// So many more at the same time.
    pub fn allow(&self, count: usize) {
        self.turns.add_permits(count);
    }

    /// Waits until one more may be made.
    ///
    /// # Errors
    /// None are made any more.
    pub async fn turn(&self) -> Result<Turn<'_>, Error> {
        let permit = self.unless_stopping(self.turns.acquire()).await?.map_err(|_| Error::Stopping)?;
        self.begun.send_modify(|count| *count += 1);
        let turn = Turn { making: self, _permit: permit };
        // Counted first: `stop` sees the count, or this sees that it was called.
        if self.stopping.is_cancelled() { Err(Error::Stopping) } else { Ok(turn) }
    }

    /// Goes on with one that is being made, but not when vmmd stops.
    ///
    /// # Errors
    /// It stops: what was made is to be ended.
    pub async fn unless_stopping<T>(&self, step: impl Future<Output = T>) -> Result<T, Error> {
        self.stopping.run_until_cancelled(step).await.ok_or(Error::Stopping)
    }

    /// From now on none are made. Returns when those that were being made are made or gone.
    pub async fn stop(&self) {
        self.stopping.cancel();
        // The sender is here: this does not fail.
        if self.begun.subscribe().wait_for(|count| *count == 0).await.is_err() {
            tracing::error!("the count of vmms that are being made is gone");
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.making.begun.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use std::pin::pin;

    #[tokio::test]
    async fn none_are_made_before_they_may_and_after_a_stop_which_waits_for_those_that_were_begun() {
        let making = Making::default();
        let mut early = pin!(making.turn());
        assert!(early.as_mut().now_or_never().is_none());
        making.allow(1);
        let turn = early.await.unwrap();
        let mut second = pin!(making.turn());
        assert!(second.as_mut().now_or_never().is_none(), "one at a time");

        let mut stop = pin!(making.stop());
        assert!(stop.as_mut().now_or_never().is_none(), "one is being made");
        assert!(matches!(second.await, Err(Error::Stopping)));
        assert!(matches!(making.unless_stopping(std::future::pending::<()>()).await, Err(Error::Stopping)));
        drop(turn);
        stop.await;
        assert!(matches!(making.turn().await, Err(Error::Stopping)));
    }
}
