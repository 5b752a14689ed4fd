//! The record of a family: the vmid of its next clone. It outlives the records of the family's VMs,
//! all of which may be removed, even the master's. So no vmid is given twice while one VM of the
//! family lives.

use super::{Lasting, StateDir, StoreError, read_bounded, write_json};
use serde::{Deserialize, Serialize};
use std::{fs, io, path::PathBuf};
use uuid::Uuid;

/// The format that this `vmmd` writes.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Family {
    format: u32,
    next_vmid: u32,
}

impl StateDir {
    fn family_file(&self, family: Uuid) -> PathBuf {
        self.path.join("families").join(format!("{family}.json"))
    }

    /// The next vmid of a family; None when nothing was written: it has had no clones.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn next_vmid(&self, family: Uuid) -> Result<Option<u32>, StoreError> {
        let path = self.family_file(family);
        let bytes = match read_bounded(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        let found: Family = serde_json::from_slice(&bytes)
            .map_err(|source| StoreError::Parse { path: path.clone(), source })?;
        match found.format {
            FORMAT => Ok(Some(found.next_vmid)),
            format => Err(StoreError::Format { path, format }),
        }
    }

    /// Writes down the next vmid of a family, for every `vmmd` to come. No family outlives its
    /// host, so the write need not.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save_next_vmid(&self, family: Uuid, next_vmid: u32) -> Result<(), StoreError> {
        let path = self.family_file(family);
        write_json(&path, &Family { format: FORMAT, next_vmid }, Lasting::Process)
            .map_err(|source| StoreError::Write { path, source })
    }

    /// Forgets families, all but those that live. Files that are no family's are left alone.
    ///
    /// # Errors
    /// They cannot be listed, or one cannot be deleted.
    pub fn keep_families(&self, living: &[Uuid]) -> Result<(), StoreError> {
        let folder = self.path.join("families");
        let read = |source| StoreError::Read { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            let family = name.to_str().and_then(|name| name.strip_suffix(".json")?.parse::<Uuid>().ok());
            if let Some(family) = family.filter(|family| !living.contains(family)) {
                self.forget_family(family)?;
            }
        }
        Ok(())
    }

    /// Forgets a family whose last VM has ended.
    ///
    /// # Errors
    /// It cannot be deleted. A file that was never written is not an error.
    pub fn forget_family(&self, family: Uuid) -> Result<(), StoreError> {
        let path = self.family_file(family);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Delete { path, source })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_familys_next_vmid_is_kept_until_the_family_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let [gone, living] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        {
            let state = StateDir::open(folder.path()).unwrap();
            assert_eq!(state.next_vmid(gone).unwrap(), None);
            state.save_next_vmid(gone, 4).unwrap();
            state.save_next_vmid(gone, 9).unwrap();
            state.save_next_vmid(living, 5).unwrap();
        }
        let state = StateDir::open(folder.path()).unwrap();
        assert_eq!(state.next_vmid(gone).unwrap(), Some(9));
        fs::write(folder.path().join("families/notes.json"), "mine").unwrap();
        state.keep_families(&[living]).unwrap();
        assert_eq!((state.next_vmid(gone).unwrap(), state.next_vmid(living).unwrap()), (None, Some(5)));
        assert!(folder.path().join("families/notes.json").exists());
        state.forget_family(living).unwrap();
        state.forget_family(living).unwrap();
        assert_eq!(state.next_vmid(living).unwrap(), None);
    }

    #[test]
    fn a_file_that_does_not_read_is_an_error_and_not_a_vmid() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let path = state.family_file(Uuid::nil());
        fs::write(&path, "{\"format\":1,").unwrap();
        assert!(matches!(state.next_vmid(Uuid::nil()), Err(StoreError::Parse { .. })));
        fs::write(&path, "{\"format\":2,\"next_vmid\":7}").unwrap();
        assert!(matches!(state.next_vmid(Uuid::nil()), Err(StoreError::Format { format: 2, .. })));
    }
}
