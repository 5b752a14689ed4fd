//! Where a snapshot is: a path of the host, or a name of vmmd's own.

use super::{
    names::VmName,
    spec::{Port, Violation, check_ports},
};
use patina_proto::v1::RestoreSnapshotRequest;
use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// How many VMs one call restores.
pub const COUNT: RangeInclusive<u32> = 1..=256;

/// What to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreSpec {
    /// The snapshot.
    pub place: PathBuf,
    /// The master's name. None: `vmmd` chooses.
    pub name: Option<VmName>,
    /// How many VMs, within [`COUNT`].
    pub count: u32,
    /// The kernel, if the request names one.
    pub kernel: Option<PathBuf>,
    /// The root file system, if the request names one.
    pub rootfs: Option<PathBuf>,
    /// Ports of the master, as in [`super::spec::Spec::ports`].
    pub ports: Vec<Port>,
}

/// The path of a snapshot: an absolute path, or a name of a directory in `own`.
///
/// # Errors
/// It is neither.
pub fn place(field: &str, text: &str, own: &Path) -> Result<PathBuf, Violation> {
    if text.starts_with('/') {
        return match text.contains('\0') {
            false => Ok(PathBuf::from(text)),
            true => Err(Violation::new(field, "a path has no NUL in it")),
        };
    }
    match VmName::parse(text) {
        Ok(name) => Ok(own.join(name.as_str())),
        Err(error) => {
            let text = format!("{text:?} is neither an absolute path nor a name: {error}");
            Err(Violation::new(field, text))
        }
    }
}

impl RestoreSpec {
    /// Checks a request, all fields of it. Snapshots with a name are in `own`.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn check(request: RestoreSnapshotRequest, own: &Path) -> Result<Self, Vec<Violation>> {
        let mut wrong = Vec::new();
        let place = place("path", &request.path, own).map_err(|error| wrong.push(error)).unwrap_or_default();
        let name = match request.name.as_str() {
            "" => None,
            text => VmName::parse(text).map_err(|e| wrong.push(Violation::new("name", e.to_string()))).ok(),
        };
        let count = if request.count == 0 { 1 } else { request.count };
        if !COUNT.contains(&count) {
            let text = format!("{count} is not between {} and {}", COUNT.start(), COUNT.end());
            wrong.push(Violation::new("count", text));
        }
        let kernel = image("kernel", request.kernel, &mut wrong);
        let rootfs = image("rootfs", request.rootfs, &mut wrong);
        let ports = check_ports(&request.ports, &mut wrong);
        if wrong.is_empty() { Ok(Self { place, name, count, kernel, rootfs, ports }) } else { Err(wrong) }
    }
}

fn image(field: &str, given: String, wrong: &mut Vec<Violation>) -> Option<PathBuf> {
    let path = Some(PathBuf::from(given)).filter(|path| !path.as_os_str().is_empty())?;
    if path.is_relative() {
        let text = format!("{} is relative: vmmd needs an absolute path", path.display());
        wrong.push(Violation::new(field, text));
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_absolute_path_or_a_name() {
        let own = Path::new("/state/snapshots");
        let at = |text: &str| place("path", text, own).map_err(|violation| violation.description);
        assert_eq!(at("/srv/a b"), Ok("/srv/a b".into()));
        assert_eq!(at("base-1.2"), Ok("/state/snapshots/base-1.2".into()));
        for wrong in ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a\0b", &"x".repeat(64)] {
            assert!(at(wrong).unwrap_err().contains("neither an absolute path nor a name"), "{wrong:?}");
        }
        assert!(at("/a\0b").is_err());
    }

    #[test]
    fn every_wrong_field_of_a_restore_is_named() {
        let own = Path::new("/s");
        let request = RestoreSnapshotRequest {
            path: "a/b".into(),
            name: "-x".into(),
            count: 257,
            kernel: "k".into(),
            rootfs: "r".into(),
            ..Default::default()
        };
        let wrong = RestoreSpec::check(request, own).unwrap_err();
        let fields: Vec<_> = wrong.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["path", "name", "count", "kernel", "rootfs"]);
        let request = RestoreSnapshotRequest { path: "base".into(), ..Default::default() };
        let spec = RestoreSpec::check(request, own).unwrap();
        assert_eq!((spec.place.as_path(), spec.count), (Path::new("/s/base"), 1));
        assert_eq!((spec.name, spec.kernel, spec.rootfs, spec.ports), (None, None, None, Vec::new()));
    }
}
