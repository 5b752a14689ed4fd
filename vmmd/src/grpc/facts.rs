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

/// What a guest adapts itself to when it boots: the CPU with its features, the kind of KVM, and the
/// host's kernel. Of the features follow the state components that a guest enables (XCR0). The
/// frequency of the TSC is not in it: it is measured anew at each start of the host, and compared
/// when a VM starts.
#[must_use]
pub fn kind_of_host() -> String {
    let facts = Facts::gather();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    format!("{:?}\n{}\n{}", facts.kvm, facts.kernel, cpu(&cpuinfo))
}

/// The lines about the first CPU that say what it is and can.
fn cpu(cpuinfo: &str) -> String {
    const LINES: [&str; 6] = ["vendor_id", "cpu family", "model", "stepping", "flags", "address sizes"];
    let first = cpuinfo.lines().take_while(|line| !line.is_empty());
    let of = |line: &&str| line.split_once(':').is_some_and(|(name, _)| LINES.contains(&name.trim()));
    first.filter(of).map(|line| format!("{line}\n")).collect()
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
    fn a_host_is_of_another_kind_with_another_cpu_and_not_with_another_load() {
        let cpuinfo = |flags: &str, mhz: u32| {
            format!(
                "processor\t: 0\nvendor_id\t: X\nmodel\t\t: 1\nmodel name\t: Y\ncpu MHz\t\t: {mhz}\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t: z\n"
            )
        };
        assert_eq!(cpu(&cpuinfo("a b", 1)), "vendor_id\t: X\nmodel\t\t: 1\nflags\t\t: a b\n");
        assert_eq!(cpu(&cpuinfo("a b", 1)), cpu(&cpuinfo("a b", 2)));
        assert_ne!(cpu(&cpuinfo("a b", 1)), cpu(&cpuinfo("a", 1)));
        assert_eq!(kind_of_host(), kind_of_host());
    }

    #[test]
    fn this_host_has_a_name_cpus_and_memory() {
        let facts = Facts::gather();
        assert!(!facts.kernel.is_empty() && facts.cpus > 0 && facts.memory_mib > 0, "{facts:?}");
        assert_eq!(memory_mib("MemTotal:  2048 kB"), 2);
    }
}
