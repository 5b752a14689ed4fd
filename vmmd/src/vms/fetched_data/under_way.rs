//! Which files are being fetched: one that several calls want is fetched once.

use super::error::{FETCHES_MAX, FetchError};
use blake3::Hash;
use patina_daemon::lock;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// How far a file is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// What has come, bytes.
    pub done: u64,
    /// Its length; 0: not known yet.
    pub total: u64,
    /// What came of it; None: it still comes.
    pub end: Option<Result<(), Arc<FetchError>>>,
}

/// The files that are being fetched.
#[derive(Debug, Clone, Default)]
pub struct UnderWay(Arc<Mutex<HashMap<Hash, watch::Receiver<Progress>>>>);

/// A file that the caller is to fetch. It is not under way any more when this is dropped.
#[derive(Debug)]
pub struct Fetching {
    digest: Hash,
    told: watch::Sender<Progress>,
    all: UnderWay,
}

impl Fetching {
    /// So much has come.
    pub fn tell(&self, done: u64, total: u64) {
        self.told.send_modify(|progress| (progress.done, progress.total) = (done, total));
    }

    /// What came of it.
    pub fn end(self, end: Result<(), Arc<FetchError>>) {
        // First: who hears it and wants it again begins anew.
        lock(&self.all.0).remove(&self.digest);
        self.told.send_modify(|progress| progress.end = Some(end));
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        lock(&self.all.0).remove(&self.digest);
    }
}

impl UnderWay {
    /// Begins to fetch a file, or waits for whoever fetches it. None: too many are fetched.
    #[must_use]
    pub fn join(&self, digest: Hash) -> Option<(watch::Receiver<Progress>, Option<Fetching>)> {
        let mut all = lock(&self.0);
        if let Some(progress) = all.get(&digest) {
            return Some((progress.clone(), None));
        }
        if all.len() >= FETCHES_MAX {
            return None;
        }
        let (told, progress) = watch::channel(Progress::default());
        all.insert(digest, progress.clone());
        drop(all);
        Some((progress, Some(Fetching { digest, told, all: self.clone() })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: usize) -> Hash {
        blake3::hash(&number.to_le_bytes())
    }

    #[test]
    fn a_file_is_fetched_by_one_and_awaited_by_others() {
        let all = UnderWay::default();
        let (_, first) = all.join(digest(1)).unwrap();
        let (progress, second) = all.join(digest(1)).unwrap();
        assert!(second.is_none());
        let first = first.unwrap();
        first.tell(3, 7);
        assert_eq!((progress.borrow().done, progress.borrow().total), (3, 7));
        first.end(Ok(()));
        assert!(matches!(progress.borrow().end, Some(Ok(()))));
        let (_, again) = all.join(digest(1)).unwrap();
        assert!(again.is_some(), "the next one begins anew");
    }

    #[test]
    fn so_many_are_fetched_at_a_time_and_one_that_was_given_up_leaves_its_place() {
        let all = UnderWay::default();
        let mut fetching: Vec<_> = (0..FETCHES_MAX).map(|number| all.join(digest(number)).unwrap()).collect();
        assert!(all.join(digest(FETCHES_MAX)).is_none());
        assert!(all.join(digest(0)).is_some(), "who waits takes no place");
        let (progress, given_up) = fetching.pop().unwrap();
        drop(given_up);
        assert!(progress.has_changed().is_err(), "who waits learns of it");
        assert!(all.join(digest(FETCHES_MAX)).is_some());
    }
}
