//! The hosts of families that have VMs on several of them, for a vmmd that is started again.
//!
//! `STATE/starts` counts the starts of vmmd: what a host says after one is newer than what it said
//! before.

use super::{Lasting, StateDir, StoreError, read_bounded, write_json, write_whole};
use crate::plan::address::FamilyNet;
use patina_daemon::chain;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// The folder.
pub(super) const MEMBERS: &str = "members";
/// The format that this `vmmd` writes.
const FORMAT: u32 = 1;

/// A family's hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFamily {
    format: u32,
    /// The family's network.
    pub net: FamilyNet,
    /// All hosts but this one.
    pub hosts: Vec<SavedHost>,
}

/// A host of a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedHost {
    /// The host's id.
    pub host: Uuid,
    /// Where its vmmd is.
    pub address: String,
    /// Where it receives what VMs of other hosts send to its own.
    pub overlay: SocketAddr,
    /// Its VMs.
    pub vmids: BTreeSet<u32>,
    /// The start of its vmmd in which it spoke last. 0: it has not spoken.
    pub start: u64,
    /// The number of what it said.
    pub number: u64,
}

impl SavedFamily {
    /// Of these hosts.
    #[must_use]
    pub fn new(net: FamilyNet, hosts: Vec<SavedHost>) -> Self {
        Self { format: FORMAT, net, hosts }
    }
}

impl StateDir {
    /// Counts a start of vmmd: how many there were with this one.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn count_start(&self) -> Result<u64, StoreError> {
        let path = self.path.join("starts");
        let text = match read_bounded(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => "0".to_owned(),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        let before: u64 = text.parse().map_err(|_| {
            let source = io::Error::new(io::ErrorKind::InvalidData, "it is no number");
            StoreError::Read { path: path.clone(), source }
        })?;
        let start = before.saturating_add(1);
        let written = write_whole(&path, format!("{start}\n").as_bytes(), Lasting::Host);
        written.map(|()| start).map_err(|source| StoreError::Write { path, source })
    }

    fn members_file(&self, family: Uuid) -> PathBuf {
        self.path.join(MEMBERS).join(format!("{family}.json"))
    }

    /// Writes down the hosts of a family. No family outlives its host, so the write need not.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save_members(&self, family: Uuid, members: &SavedFamily) -> Result<(), StoreError> {
        let path = self.members_file(family);
        write_json(&path, members, Lasting::Process).map_err(|source| StoreError::Write { path, source })
    }

    /// Forgets the hosts of a family.
    ///
    /// # Errors
    /// They cannot be deleted. A file that was never written is not an error.
    pub fn forget_members(&self, family: Uuid) -> Result<(), StoreError> {
        let path = self.members_file(family);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Delete { path, source })
            }
            _ => Ok(()),
        }
    }

    /// The families of which hosts are written down. What does not read is left out, and logged.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn members(&self) -> Result<Vec<(Uuid, SavedFamily)>, StoreError> {
        let folder = self.path.join(MEMBERS);
        let listed = |source| StoreError::Read { path: folder.clone(), source };
        let mut all = Vec::new();
        for entry in fs::read_dir(&folder).map_err(listed)? {
            let path = entry.map_err(listed)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(family) = name.and_then(|name| name.strip_suffix(".json")?.parse().ok()) else {
                continue;
            };
            match read(&path) {
                Ok(saved) => all.push((family, saved)),
                Err(error) => tracing::error!(
                    error = %chain(&error),
                    "the hosts of a family cannot be read; they are known when they speak again"
                ),
            }
        }
        Ok(all)
    }
}

fn read(path: &Path) -> Result<SavedFamily, StoreError> {
    let bytes = read_bounded(path).map_err(|source| StoreError::Read { path: path.to_owned(), source })?;
    let saved: SavedFamily = serde_json::from_slice(&bytes)
        .map_err(|source| StoreError::Parse { path: path.to_owned(), source })?;
    match saved.format {
        FORMAT => Ok(saved),
        format => Err(StoreError::Format { path: path.to_owned(), format }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_of_a_family_are_known_after_another_start_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let family = Uuid::from_u128(7);
        let host = SavedHost {
            host: Uuid::from_u128(8),
            address: "tcp:h:1".into(),
            overlay: "192.0.2.1:4789".parse().unwrap(),
            vmids: [3, 5].into(),
            start: 2,
            number: 9,
        };
        let net = FamilyNet { index: 4, base: "100.64.64.0".parse().unwrap() };
        let saved = SavedFamily::new(net, vec![host]);
        {
            let state = StateDir::open(folder.path()).unwrap();
            assert_eq!(state.count_start().unwrap(), 1);
            state.save_members(family, &saved).unwrap();
        }
        let state = StateDir::open(folder.path()).unwrap();
        assert_eq!(state.count_start().unwrap(), 2);
        let damaged = state.members_file(Uuid::from_u128(9));
        fs::write(damaged, "{").unwrap();
        assert_eq!(state.members().unwrap(), [(family, saved)]);
        state.forget_members(family).unwrap();
        state.forget_members(family).unwrap();
        assert_eq!(state.members().unwrap(), []);
        fs::write(folder.path().join("starts"), "x").unwrap();
        assert!(state.count_start().is_err());
    }
}
