//! The cgroup of the guest's programs: all processes except gc-init and gc-agent. The kernel can
//! freeze it as a whole (cgroup v2, `cgroup.freeze`). A clone keeps it frozen until it has its
//! identity.
//!
//! Programs start in this cgroup, and their children stay in it. A program that moves to a cgroup
//! of its own is not held.

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::{Errno, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Where it is in a guest.
pub const GUEST: &str = "/sys/fs/cgroup/guest";

/// Cgroups below it that hooks have left processes in, at most: the next hook is told from others
/// by who started whom.
const LEFT_MAX: u32 = 64;

/// Longest `cgroup.events` that is understood, bytes: two short lines so far.
const EVENTS_MAX_BYTES: usize = 256;

/// A cgroup.
#[derive(Debug)]
pub struct Cgroup {
    watched: Watched,
    freeze: OwnedFd,
}

impl Cgroup {
    /// Opens the cgroup, and makes it if it is not there.
    ///
    /// # Errors
    /// The kernel's; ENOENT or EACCES where no cgroup2 with a freezer is mounted.
    pub fn make(path: &Path) -> Result<Self> {
        match rustix::fs::mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let watched = Watched::open(CWD, path)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let freeze = rustix::fs::openat(&watched.directory, "cgroup.freeze", flags, Mode::empty())?;
        Ok(Self { watched, freeze })
    }

    /// For starting a program in it.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.watched.directory.as_fd()
    }

    /// Has all processes stop, or go on. They stop one after another: [`Self::is_frozen`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn freeze(&self, on: bool) -> Result<()> {
        let word: &[u8] = if on { b"1" } else { b"0" };
        rustix::io::write(&self.freeze, word).map(drop)
    }

    /// Whether all stand still. When that changes, poll(2) reports POLLPRI for [`Self::events`]
    /// until it is read here.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_frozen(&self) -> Result<bool> {
        self.watched.says(b"frozen 1")
    }

    /// See [`Self::is_frozen`].
    #[must_use]
    pub fn events(&self) -> BorrowedFd<'_> {
        self.watched.events.as_fd()
    }
}

/// A cgroup whose directory and `cgroup.events` stay open: the kernel does more for closing such a
/// file than for reading it.
#[derive(Debug)]
struct Watched {
    directory: OwnedFd,
    events: OwnedFd,
}

impl Watched {
    fn open(parent: BorrowedFd<'_>, path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, path, flags, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events = rustix::fs::openat(&directory, "cgroup.events", flags, Mode::empty())?;
        Ok(Self { directory, events })
    }

    fn is_populated(&self) -> Result<bool> {
        self.says(b"populated 1")
    }

    /// Whether this is a line of `cgroup.events`.
    fn says(&self, wanted: &[u8]) -> Result<bool> {
        let mut text = [0; EVENTS_MAX_BYTES];
        let length = rustix::io::pread(&self.events, &mut text, 0)?;
        let text = text.get(..length).unwrap_or_default();
        Ok(text.split(|b| *b == b'\n').any(|line| line == wanted))
    }
}

/// The cgroups of hooks, below that of the guest's programs. As a rule there is one, made for the
/// first hook; a hook that leaves somebody behind in it has the next one be started in another.
#[derive(Debug, Default)]
pub struct HookCgroup {
    number: u32,
    last: Option<Watched>,
    /// Earlier ones that somebody was in.
    left: Vec<u32>,
}

impl HookCgroup {
    /// The directory of one that nobody is in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fresh(&mut self, parent: &Cgroup) -> Result<BorrowedFd<'_>> {
        let parent = parent.directory();
        self.left.retain(|number| rustix::fs::unlinkat(parent, name(*number), AtFlags::REMOVEDIR).is_err());
        let fresh = match self.last.take() {
            Some(last) if !last.is_populated()? => last,
            last => self.next(parent, last.is_some())?,
        };
        Ok(self.last.insert(fresh).directory.as_fd())
    }

    fn next(&mut self, parent: BorrowedFd<'_>, has_last: bool) -> Result<Watched> {
        if has_last {
            self.left.push(self.number);
        }
        if self.left.len() >= LEFT_MAX as usize {
            return Err(Errno::BUSY);
        }
        // An agent before this one may have left some.
        for _ in 0..LEFT_MAX {
            self.number += 1;
            let name = name(self.number);
            match rustix::fs::mkdirat(parent, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let next = Watched::open(parent, Path::new(&name))?;
            if !next.is_populated()? {
                return Ok(next);
            }
            self.left.push(self.number);
        }
        Err(Errno::BUSY)
    }
}

fn name(number: u32) -> String {
    format!("hook.{number}")
}
