//! Where and of what figures were measured.

use serde::Serialize;
use std::{error::Error, fs, path::Path, process::Command, thread};

/// The machine.
#[derive(Debug, Serialize)]
pub struct HostFacts {
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// `software`, `vmx` or `svm`.
    pub kvm: String,
}

/// Looks at the machine; which KVM it has is what the `vmctl doctor` of `bin_dir` says.
pub fn facts(bin_dir: &Path) -> Result<HostFacts, Box<dyn Error>> {
    let doctor = Command::new(bin_dir.join("vmctl")).args(["-o", "json", "doctor"]).output()?;
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&doctor.stdout)?;
    let kvm = checks.iter().find(|check| check["name"] == "kvm").ok_or("vmctl doctor has no check kvm")?;
    let found = kvm["found"].as_str().unwrap_or_default();
    let kinds = [("VT-x", "vmx"), ("AMD-V", "svm"), ("software", "software")];
    let kind = kinds.iter().find(|(words, _)| found.starts_with(words)).ok_or("unknown kind of KVM")?;
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).ok_or("no MemTotal")?;
    let kib: u64 = total.trim().trim_end_matches(" kB").parse()?;
    Ok(HostFacts {
        cpus: thread::available_parallelism()?.get(),
        memory_mib: kib / 1024,
        kvm: kind.1.to_owned(),
    })
}

/// The commit that was measured, with `-dirty` where the tree differs from it; `unknown` outside a repository.
pub fn revision() -> String {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    match git {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".to_owned(),
    }
}
