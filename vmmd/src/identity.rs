//! What tells this vmmd from one with a copied state folder, or on a copied machine.

use crate::process_id::boot;
use patina_proto::v1::HostIdentity;
use sha2::{Digest as _, Sha256};
use std::{fs, os::unix::fs::MetadataExt as _, path::Path, time::UNIX_EPOCH};
use uuid::Uuid;

/// Files that tell a machine from others: one is the same in copies of an image and in containers,
/// the other one is only for root, and not everywhere.
const MACHINE: [&str; 2] = ["/etc/machine-id", "/sys/class/dmi/id/product_uuid"];

/// Of a vmmd that starts now, with that state folder.
#[must_use]
pub fn identity(state: &Path) -> HostIdentity {
    HostIdentity {
        instance: Uuid::new_v4().to_string(),
        boot: boot().to_owned(),
        machine: machine(MACHINE.map(|path| fs::read_to_string(path).unwrap_or_default())),
        folder: folder(state),
    }
}

/// As a digest: the contents of these files are not for others.
fn machine(facts: [String; 2]) -> String {
    let digest = Sha256::digest(format!("patina {}", facts.map(|fact| fact.trim().to_owned()).join(" ")));
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// A copy of a folder has another inode, or was made at another time. The device is left out: its
/// number changes with each mount.
fn folder(path: &Path) -> String {
    let Ok(facts) = fs::metadata(path) else { return String::new() };
    let made = facts.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    format!("{:x}.{:x}", facts.ino(), made.unwrap_or_default().as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_copied_folder_has_another_identity_and_a_moved_one_has_not() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir(at("a")).unwrap();
        let first = identity(&at("a"));
        assert!(Command::new("cp").arg("-a").args([at("a"), at("b")]).status().unwrap().success());
        assert_ne!(identity(&at("b")).folder, first.folder);
        fs::write(at("a").join("file"), "x").unwrap();
        fs::rename(at("a"), at("c")).unwrap();
        let again = identity(&at("c"));
        assert_eq!(
            (&again.folder, &again.machine, &again.boot),
            (&first.folder, &first.machine, &first.boot)
        );
        assert_ne!(again.instance, first.instance);
    }

    #[test]
    fn either_fact_tells_machines_apart_and_none_is_told() {
        let of = |id: &str, uuid: &str| machine([id.to_owned(), uuid.to_owned()]);
        let all = [of("secret", "1"), of("secret", "2"), of("b", "1"), of("", "")];
        assert!(all.iter().all(|one| one.len() == 32 && !one.contains("secret")));
        assert!(all.iter().enumerate().all(|(at, one)| !all[..at].contains(one)));
        assert_eq!(of("a\n", "1"), of("a", "1"));
    }
}
