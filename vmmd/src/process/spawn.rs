//! Starts one `vmm`.

use super::{
    Process, ProcessError, host_check, kvm_module,
    sys::{self, Dispensable},
    urgency::Urgency,
};
use crate::store::{StoreError, VmDir};
use patina_control::config::{self, Member, VmConfig};
use patina_snapshot::{facts::HostFacts, layout};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where a vmm's environment names its folder, for [`super::stray`].
pub const DIR_VARIABLE: &str = "PATINA_VM_DIR";

/// Why a vmm cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// `/dev/kvm` cannot be opened.
    #[error("open /dev/kvm; {}", kvm_hint(.source))]
    Kvm {
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A file of the VM's folder cannot be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control socket cannot be made.
    #[error("listen on {path}")]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The configuration cannot be written.
    #[error("write the vmm's configuration")]
    Config(#[source] io::Error),
    /// The program cannot be run.
    #[error("run {program}; name it with --vmm")]
    Run {
        /// The program's path.
        program: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The process cannot be watched.
    #[error(transparent)]
    Watch(#[from] ProcessError),
}

fn kvm_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            "load a KVM module (modprobe kvm_intel or kvm_amd), or enable virtualization"
        }
        io::ErrorKind::PermissionDenied => "run vmmd as root or in the group that owns it",
        _ => "see `vmctl doctor`",
    }
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// It is not there, or vmmd may not open it.
pub fn open_kvm() -> Result<File, SpawnError> {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").map_err(|source| SpawnError::Kvm { source })
}

/// What a vmm needs besides its folder.
#[derive(Debug)]
pub struct Parts {
    /// `/dev/kvm`.
    pub kvm: File,
    /// With what the VM begins: a kernel, or nothing yet.
    pub start: Start,
    /// The file of the root disk.
    pub rootfs: File,
    /// The tap of the VM's network interface.
    pub tap: OwnedFd,
    /// How many vCPUs the VM has.
    pub vcpus: u8,
    /// The VM's RAM, MiB.
    pub memory_mib: u32,
    /// Who the VM is, and who else is on its network. None: a spare vmm.
    pub member: Option<Member>,
    /// How urgent the process is.
    pub urgency: Urgency,
}

/// Where a VM begins.
#[derive(Debug)]
pub enum Start {
    /// The VM boots a kernel.
    Boot {
        /// The kernel's file.
        kernel: File,
        /// What is added to the kernel's command line.
        cmdline: String,
        /// The VM is offered no CPU feature that is not in these facts. None: all that there are.
        cpu_baseline: Option<Box<HostFacts>>,
    },
    /// The VM has nothing to run yet: it waits for a generation.
    Warm,
}

impl Start {
    /// As the vmm is told, and what it must inherit for that.
    fn describe(&self) -> (config::Start, Vec<BorrowedFd<'_>>) {
        match self {
            Self::Boot { kernel, cmdline, .. } => (
                config::Start::Boot { kernel_fd: kernel.as_raw_fd(), cmdline: cmdline.clone() },
                vec![kernel.as_fd()],
            ),
            Self::Warm => (config::Start::Warm, Vec::new()),
        }
    }

    fn cpu_baseline(&self) -> Option<Vec<u8>> {
        match self {
            Self::Boot { cpu_baseline, .. } => cpu_baseline.as_deref().map(layout::to_bytes),
            Self::Warm => None,
        }
    }
}

/// Starts `program` for the VM of `dir`. On an error nothing of it runs; files stay in the folder.
///
/// # Errors
/// A file, the socket or the process cannot be made.
pub fn spawn(program: &Path, name: &str, dir: &VmDir, parts: Parts) -> Result<Process, SpawnError> {
    let console = dir.create_file(dir.console_log())?;
    let end = dir.create_file(dir.end_file())?;
    let log = dir.create_file(dir.vmm_log())?;
    let control = listen(dir)?;
    let (start, mut kept) = parts.start.describe();
    // A master has vmid 0.
    let is_master = parts.member.as_ref().is_some_and(|member| member.identity.vmid == 0);
    let dispensable = if is_master { Dispensable::No } else { Dispensable::Yes };
    let (identity, neighbours) =
        parts.member.map(|Member { identity, neighbours }| (identity, neighbours)).unzip();
    let config = VmConfig {
        version: patina_control::VERSION,
        name: name.to_owned(),
        vcpus: parts.vcpus,
        memory_mib: parts.memory_mib,
        kvm_fd: parts.kvm.as_raw_fd(),
        kvm_kind: kvm_module::kind(),
        avoid_pagemap_scan: host_check::avoid_pagemap_scan(),
        start,
        rootfs_fd: parts.rootfs.as_raw_fd(),
        tap_fd: parts.tap.as_raw_fd(),
        console_fd: console.as_raw_fd(),
        control_fd: control.as_raw_fd(),
        end_fd: end.as_raw_fd(),
        identity,
        neighbours,
        cpu_baseline: parts.start.cpu_baseline(),
    };
    let config = write_config(&config).map_err(SpawnError::Config)?;
    kept.extend([
        parts.kvm.as_fd(),
        parts.rootfs.as_fd(),
        parts.tap.as_fd(),
        console.as_fd(),
        control.as_fd(),
        end.as_fd(),
        config.as_fd(),
    ]);
    let failed = |source| SpawnError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command
        .arg("--config-fd")
        .arg(config.as_raw_fd().to_string())
        .env_clear()
        .env(DIR_VARIABLE, dir.path())
        .envs(std::env::var_os("RUST_BACKTRACE").map(|value| ("RUST_BACKTRACE", value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log);
    sys::keep_only(&mut command, &kept, (parts.urgency.nice(), dispensable));
    let child = command.spawn().map_err(failed)?;
    Ok(Process::of_child(child)?)
}

fn listen(dir: &VmDir) -> Result<UnixListener, SpawnError> {
    let folder = dir.open()?;
    // A socket's path has at most 107 bytes, the state folder's may be longer: name it through the
    // open folder.
    let path = format!("/proc/self/fd/{}/vmm.sock", folder.as_raw_fd());
    UnixListener::bind(path).map_err(|source| SpawnError::Listen { path: dir.socket(), source })
}

fn write_config(config: &VmConfig) -> io::Result<File> {
    let mut file = File::from(memfd_create("vm-config", MemfdFlags::CLOEXEC)?);
    file.write_all(&serde_json::to_vec(config)?)?;
    Ok(file)
}
