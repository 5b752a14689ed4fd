//! The kind of KVM behind `/dev/kvm`, by its kernel module. The vmm must not look itself, so it is
//! told. The CPU alone does not show the kind: with VT-x or AMD-V, KVM may still be the kind that
//! works without them.

use patina_control::config::KvmKind;
use std::{
    fs,
    path::{Path, PathBuf},
};

const MODULES: [(&str, KvmKind); 3] =
    [("kvm_intel", KvmKind::Vmx), ("kvm_amd", KvmKind::Svm), ("kvm_pvm", KvmKind::Software)];

/// The kind; None: no module says so, and the CPU has to tell.
#[must_use]
pub fn kind() -> Option<KvmKind> {
    kind_in(Path::new("/sys/module"))
}

/// The kernel lets one module serve `/dev/kvm`. A loaded module is the one that serves. Several
/// modules may be built in; all but one of them do not serve.
fn kind_in(modules: &Path) -> Option<KvmKind> {
    let there: Vec<(PathBuf, KvmKind)> = MODULES
        .iter()
        .map(|(name, kind)| (modules.join(name), *kind))
        .filter(|(folder, _)| folder.is_dir())
        .collect();
    let is_loaded = |folder: &Path| {
        fs::read_to_string(folder.join("initstate")).is_ok_and(|state| state.trim() == "live")
    };
    let loaded: Vec<_> = there.iter().filter(|(folder, _)| is_loaded(folder)).collect();
    match (&loaded[..], &there[..]) {
        ([(_, kind)], _) | ([], [(_, kind)]) => Some(*kind),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_that_is_loaded_serves_or_the_only_one_built_in() {
        let kind_of = |modules: &[(&str, Option<&str>)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, state) in modules {
                fs::create_dir(folder.path().join(name)).unwrap();
                if let Some(state) = state {
                    fs::write(folder.path().join(name).join("initstate"), state).unwrap();
                }
            }
            kind_in(folder.path())
        };
        let live = Some("live\n");
        assert_eq!(kind_of(&[("kvm", live), ("kvm_intel", live)]), Some(KvmKind::Vmx));
        assert_eq!(kind_of(&[("kvm", None), ("kvm_amd", None)]), Some(KvmKind::Svm));
        // The CPU has VT-x, and software KVM serves.
        assert_eq!(kind_of(&[("kvm_intel", None), ("kvm_pvm", live)]), Some(KvmKind::Software));
        assert_eq!(kind_of(&[("kvm_intel", Some("going\n")), ("kvm_pvm", live)]), Some(KvmKind::Software));
        assert_eq!(kind_of(&[("kvm_pvm", None)]), Some(KvmKind::Software));
        assert_eq!(kind_of(&[("kvm", live)]), None);
        assert_eq!(kind_of(&[("kvm_intel", None), ("kvm_pvm", None)]), None, "either may serve");
    }
}
