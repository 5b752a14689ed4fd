//! Calls to `vmmd` about snapshots.

use super::place::Place;
use crate::daemon::{Daemon, DaemonError, all_made, call};
use patina_proto::v1::{CreateSnapshotRequest, CreateSnapshotResponse, RestoreSnapshotRequest};
use patina_tests::interrupt;
use std::time::Instant;

/// What a RestoreSnapshot call has brought.
#[derive(Debug)]
pub struct Restored {
    /// When the call was made.
    pub called: Instant,
    /// The VMs, by vmid.
    pub names: Vec<String>,
    /// Of each: the call's arrival at vmmd to its first instruction.
    pub executing_us: Vec<f64>,
}

impl Restored {
    /// When the last VM ran.
    pub fn all_executing_us(&self) -> f64 {
        self.executing_us.iter().copied().fold(0.0, f64::max)
    }

    /// The time since the call, milliseconds.
    pub fn ms(&self) -> f64 {
        self.called.elapsed().as_secs_f64() * 1e3
    }
}

impl Daemon {
    /// Keeps a VM in a snapshot.
    pub async fn keep(&self, name: &str, place: &Place) -> Result<CreateSnapshotResponse, DaemonError> {
        let request = CreateSnapshotRequest { name: name.to_owned(), path: place.to_string() };
        let made = self.client.clone().create_snapshot(request).await;
        Ok(made.map_err(call("CreateSnapshot", name))?.into_inner())
    }

    /// Restores `count` VMs in one call; each must come to be.
    pub async fn restore(&self, place: &Place, count: u32) -> Result<Restored, DaemonError> {
        if interrupt::requested() {
            return Err(DaemonError::Interrupted);
        }
        let path = place.to_string();
        let request = RestoreSnapshotRequest { path: path.clone(), count, ..Default::default() };
        let called = Instant::now();
        let made = self.client.clone().restore_snapshot(request).await;
        let vms = made.map_err(call("RestoreSnapshot", &path))?.into_inner().vms;
        let (names, executing_us) = all_made(&path, vms)?;
        Ok(Restored { called, names, executing_us })
    }
}
