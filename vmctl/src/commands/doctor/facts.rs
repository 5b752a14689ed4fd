//! Collects facts about the machine.

use crate::commands::Context;
use kvm_ioctls::Kvm;
use patina_daemon::network::{self, Dropping, Network};
use patina_proto::v1::{GetHostRequest, Host};
use std::{env, fs, io, net::Ipv4Addr, os::unix::fs::PermissionsExt as _, path::PathBuf};

/// Everything that the checks look at.
#[derive(Debug)]
pub struct Facts {
    /// Opening /dev/kvm and making an empty VM with it: the API version, or what went wrong.
    pub kvm: Result<i32, io::Error>,
    /// Feature words of the first CPU in /proc/cpuinfo.
    pub cpu_flags: Vec<String>,
    /// /proc/sys/vm/unprivileged_userfaultfd, where the kernel has userfaultfd at all.
    pub userfaultfd_sysctl: Option<String>,
    /// Opening /dev/userfaultfd.
    pub userfaultfd_node: Result<(), io::Error>,
    /// The program `pager`: beside this one, or in a folder of PATH.
    pub pager: Option<PathBuf>,
    /// The mode of /sys/kernel/mm/transparent_hugepage/shmem_enabled, where the kernel has huge
    /// pages.
    pub shmem_huge: Option<String>,
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
    /// Addresses and routes of others in the families' range, in words, or why they are not known.
    pub foreign: Result<Vec<String>, String>,
    /// The families' range.
    pub network: Network,
    /// Chains of the firewall that drop what the VMs of a family say to each other, or why they are
    /// not known.
    pub dropping: Result<Vec<Dropping>, String>,
    /// vmmd: its revision, or why it does not answer.
    pub vmmd: Result<String, String>,
    /// Where it was looked for.
    pub host: String,
    /// The images of VMs that name none: variable, path, whether the file is there.
    pub images: Vec<(&'static str, PathBuf, bool)>,
}

/// Looks at the machine.
pub async fn look(context: &Context) -> Facts {
    let host = vmmd(context).await;
    let range = host.as_ref().ok().and_then(|host| range(&host.network)).unwrap_or_else(default_range);
    let cgroup = PathBuf::from("/sys/fs/cgroup");
    Facts {
        kvm: kvm(),
        cpu_flags: cpu_flags(&read("/proc/cpuinfo").unwrap_or_default()),
        userfaultfd_sysctl: read("/proc/sys/vm/unprivileged_userfaultfd").map(|text| text.trim().to_owned()),
        userfaultfd_node: open("/dev/userfaultfd"),
        pager: program("pager"),
        shmem_huge: read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").as_deref().and_then(chosen),
        tun: open("/dev/net/tun"),
        memory_mib: memory_mib(&read("/proc/meminfo").unwrap_or_default()),
        cgroup_v2: cgroup.join("cgroup.controllers").exists(),
        cgroup_v1: cgroup.join("memory").exists() || cgroup.join("cpu").exists(),
        kernel: patina_daemon::kernel::release().unwrap_or_default(),
        root: rustix::process::geteuid().is_root(),
        foreign: network::foreign(range).await.map_err(|error| error.to_string()),
        network: range,
        dropping: network::bridged_frames_dropped().map_err(|error| error.to_string()),
        vmmd: host.map(|host| host.revision),
        host: context.host.clone(),
        images: images(),
    }
}

/// The mode in brackets of a list such as `always [never] deny`.
fn chosen(modes: &str) -> Option<String> {
    modes.split_whitespace().find_map(|mode| mode.strip_prefix('[')?.strip_suffix(']')).map(str::to_owned)
}

/// A device that opens may still not work: an empty VM shows that it does.
fn kvm() -> Result<i32, io::Error> {
    let kvm = Kvm::new().map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
    kvm.create_vm().map_err(|errno| io::Error::from_raw_os_error(errno.errno()))?;
    Ok(kvm.get_api_version())
}

/// The families' range of a vmmd that is told no other: 100.64.0.0/10.
pub fn default_range() -> Network {
    Network::of(Ipv4Addr::new(100, 64, 0, 0), 10)
}

/// A range as vmmd says it.
fn range(text: &str) -> Option<Network> {
    let (address, prefix) = text.split_once('/')?;
    Some(Network::of(address.parse().ok()?, prefix.parse().ok()?))
}

async fn vmmd(context: &Context) -> Result<Host, String> {
    let absent = |_| format!("does not answer at {}", context.host);
    let mut client = context.client().await.map_err(absent)?;
    let host = client.get_host(GetHostRequest {}).await.map_err(|status| status.message().to_owned())?;
    Ok(host.into_inner())
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

/// A program that `vmmd` looks for beside itself: it is installed with this one.
fn program(name: &str) -> Option<PathBuf> {
    let own = env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    program_in(own.into_iter().chain(env::split_paths(&path)), name)
}

fn program_in(mut folders: impl Iterator<Item = PathBuf>, name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|stat| stat.is_file() && stat.permissions().mode() & 0o111 != 0)
    };
    folders.find_map(|folder| Some(folder.join(name)).filter(is_program))
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
    fn a_program_is_a_file_that_can_be_run() {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let path = |number: usize| folders[number].path().join("pager");
        fs::create_dir(path(0)).unwrap();
        fs::write(path(1), "").unwrap();
        let find = || program_in(folders.iter().map(|folder| folder.path().to_owned()), "pager");
        assert_eq!(find(), None, "a folder and a file of another kind");
        fs::write(path(2), "").unwrap();
        fs::set_permissions(path(2), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(), Some(path(2)));
    }

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
        assert_eq!(chosen("always within_size advise [never] deny force\n").as_deref(), Some("never"));
        assert_eq!(chosen("no mode"), None);
    }
}
