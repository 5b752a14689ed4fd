//! Facts about this host.

use patina_proto::v1::KvmKind;
use std::{fs, path::Path};

/// Name, kernel and memory of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The host's name.
    pub hostname: String,
    /// The release of its kernel, as `uname -r` prints it.
    pub kernel: String,
    /// How many CPUs this process may use.
    pub cpus: u32,
    /// The host's RAM, MiB.
    pub memory_mib: u64,
    /// What `/dev/kvm` is.
    pub kvm: KvmKind,
}

impl Facts {
    /// Asks the kernel. What it does not tell is empty.
    #[must_use]
    pub fn gather() -> Self {
        let line = |path| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let cpus =
            std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let kvm = match crate::process::spawn::open_kvm() {
            Ok(_) => {
                kvm_kind(|module| Path::new("/sys/module").join(module).exists(), &line("/proc/cpuinfo"))
            }
            Err(_) => KvmKind::None,
        };
        Self {
            hostname: line("/proc/sys/kernel/hostname"),
            kernel: line("/proc/sys/kernel/osrelease"),
            cpus,
            memory_mib: memory_mib(&line("/proc/meminfo")),
            kvm,
        }
    }
}

/// The module that runs guests without hardware says so by its name; the CPU's flags tell the other
/// two apart.
fn kvm_kind(loaded: impl Fn(&str) -> bool, cpuinfo: &str) -> KvmKind {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_ascii_whitespace().any(|word| word == flag);
    if loaded("kvm_pvm") {
        KvmKind::Software
    } else if loaded("kvm_intel") || has("vmx") {
        KvmKind::Vmx
    } else if loaded("kvm_amd") || has("svm") {
        KvmKind::Svm
    } else {
        KvmKind::Software
    }
}

fn memory_mib(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_of_kvm_are_told_apart() {
        let none = |_: &str| false;
        assert_eq!(kvm_kind(|m| m == "kvm_pvm", "flags : vmx"), KvmKind::Software);
        assert_eq!(kvm_kind(|m| m == "kvm_amd", ""), KvmKind::Svm);
        assert_eq!(kvm_kind(none, "flags\t\t: fpu vmx sse"), KvmKind::Vmx);
        assert_eq!(kvm_kind(none, "flags\t\t: fpu svm_lock"), KvmKind::Software);
    }

    #[test]
    fn this_host_has_a_name_cpus_and_memory() {
        let facts = Facts::gather();
        assert!(!facts.kernel.is_empty() && facts.cpus > 0 && facts.memory_mib > 0, "{facts:?}");
        assert_eq!(memory_mib("MemTotal:  2048 kB"), 2);
    }
}
