//! Lists, shows, verifies and removes snapshots. They are the host's directories: nothing here is
//! about a VM.

use super::while_wanted;
use crate::vms::{
    error::Error,
    host::Host,
    snapshot_data::{error::SnapshotError, fit},
};
use patina_snapshot::{
    directory::{self, Listed, OpenError, Report, Snapshot, Usage},
    facts::HostFacts,
    manifest::Manifest,
};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// What a snapshot says of itself.
#[derive(Debug)]
pub struct Shown {
    /// Its directory.
    pub place: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// The space that it takes.
    pub usage: Usage,
    /// What its VM needs of a host, and why this host cannot run it; or why that cannot be read.
    pub needs: Result<(HostFacts, Option<SnapshotError>), SnapshotError>,
}

impl Shown {
    fn of(snapshot: &Snapshot) -> Result<Self, OpenError> {
        let (place, manifest) = (snapshot.place().to_owned(), snapshot.manifest().clone());
        let needs = fit::needs(snapshot).map(|needs| {
            let refusal = fit::check(snapshot, &needs).err();
            (needs, refusal)
        });
        Ok(Self { place, manifest, usage: snapshot.usage()?, needs })
    }

    /// A snapshot that was just made.
    ///
    /// # Errors
    /// It is gone already.
    pub(super) fn at(place: &Path) -> Result<Self, SnapshotError> {
        Ok(Self::of(&Snapshot::open(place)?)?)
    }
}

impl Host {
    /// The first `most` snapshots in a directory whose paths are after `after`, by path; without a
    /// directory, those that are named without a path.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn snapshots(
        &self,
        directory: Option<PathBuf>,
        after: String,
        most: usize,
    ) -> Result<Vec<Listed>, Error> {
        let directory = directory.unwrap_or_else(|| self.state.snapshots());
        self.snapshot_disks
            .blocking(move || {
                let listed = directory::list(&directory, &after, most);
                Ok(listed.map_err(|source| SnapshotError::List { directory, source })?)
            })
            .await
    }

    /// What a snapshot is of.
    ///
    /// # Errors
    /// It is not there, or is not one that can be used.
    pub async fn snapshot(&self, place: PathBuf) -> Result<Shown, Error> {
        self.snapshot_disks.blocking(move || Ok(Shown::at(&place)?)).await
    }

    /// Reads a whole snapshot and compares it with its digests.
    ///
    /// # Errors
    /// It is damaged, or not one that can be used.
    pub async fn verify_snapshot(&self, place: PathBuf) -> Result<(Shown, Report), Error> {
        let abandoned = CancellationToken::new();
        let _left = abandoned.clone().drop_guard();
        self.snapshot_disks
            .blocking(move || {
                let snapshot = Snapshot::open(&place).map_err(SnapshotError::Open)?;
                let report = snapshot.verify(&while_wanted(&abandoned));
                let report = report.map_err(|source| SnapshotError::Verify { place, source })?;
                Ok((Shown::of(&snapshot).map_err(SnapshotError::Open)?, report))
            })
            .await
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// It is not there, in use, or not a snapshot. Then nothing is deleted.
    pub async fn remove_snapshot(&self, place: PathBuf) -> Result<(), Error> {
        self.snapshot_disks
            .blocking(move || Ok(directory::remove(&place).map_err(SnapshotError::Remove)?))
            .await
    }
}
