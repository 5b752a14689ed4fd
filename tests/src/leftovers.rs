//! Processes and network interfaces that did not exist before.

use rustix::{
    net::{AddressFamily, SocketType, netdevice, socket},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use std::{
    collections::BTreeSet,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::Arc,
    thread,
};

/// What is there of Patina at one moment: `vmm`, `vmmd` and `pager` processes, bridges and taps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// What is there now.
    ///
    /// # Errors
    /// `/proc` or `/sys` cannot be read.
    pub fn take() -> io::Result<Self> {
        let mut found = BTreeSet::new();
        for pid in pids()? {
            // A process may end while we look at it: no comm, nothing left behind.
            if let Ok(comm) = fs::read_to_string(format!("/proc/{pid}/comm"))
                && matches!(comm.trim_end(), "vmm" | "vmmd" | "pager")
                && !is_dead(pid)
            {
                found.insert(format!("process {} ({pid})", comm.trim_end()));
            }
        }
        for entry in fs::read_dir("/sys/class/net")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.starts_with("pt") {
                found.insert(format!("network interface {name}"));
            }
        }
        Ok(Self(found))
    }

    /// What is here and was not in `before`, one description each.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Processes that belong to a folder: it is in their environment or on their command line.
///
/// # Errors
/// `/proc` cannot be read.
pub fn processes_of(folder: &Path) -> io::Result<Vec<String>> {
    Ok(pids_of(folder)?.into_iter().map(|pid| format!("process {} ({pid})", name_of(pid))).collect())
}

/// A process's name; nothing where it is gone.
pub(crate) fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The pids of [`processes_of`].
pub(crate) fn pids_of(folder: &Path) -> io::Result<Vec<u32>> {
    let folder = folder.as_os_str().as_bytes();
    // A process may end while we look at it, and those of other users are none of ours.
    let mentions = |pid: u32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(folder.len()).any(|window| window == folder)
    };
    let belongs = |pid: &u32| {
        *pid != std::process::id()
            && !is_dead(*pid)
            && (mentions(*pid, "environ") || mentions(*pid, "cmdline"))
    };
    Ok(pids()?.into_iter().filter(belongs).collect())
}

/// Whether there is a network interface of that name.
#[must_use]
pub fn interface_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

/// A network namespace. It lives on while this does, also without processes.
#[derive(Debug, Clone)]
pub(crate) struct Network(Arc<OwnedFd>);

impl Network {
    /// The namespace of a process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
        // A socket belongs to the namespace in which it is made. Only a thread of its own enters
        // that namespace, and ends there.
        let enter = move || -> io::Result<OwnedFd> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
        };
        let made = thread::spawn(enter).join();
        made.unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))).map(Arc::new).map(Self)
    }

    /// The interface that has this name now.
    pub fn interface(&self, name: &str) -> Option<Interface> {
        let index = netdevice::name_to_index(&self.0, name).ok()?;
        Some(Interface { name: name.to_owned(), index, network: self.clone() })
    }
}

/// A network interface of a namespace. Others may have its name, there later and elsewhere at the
/// same time, so that the name alone says nothing.
#[derive(Debug)]
pub(crate) struct Interface {
    pub name: String,
    index: u32,
    network: Network,
}

impl Interface {
    pub fn is_there(&self) -> bool {
        // The kernel counts indexes up in a namespace, and does not give one again soon.
        netdevice::index_to_name(&self.network.0, self.index).is_ok()
    }
}

fn pids() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?;
    let pid = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).transpose()
    };
    entries.filter_map(pid).collect()
}

/// Whether a process of this group other than `keeper` has not ended. Those that only wait to be
/// reaped do not count, however long the first process of a container takes to do so.
///
/// # Errors
/// `/proc` cannot be read.
pub fn group_lives(group: u32, keeper: Option<u32>) -> io::Result<bool> {
    let lives =
        |pid: u32| state_and_group_of(pid).is_some_and(|(state, of)| !DEAD.contains(&state) && of == group);
    Ok(pids()?.into_iter().any(|pid| Some(pid) != keeper && lives(pid)))
}

/// States of a process that has ended.
const DEAD: [char; 2] = ['Z', 'X'];

/// Whether `pid` has ended and only waits to be reaped.
fn is_dead(pid: u32) -> bool {
    state_and_group_of(pid).is_some_and(|(state, _)| DEAD.contains(&state))
}

fn state_and_group_of(pid: u32) -> Option<(char, u32)> {
    state_and_group(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3 and 5 of `/proc/PID/stat`; the name in field 2 may hold anything, so counting begins
/// after it.
fn state_and_group(stat: &str) -> Option<(char, u32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write as _},
        process::{Command, Stdio},
    };

    #[test]
    fn processes_are_found_by_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("cat")
            .env("SOMETHING", folder.path().join("below"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // What it says back shows that it runs: just after the start its environment is not in
        // place yet.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(processes_of(folder.path()).unwrap(), [format!("process cat ({})", child.id())]);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(processes_of(folder.path()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_interface_is_found_in_its_own_namespace_only() {
        let ours = Network::of(std::process::id()).unwrap();
        let loopback = ours.interface("lo").unwrap();
        assert!(loopback.is_there() && loopback.name == "lo");
        assert!(ours.interface("no-such-name").is_none());
        let gone = Interface { name: "lo".to_owned(), index: i32::MAX as u32, network: ours };
        assert!(!gone.is_there());
    }

    #[test]
    fn a_group_lives_until_its_processes_have_ended_reaped_or_not() {
        use std::os::unix::process::CommandExt as _;
        let mut child =
            Command::new("cat").process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        assert!(group_lives(child.id(), None).unwrap());
        assert!(!group_lives(child.id(), Some(child.id())).unwrap());
        let pidfd = crate::process::pidfd(child.id()).unwrap();
        drop(child.stdin.take());
        assert!(crate::process::ended(&pidfd, std::time::Duration::from_secs(10)).unwrap());
        assert!(is_dead(child.id()) && !group_lives(child.id(), None).unwrap());
        child.wait().unwrap();
        assert_eq!(state_and_group("7 (a) b) S 1 6 7 0"), Some(('S', 6)));
        assert_eq!(state_and_group("7 (a"), None);
    }

    #[test]
    fn only_what_is_new_is_left_over() {
        let before = Snapshot(BTreeSet::from(["process vmmd (7)".to_owned()]));
        let after = Snapshot(BTreeSet::from(["process vmmd (7)".to_owned(), "process vmm (9)".to_owned()]));
        assert_eq!(after.since(&before), ["process vmm (9)"]);
        assert_eq!(before.since(&after), Vec::<String>::new());
    }
}
