//! The host's id: `STATE/host-id` has the id, and below it the machine for which it was made.

use super::{Lasting, StateDir, StoreError, read_bounded, write_whole};
use std::{fs, io, path::Path};
use uuid::Uuid;

impl StateDir {
    /// The id of this host, made now if there is none, the one `given` or a new one: the same as
    /// long as the folder is on this `machine`. In a folder that was copied from another machine it
    /// is made anew, because that host may go on with the old id. A folder that was used in this
    /// boot of the host is no such copy, whatever has become of the machine's name: VMs may run
    /// under the old id.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn host_id(&self, machine: &str, given: Option<Uuid>) -> Result<Uuid, StoreError> {
        let new = || given.unwrap_or_else(Uuid::new_v4);
        let path = self.path.join("host-id");
        let text = match read_bounded(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        if text.is_empty() {
            return write(&path, new(), machine);
        }
        let mut lines = text.lines().map(str::trim);
        let id = lines.next().unwrap_or_default().parse().map_err(|_| {
            let source = io::Error::new(io::ErrorKind::InvalidData, "it is no UUID; delete it for a new one");
            StoreError::Read { path: path.clone(), source }
        })?;
        match lines.next() {
            Some(of) if of == machine => Ok(id),
            // Another machine's, which may be in use there.
            Some(_) if self.is_of_another_boot => self.renew(&path, (id, new()), machine),
            Some(_) => {
                tracing::warn!(host = %id, "the machine has another machine-id or product UUID than before; the host keeps its id, because the state folder was used in this boot");
                write(&path, id, machine)
            }
            // Of an earlier release.
            None => write(&path, id, machine),
        }
    }

    fn renew(&self, path: &Path, (old, new): (Uuid, Uuid), machine: &str) -> Result<Uuid, StoreError> {
        // The ledger of a built-in scheduler is about the host of that id only.
        let ledger = self.path.join("scheduler");
        match fs::remove_dir_all(&ledger) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Delete { path: ledger, source });
            }
            _ => {}
        }
        let id = write(path, new, machine)?;
        tracing::error!(%old, new = %id, "the state folder was copied from another machine: this host gets an id of its own; if the machine is the same one with another machine-id or product UUID, `vmctl host fence` gives the old id up");
        Ok(id)
    }
}

fn write(path: &Path, id: Uuid, machine: &str) -> Result<Uuid, StoreError> {
    let write = write_whole(path, format!("{id}\n{machine}\n").as_bytes(), Lasting::Host);
    write.map(|()| id).map_err(|source| StoreError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder's id on a machine, and what the file then has; `boot` says in which boot it was
    /// used last.
    fn id(state: &Path, machine: &str, boot: Option<&str>) -> (Uuid, String) {
        if let Some(boot) = boot {
            fs::write(state.join("boot"), boot).unwrap();
        }
        let id = StateDir::open(state).unwrap().host_id(machine, None).unwrap();
        (id, fs::read_to_string(state.join("host-id")).unwrap())
    }

    #[test]
    fn a_folder_on_another_machine_gets_another_id_and_forgets_the_ledger() {
        let place = tempfile::tempdir().unwrap();
        let state = place.path();
        let ledger = state.join("scheduler/ledger");
        let (first, text) = id(state, "m", None);
        assert_eq!(text, format!("{first}\nm\n"));
        fs::create_dir(state.join("scheduler")).unwrap();
        fs::write(&ledger, "x").unwrap();
        assert_eq!(id(state, "m", None).0, first, "started again");
        assert_eq!(id(state, "m", Some("another")).0, first, "the machine was rebooted");
        assert!(ledger.exists());
        let (second, text) = id(state, "n", Some("another"));
        assert_ne!(second, first);
        assert_eq!(text, format!("{second}\nn\n"));
        assert!(!ledger.exists());
        assert_eq!(id(state, "n", Some("another")).0, second);
    }

    #[test]
    fn a_machine_that_is_renamed_while_its_vms_run_keeps_its_id() {
        let place = tempfile::tempdir().unwrap();
        let (first, _) = id(place.path(), "m", None);
        assert_eq!(id(place.path(), "n", None), (first, format!("{first}\nn\n")));
        assert_eq!(id(place.path(), "n", Some("another")).0, first, "it is written down");
    }

    #[test]
    fn a_new_id_is_the_one_that_is_given() {
        let place = tempfile::tempdir().unwrap();
        let on = |machine: &str, given: Uuid| {
            fs::write(place.path().join("boot"), "another").unwrap();
            StateDir::open(place.path()).unwrap().host_id(machine, Some(given)).unwrap()
        };
        let [first, second] = [Uuid::new_v4(), Uuid::new_v4()];
        assert_eq!(on("m", first), first);
        assert_eq!(on("m", second), first, "it has one already");
        assert_eq!(on("n", second), second, "on another machine it gets another");
    }

    #[test]
    fn an_id_of_an_earlier_release_is_kept_and_what_is_no_id_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let old = Uuid::new_v4();
        fs::write(place.path().join("host-id"), format!("{old}\n")).unwrap();
        assert_eq!(id(place.path(), "m", Some("another")), (old, format!("{old}\nm\n")));
        fs::write(place.path().join("host-id"), "none").unwrap();
        let refused = StateDir::open(place.path()).unwrap().host_id("m", None).unwrap_err();
        assert!(matches!(refused, StoreError::Read { .. }), "{refused}");
    }
}
