//! The kernels and root file systems that the scheduler knows of.

use blake3::Hash;
use patina_daemon::lock;
use std::{sync::Mutex, time::Duration};
use tokio::{sync::Notify, time::timeout};

/// How often it is looked whether the host's own files are others.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub struct KnownImages {
    /// None: nobody has looked yet.
    digests: Mutex<Option<Vec<Hash>>>,
    again: Notify,
}

impl KnownImages {
    /// Those that there were when they were looked at.
    #[must_use]
    pub fn get(&self) -> Option<Vec<Hash>> {
        lock(&self.digests).clone()
    }

    /// These are there. Said in any order, they are the same.
    pub fn set(&self, mut digests: Vec<Hash>) {
        digests.sort_unstable_by_key(|digest| *digest.as_bytes());
        digests.dedup();
        *lock(&self.digests) = Some(digests);
    }

    /// There are others now.
    pub fn look_again(&self) {
        self.again.notify_one();
    }

    /// Waits until there may be others.
    pub async fn stale(&self) {
        // Late or told: it is looked again.
        drop(timeout(LOOK_EVERY, self.again.notified()).await);
    }
}
