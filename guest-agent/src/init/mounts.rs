//! File systems and the loopback interface.
//!
//! The root disk is read-only. An overlay with its upper half in RAM makes every write part of the
//! machine's memory, so a clone has it, too. A root that is mounted read-write (`rw` on the
//! kernel's command line) is left unchanged.
//!
//! **One file system in RAM** holds the root's upper half, `/run`, `/tmp` and `/dev/shm`. Together
//! they are bounded, and each can use all of it. A program that fills it gets ENOSPC, and running
//! programs still have memory. The agent's few files have a file system of their own, because no
//! clone can learn its identity without them.

use crate::console::say;
use crate::machine::marks;
use crate::machine::rtnetlink::{Batch, RtNetlink};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfsMountFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_move, mount_remount, move_mount, open_tree,
};
use rustix::system::Sysinfo;
use std::ffi::CString;
use std::os::fd::OwnedFd;

/// Directory of the read-only root where the overlay is put together.
const STAGE: &str = "/run";

/// The agent's directory.
const AGENT: &str = "/run/gridcentric";

/// What is left for programs and the kernel when the file system in RAM is full: this share of RAM,
/// and at least so much.
const RESERVE_SHARE: u64 = 4;
const RESERVE_MIN_BYTES: u64 = 20 * 1024 * 1024;
/// However little that leaves for files.
const FILES_MIN_BYTES: u64 = 8 * 1024 * 1024;

struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static str,
}

/// A directory of the file system in RAM.
struct Shared {
    target: &'static str,
    name: &'static str,
    mode: u32,
}

const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC).union(MountFlags::NODEV);
const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);

/// In order; a missing directory is made.
const MOUNTS: &[Mount] = &[
    Mount { target: "/dev", kind: "devtmpfs", flags: MountFlags::NOSUID, options: "mode=755" },
    Mount { target: "/proc", kind: "proc", flags: QUIET, options: "" },
    Mount { target: "/sys", kind: "sysfs", flags: QUIET, options: "" },
    Mount { target: "/dev/pts", kind: "devpts", flags: DEVICES, options: "mode=620,gid=5,ptmxmode=666" },
    Mount { target: "/sys/fs/cgroup", kind: "cgroup2", flags: QUIET, options: "" },
];

/// Mounted after those.
const SHARED: &[Shared] = &[
    Shared { target: "/dev/shm", name: "shm", mode: 0o1777 },
    Shared { target: "/run", name: "run", mode: 0o755 },
    Shared { target: "/tmp", name: "tmp", mode: 0o1777 },
];

/// Last.
const AGENTS: Mount =
    Mount { target: AGENT, kind: "tmpfs", flags: QUIET, options: "mode=755,size=64k,nr_inodes=64" };

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Does all of it; what fails is told.
pub fn set_up() {
    let ram = files_in_ram().inspect_err(|error| say(&format!("make a file system in RAM: {error}"))).ok();
    if let Err(error) = overlay_root() {
        say(&format!("put an overlay in RAM over the root: {error}; the root stays as it is"));
    }
    let tell = |kind: &str, target: &str, mounted: Result<()>| {
        if let Err(error) = mounted {
            say(&format!("mount {kind} on {target}: {error}"));
        }
    };
    MOUNTS.iter().for_each(|entry| tell(entry.kind, entry.target, entry.mount()));
    if let Some(ram) = &ram {
        SHARED.iter().for_each(|entry| tell("tmpfs", entry.target, entry.mount(ram)));
    }
    tell(AGENTS.kind, AGENTS.target, AGENTS.mount());
    for (to, from) in LINKS {
        match rustix::fs::symlink(*to, *from) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => say(&format!("make {from}: {error}")),
        }
    }
    if let Err(error) = marks::cover_boot_id() {
        say(&format!("put a file over boot_id: {error}; clones will all have the same"));
    }
    if let Err(error) = loopback_up() {
        say(&format!("take the loopback interface up: {error}"));
    }
}

fn loopback_up() -> std::io::Result<()> {
    let mut netlink = RtNetlink::open()?;
    let mut batch = Batch::default();
    batch.link(netlink.index("lo")?);
    netlink.send(batch)?;
    netlink.failures().into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

impl Mount {
    fn mount(&self) -> Result<()> {
        let options = c_string(self.options)?;
        let attempt = || mount(self.kind, self.target, self.kind, self.flags, options.as_c_str());
        match attempt() {
            // The kernel may have mounted devtmpfs itself.
            Err(Errno::BUSY) => Ok(()),
            Err(Errno::NOENT) => {
                make_directory(self.target)?;
                attempt()
            }
            other => other,
        }
    }
}

impl Shared {
    fn mount(&self, ram: &OwnedFd) -> Result<()> {
        make_directory(self.target)?;
        let tree =
            open_tree(ram, self.name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        move_mount(&tree, "", CWD, self.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        mount_remount(self.target, MountFlags::BIND | NO_DEVICES, "")
    }
}

/// Mounts the file system in RAM where the overlay is put together, with the directories that are
/// to be seen elsewhere.
fn files_in_ram() -> Result<OwnedFd> {
    let options = c_string(&format!("mode=755,size={}", files_bytes(rustix::system::sysinfo())))?;
    mount("tmpfs", STAGE, "tmpfs", MountFlags::empty(), options.as_c_str())?;
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let ram = rustix::fs::open(STAGE, flags, Mode::empty())?;
    for Shared { name, mode, .. } in SHARED {
        rustix::fs::mkdirat(&ram, *name, Mode::from_raw_mode(*mode))?;
        // As it is, whatever this process's umask.
        rustix::fs::chmodat(&ram, *name, Mode::from_raw_mode(*mode), AtFlags::empty())?;
    }
    Ok(ram)
}

fn files_bytes(memory: Sysinfo) -> u64 {
    let total = memory.totalram.saturating_mul(memory.mem_unit.into());
    let reserve = (total / RESERVE_SHARE).max(RESERVE_MIN_BYTES);
    total.saturating_sub(reserve).max(FILES_MIN_BYTES)
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

fn make_directory(path: &str) -> Result<()> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Puts an overlay, with its upper half in the file system in RAM, over a read-only root and makes
/// it the root.
fn overlay_root() -> Result<()> {
    if !rustix::fs::statvfs("/")?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let [upper, work, root] = ["upper", "work", "root"].map(|name| format!("{STAGE}/{name}"));
    for directory in [&upper, &work, &root] {
        make_directory(directory)?;
    }
    let options = c_string(&format!("lowerdir=/,upperdir={upper},workdir={work}"))?;
    mount("overlay", root.as_str(), "overlay", MountFlags::empty(), options.as_c_str())?;
    rustix::process::chdir(root.as_str())?;
    // Only devtmpfs can be mounted this early, and it can be mounted again. The stage itself ends
    // up hidden under the new root, where nothing needs it by name.
    mount_move(".", "/")?;
    rustix::process::chroot(".")
}
