//! What the machine is and has.

use crate::commands::Context;
use kvm_ioctls::Kvm;
use patina_proto::v1::GetHostRequest;
use std::{env, fs, io, path::PathBuf};

/// Everything that the checks look at.
#[derive(Debug)]
pub struct Facts {
    /// Opening /dev/kvm and making an empty VM with it: the API version, or what went wrong.
    pub kvm: Result<i32, io::Error>,
    /// Feature words of the first CPU in /proc/cpuinfo.
    pub cpu_flags: Vec<String>,
    /// /proc/sys/vm/unprivileged_userfaultfd, where the kernel has userfaultfd at all.
    pub userfaultfd_sysctl: Option<String>,
    /// Opening /dev/net/tun.
    pub tun: Result<(), io::Error>,
    /// MemTotal and MemAvailable, MiB.
    pub memory_mib: Option<(u64, u64)>,
    /// /sys/fs/cgroup/cgroup.controllers is there.
    pub cgroup_v2: bool,
    /// /sys/fs/cgroup has controllers of version 1.
    pub cgroup_v1: bool,
    /// uname -r.
    pub kernel: String,
    /// The effective user is root.
    pub root: bool,
    /// /proc/net/route.
    pub routes: String,
    /// vmmd: its revision, or why it does not answer.
    pub vmmd: Result<String, String>,
    /// Where it was looked for.
    pub host: String,
    /// The images of VMs that name none: variable, path, whether the file is there.
    pub images: Vec<(&'static str, PathBuf, bool)>,
}

/// Looks at the machine.
pub async fn look(context: &Context) -> Facts {
    let cgroup = PathBuf::from("/sys/fs/cgroup");
    Facts {
        kvm: kvm(),
        cpu_flags: cpu_flags(&read("/proc/cpuinfo").unwrap_or_default()),
        userfaultfd_sysctl: read("/proc/sys/vm/unprivileged_userfaultfd").map(|text| text.trim().to_owned()),
        tun: open("/dev/net/tun"),
        memory_mib: memory_mib(&read("/proc/meminfo").unwrap_or_default()),
        cgroup_v2: cgroup.join("cgroup.controllers").exists(),
        cgroup_v1: cgroup.join("memory").exists() || cgroup.join("cpu").exists(),
        kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        root: rustix::process::geteuid().is_root(),
        routes: read("/proc/net/route").unwrap_or_default(),
        vmmd: vmmd(context).await,
        host: context.host.clone(),
        images: images(),
    }
}

/// A device that opens may still not work: an empty VM shows that it does.
fn kvm() -> Result<i32, io::Error> {
    let kvm = Kvm::new().map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
    kvm.create_vm().map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
    Ok(kvm.get_api_version())
}

async fn vmmd(context: &Context) -> Result<String, String> {
    let absent = |_| format!("does not answer at {}", context.host);
    let mut client = context.client().await.map_err(absent)?;
    let host = client.get_host(GetHostRequest {}).await.map_err(|status| status.message().to_owned())?;
    Ok(host.into_inner().revision)
}

/// What `vmmd` uses where a VM names none: the same variables, the same defaults.
fn images() -> Vec<(&'static str, PathBuf, bool)> {
    [("PATINA_KERNEL", patina_images::KERNEL_FILE), ("PATINA_ROOTFS", patina_images::ROOTFS_FILE)]
        .into_iter()
        .map(|(name, file)| {
            (name, env::var_os(name).map_or_else(|| patina_images::default_product(file), PathBuf::from))
        })
        .map(|(name, path)| (name, path.clone(), path.is_file()))
        .collect()
}

fn open(path: &str) -> Result<(), io::Error> {
    fs::File::options().read(true).write(true).open(path).map(|_| ())
}

/// A file that cannot be read is a fact that is not there; the checks say what follows from that.
fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn cpu_flags(cpuinfo: &str) -> Vec<String> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    flags.map(|(_, words)| words.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
}

fn memory_mib(meminfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = meminfo.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(
            cpu_flags("processor\t: 0\nflags\t\t: fpu vme svm\n\nflags : other"),
            ["fpu", "vme", "svm"]
        );
        assert_eq!(cpu_flags(""), Vec::<String>::new());
        let meminfo = "MemTotal:       24683336 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(memory_mib(meminfo), Some((24104, 2)));
        assert_eq!(memory_mib("MemTotal: x kB"), None);
    }
}
