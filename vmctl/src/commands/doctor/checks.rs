//! Judges the facts: one check each, with its fix.

use super::facts::Facts;
use patina_daemon::{
    kernel::{NOTES_WRITES, version},
    network::Dropping,
};
use serde::Serialize;
use std::io;

/// The least memory that a small guest and its host processes need, MiB.
const MEMORY_LEAST_MIB: u64 = 384;
/// Below this there is room for little more than one guest, MiB.
const MEMORY_GOOD_MIB: u64 = 2048;
/// What follows where that cannot be had.
const ALL_COPIED: &str = "a VM's second clone, and later ones, pause it longer: all its pages are copied";

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// As it must be.
    Pass,
    /// Guests run, but something does not.
    Warn,
    /// Guests do not run.
    Fail,
}

impl Verdict {
    /// Four letters.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One check: `-o json` prints it as it is.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub fix: Option<String>,
}

fn pass(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Pass, found: found.into(), fix: None }
}

fn warn(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Warn, found: found.into(), fix: Some(fix.into()) }
}

fn fail(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check { name, verdict: Verdict::Fail, found: found.into(), fix: Some(fix.into()) }
}

/// All checks, the hardest first.
pub fn all(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        kvm(facts),
        tun(facts),
        memory(facts),
        root(facts),
        kernel(facts),
        userfaultfd(facts),
        pager(facts),
        shared_huge_pages(facts),
        cgroups(facts),
        addresses(facts),
        firewall(facts),
        vmmd(facts),
    ];
    checks.extend(images(facts));
    checks
}

fn kvm(facts: &Facts) -> Check {
    const NAME: &str = "kvm";
    let has = |flag: &str| facts.cpu_flags.iter().any(|word| word == flag);
    match &facts.kvm {
        Ok(12) if has("vmx") => pass(NAME, "VT-x, API version 12"),
        Ok(12) if has("svm") => pass(NAME, "AMD-V, API version 12"),
        Ok(12) => pass(
            NAME,
            "software KVM, API version 12: the CPU has neither VT-x nor AMD-V, but KVM works. \
             Guests run; their kernel code is emulated and slow, their programs run at full speed",
        ),
        Ok(version) => fail(NAME, format!("API version {version}, not 12"), "boot Linux 5.14 or later"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fail(
            NAME,
            "/dev/kvm is not there",
            "`modprobe kvm_intel` or `modprobe kvm_amd`; in a VM, enable nested virtualization; in a container, pass --device /dev/kvm",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fail(
            NAME,
            "/dev/kvm may not be opened",
            "run as root, or `usermod -aG kvm USER` and log in again",
        ),
        Err(error) => fail(
            NAME,
            format!("/dev/kvm does not make a VM: {error}"),
            "see `dmesg | grep -i kvm`; enable virtualization in the firmware",
        ),
    }
}

fn tun(facts: &Facts) -> Check {
    match &facts.tun {
        Ok(()) => pass("tun", "/dev/net/tun opens"),
        Err(error) => fail(
            "tun",
            format!("open /dev/net/tun: {error}"),
            "`modprobe tun`; in a container, pass --device /dev/net/tun and --cap-add NET_ADMIN",
        ),
    }
}

fn memory(facts: &Facts) -> Check {
    const NAME: &str = "memory";
    const FIX: &str = "free memory, or run guests with less: `vmctl run --memory 128M`";
    let Some((total, available)) = facts.memory_mib else {
        return warn(NAME, "/proc/meminfo does not say", "mount /proc");
    };
    let found = format!("{available} MiB of {total} MiB available");
    match available {
        0..MEMORY_LEAST_MIB => fail(NAME, found, FIX),
        MEMORY_LEAST_MIB..MEMORY_GOOD_MIB => warn(NAME, found, FIX),
        _ => pass(NAME, found),
    }
}

fn root(facts: &Facts) -> Check {
    if facts.root {
        pass("rights", "root")
    } else {
        warn(
            "rights",
            "not root: vmmd makes bridges and taps",
            "run vmmd as root, or with CAP_NET_ADMIN and the right to open /dev/kvm",
        )
    }
}

fn kernel(facts: &Facts) -> Check {
    let Some(version) = version(&facts.kernel) else {
        return warn("kernel", format!("\"{}\" is not a version that vmctl can read", facts.kernel), "");
    };
    let found = format!("Linux {}", facts.kernel);
    if version >= NOTES_WRITES {
        pass("kernel", found)
    } else {
        let (major, minor) = NOTES_WRITES;
        warn(
            "kernel",
            format!("{found}: {ALL_COPIED}"),
            format!("boot Linux {major}.{minor} or later, which notes what is written"),
        )
    }
}

/// What a vmm makes before it gives its rights away.
fn userfaultfd(facts: &Facts) -> Check {
    const NAME: &str = "userfaultfd";
    match facts.userfaultfd_sysctl.as_deref() {
        Some("1") => pass(NAME, "allowed for every user (vm.unprivileged_userfaultfd = 1)"),
        Some(_) if facts.root => pass(NAME, "allowed for root"),
        Some(_) => warn(
            NAME,
            format!("allowed for root only; without, {ALL_COPIED}"),
            "run vmmd as root, or `sysctl vm.unprivileged_userfaultfd=1`",
        ),
        None => {
            warn(NAME, format!("the kernel has none: {ALL_COPIED}"), "boot a kernel with CONFIG_USERFAULTFD")
        }
    }
}

/// What fills the memory of VMs while they run.
fn pager(facts: &Facts) -> Check {
    const NAME: &str = "pager";
    const WITHOUT: &str = "VMs that are restored start when all their memory has been read";
    let Some(program) = &facts.pager else {
        return warn(
            NAME,
            format!("no program `pager` beside vmctl or in PATH: {WITHOUT}"),
            "install `pager` beside vmmd, or name it with `vmmd --pager`",
        );
    };
    let program = program.display();
    match &facts.userfaultfd_node {
        Ok(()) => pass(NAME, format!("{program}; /dev/userfaultfd opens")),
        Err(error) => warn(
            NAME,
            format!("{program}; open /dev/userfaultfd: {error}: {WITHOUT}"),
            match error.kind() {
                io::ErrorKind::NotFound => "boot Linux 6.7 or later with CONFIG_USERFAULTFD",
                _ => "run vmmd as root, or let it open the device",
            },
        ),
    }
}

/// A huge page of shared memory comes to be as a whole. A page that has not arrived yet would be
/// one of zeros then.
fn shared_huge_pages(facts: &Facts) -> Check {
    const NAME: &str = "huge pages";
    match facts.shmem_huge.as_deref() {
        None => pass(NAME, "none of shared memory: the kernel has no transparent huge pages"),
        Some(mode @ ("never" | "advise" | "deny")) => pass(NAME, format!("none of shared memory ({mode})")),
        Some(mode) => warn(
            NAME,
            format!(
                "shared memory gets huge pages ({mode}): memory of VMs cannot be served while it arrives"
            ),
            "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
    }
}

fn cgroups(facts: &Facts) -> Check {
    const NAME: &str = "cgroups";
    match (facts.cgroup_v2, facts.cgroup_v1) {
        (true, _) => pass(NAME, "version 2"),
        (false, true) => pass(NAME, "version 1"),
        (false, false) => warn(
            NAME,
            "not mounted: guests run without limits of their own",
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
    }
}

/// Another network in the range of the families (carrier-grade NAT, Tailscale) would hide guests or
/// be hidden by them.
fn addresses(facts: &Facts) -> Check {
    const NAME: &str = "addresses";
    let range = facts.network;
    match &facts.foreign {
        Ok(taken) if taken.is_empty() => pass(NAME, format!("no other network uses {range}")),
        Ok(taken) => warn(
            NAME,
            format!("other networks use {range}: {}", taken.join(", ")),
            "give vmmd another range with `vmmd --network`",
        ),
        Err(error) => warn(NAME, format!("the kernel does not say who uses {range}: {error}"), "run as root"),
    }
}

/// With br_netfilter a bridge asks the firewall about each frame, and Docker sets that to drop what
/// it does not know.
fn firewall(facts: &Facts) -> Check {
    const NAME: &str = "firewall";
    match &facts.dropping {
        Ok(chains) if chains.is_empty() => {
            pass(NAME, "no policy drops what the VMs of a family say to each other")
        }
        Ok(chains) => {
            let (found, fix): (Vec<_>, Vec<_>) = chains
                .iter()
                .map(|Dropping { chain, remedy }| (chain.as_str(), format!("`{remedy}`")))
                .unzip();
            let found = format!(
                "VMs of a family do not reach each other: {}, and bridges ask it",
                found.join(", and ")
            );
            warn(NAME, found, fix.join("; "))
        }
        Err(error) => warn(NAME, format!("the kernel does not say what it drops: {error}"), "run as root"),
    }
}

fn vmmd(facts: &Facts) -> Check {
    match &facts.vmmd {
        Ok(revision) => pass("vmmd", format!("{} answers, {revision}", facts.host)),
        Err(error) => warn("vmmd", error, "start it: `vmmd --standalone`"),
    }
}

fn images(facts: &Facts) -> Vec<Check> {
    let check = |(variable, path, there): &(&'static str, std::path::PathBuf, bool)| {
        if *there {
            pass("image", format!("{variable}: {}", path.display()))
        } else {
            warn(
                "image",
                format!("{variable}: {} is not there", path.display()),
                "build it: `cargo xtask image`",
            )
        }
    };
    facts.images.iter().map(check).collect()
}

#[cfg(test)]
#[path = "checks_test.rs"]
mod tests;
