//! Runs file operations on threads that may block.

use super::error::{DISK_PATIENCE, DISK_WORK_MAX, Error};
use std::sync::Arc;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// Runs file work where it may block, inside the runtime's context.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}

/// Runs file work of one kind at places that callers name, which may be on disks that do not
/// answer.
#[derive(Debug)]
pub(super) struct Disks(Arc<Semaphore>);

impl Default for Disks {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(DISK_WORK_MAX)))
    }
}

impl Disks {
    /// As [`blocking`], in turn. Work whose caller has gone keeps its turn until it is done.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = timeout(DISK_PATIENCE, Arc::clone(&self.0).acquire_owned()).await;
        let turn = turn.map_err(|_| Error::DisksBusy)?.map_err(|_| Error::Stopping)?;
        blocking(move || {
            let _turn = turn;
            work()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[tokio::test]
    async fn however_many_wait_for_a_disk_others_are_answered_and_one_more_is_refused() {
        let disks = Arc::new(Disks::default());
        let (answer, answered) = channel::<()>();
        let answered = Arc::new(std::sync::Mutex::new(answered));
        let waits = (0..DISK_WORK_MAX).map(|_| {
            let (disks, answered) = (Arc::clone(&disks), Arc::clone(&answered));
            tokio::spawn(async move {
                let wait = move || {
                    assert!(answered.lock().unwrap().recv().is_err(), "nothing is sent");
                    Ok(())
                };
                disks.blocking(wait).await
            })
        });
        let waits: Vec<_> = waits.collect();
        while disks.0.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // Those who have gone count, too.
        waits[0].abort();
        blocking(|| Ok(())).await.unwrap();
        tokio::time::pause();
        let (refused, ()) = tokio::join!(disks.blocking(|| Ok(())), tokio::time::advance(2 * DISK_PATIENCE));
        assert!(matches!(refused, Err(Error::DisksBusy)), "{refused:?}");
        tokio::time::resume();
        drop(answer);
        disks.blocking(|| Ok(())).await.unwrap();
        for wait in waits.into_iter().skip(1) {
            wait.await.unwrap().unwrap();
        }
    }
}
