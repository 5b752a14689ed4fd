//! Tells whether a process belongs to a hook: whether it is the hook, or a descendant of it.
//!
//! A hook starts in a cgroup of its own, and its descendants stay there unless they move on
//! purpose. If the kernel has no cgroups, the parent processes and the process group are examined
//! instead.

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Pid;
use std::fmt::Write as _;

/// Longest file of `/proc/PID` that is read, bytes.
const FILE_MAX_BYTES: usize = 4096;
/// How far up the ancestors are followed.
const GENERATIONS_MAX: usize = 64;

/// Whether `process` is of the hook that `hook` leads; `in_own_cgroup`: nobody but that hook was
/// started in its cgroup.
#[must_use]
pub fn is_of(hook: Pid, process: Pid, in_own_cgroup: bool) -> bool {
    process == hook || (in_own_cgroup && shares_cgroup(hook, process)) || descends(hook, process)
}

fn shares_cgroup(hook: Pid, process: Pid) -> bool {
    let (Some(own), Some(other)) = (cgroup(hook), cgroup(process)) else { return false };
    // Or one that it made below its own.
    other.strip_prefix(own.as_str()).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// Its path in the cgroup2 tree; none for the root, in which everybody is.
fn cgroup(process: Pid) -> Option<String> {
    let text = read(process, "cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    (path != "/").then(|| path.to_owned())
}

fn descends(hook: Pid, process: Pid) -> bool {
    let mut next = Some(process);
    for _ in 0..GENERATIONS_MAX {
        let Some((parent, group)) = next.and_then(parent_and_group) else { return false };
        if parent == Some(hook) || group == Some(hook) {
            return true;
        }
        next = parent;
    }
    false
}

fn parent_and_group(process: Pid) -> Option<(Option<Pid>, Option<Pid>)> {
    let text = read(process, "stat")?;
    // The name, in brackets, may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields =
        rest.split_ascii_whitespace().skip(1).map(|field| field.parse().ok().and_then(Pid::from_raw));
    Some((fields.next()?, fields.next()?))
}

fn read(process: Pid, file: &str) -> Option<String> {
    let mut path = String::new();
    write!(path, "/proc/{}/{file}", process.as_raw_nonzero()).ok()?;
    let file = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = vec![0; FILE_MAX_BYTES];
    let length = rustix::io::read(&file, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn descendants_are_of_a_hook_and_others_are_not() {
        let script = "setsid sh -c 'echo $$; read x'; exit";
        let mut hook = Command::new("sh");
        hook.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut hook = hook.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(hook.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let grandchild = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let leader = Pid::from_child(&hook);
        assert!(is_of(leader, leader, false) && is_of(leader, grandchild, false));
        assert!(!is_of(grandchild, leader, false));
        assert!(!is_of(leader, rustix::process::getpid(), false) && !is_of(leader, Pid::INIT, false));
        drop(hook.stdin.take());
        hook.wait().unwrap();
        assert!(!is_of(leader, grandchild, false), "there is no such process");
    }
}
