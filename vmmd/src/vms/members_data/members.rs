//! What a host with `--overlay` has for families over several hosts.

use super::{book::Book, told::Place};
use crate::net::Underlay;
use patina_daemon::lock;
use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
};
use tokio::sync::Notify;
use uuid::Uuid;

/// What a host with `--overlay` has for families over several hosts.
#[derive(Debug)]
pub struct Members {
    /// Where this host receives what VMs of other hosts send to its own.
    pub underlay: Underlay,
    /// Something may be different from what other hosts know.
    pub changed: Notify,
    /// Held while a family's network is made as the book says: the last one makes it so.
    pub routing: tokio::sync::Mutex<()>,
    /// Held while it is written which hosts a family has.
    pub saving: Mutex<()>,
    book: Mutex<Book>,
}

impl Members {
    /// For the host of this id, whose vmmd is at `address` and was started so often.
    #[must_use]
    pub fn new(own: Uuid, address: String, overlay: SocketAddr, start: u64) -> Self {
        let place = Place { address, overlay };
        Self {
            underlay: Underlay { local: overlay.ip(), port: overlay.port() },
            changed: Notify::new(),
            routing: tokio::sync::Mutex::new(()),
            saving: Mutex::new(()),
            book: Mutex::new(Book::new(own, place, start)),
        }
    }

    /// What this host knows.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        // No code panics under this lock; if some did, each host says all of it again.
        lock(&self.book)
    }

    /// Where this host receives.
    #[must_use]
    pub fn overlay(&self) -> SocketAddr {
        SocketAddr::new(self.underlay.local, self.underlay.port)
    }
}
