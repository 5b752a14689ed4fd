//! File systems and the loopback interface.
//!
//! The root disk is read-only: an overlay with its upper half in RAM makes every write part of the
//! machine's memory, which is what a clone takes along. A root mounted read-write (`rw` on the kernel's
//! command line) is left as it is.

use crate::console::say;
use crate::machine::marks;
use crate::machine::rtnetlink::{Batch, RtNetlink};
use rustix::fs::{CWD, Mode, StatVfsMountFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::CString;

/// Directory of the read-only root where the overlay is put together.
const STAGE: &str = "/run";

struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static str,
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
    Mount { target: "/dev/shm", kind: "tmpfs", flags: NO_DEVICES, options: "mode=1777" },
    Mount { target: "/run", kind: "tmpfs", flags: NO_DEVICES, options: "mode=755" },
    Mount { target: "/tmp", kind: "tmpfs", flags: NO_DEVICES, options: "mode=1777" },
    Mount { target: "/sys/fs/cgroup", kind: "cgroup2", flags: QUIET, options: "" },
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Does all of it; what fails is told.
pub fn set_up() {
    if let Err(error) = overlay_root() {
        say(&format!("put an overlay in RAM over the root: {error}; the root stays as it is"));
    }
    for entry in MOUNTS {
        if let Err(error) = entry.mount() {
            say(&format!("mount {} on {}: {error}", entry.kind, entry.target));
        }
    }
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

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

fn make_directory(path: &str) -> Result<()> {
    match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Puts an overlay over a read-only root and makes it the root.
fn overlay_root() -> Result<()> {
    if !rustix::fs::statvfs("/")?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let [upper, work, root] = ["upper", "work", "root"].map(|name| format!("{STAGE}/{name}"));
    mount("tmpfs", STAGE, "tmpfs", MountFlags::empty(), c"mode=755")?;
    for directory in [&upper, &work, &root] {
        make_directory(directory)?;
    }
    let options = c_string(&format!("lowerdir=/,upperdir={upper},workdir={work}"))?;
    mount("overlay", root.as_str(), "overlay", MountFlags::empty(), options.as_c_str())?;
    rustix::process::chdir(root.as_str())?;
    // Only devtmpfs can be mounted this early, and it can be mounted again. The stage itself ends up hidden
    // under the new root, where nothing needs it by name.
    mount_move(".", "/")?;
    rustix::process::chroot(".")
}
