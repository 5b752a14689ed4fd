//! The machine on which figures were measured, and the revision.

use serde::Serialize;
use std::{error::Error, fs, path::Path, process::Command, thread};

/// The machine.
#[derive(Debug, Serialize)]
pub struct HostFacts {
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// What the processor calls itself, with its family, model and stepping.
    pub processor: String,
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
        processor: processor(&fs::read_to_string("/proc/cpuinfo")?),
        kvm: kind.1.to_owned(),
    })
}

/// Of the first processor in /proc/cpuinfo: its name and its numbers, which tell more where a
/// hypervisor made the name up.
fn processor(cpuinfo: &str) -> String {
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let value = |key: &str| {
        let mut lines = first.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == key).map_or("unknown", |(_, value)| value.trim())
    };
    let (name, family) = (value("model name"), value("cpu family"));
    format!("{name} (family {family}, model {}, stepping {})", value("model"), value("stepping"))
}

/// The commit that was measured, with `-dirty` where the tree differs from it; `unknown` outside a
/// repository.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_its_name_and_its_numbers() {
        let cpuinfo = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\
            stepping\t: 1\nflags\t\t: fpu\n\nprocessor\t: 1\nmodel name\t: another\n";
        assert_eq!(processor(cpuinfo), "AMD EPYC (family 25, model 17, stepping 1)");
        assert_eq!(processor(""), "unknown (family unknown, model unknown, stepping unknown)");
    }
}
