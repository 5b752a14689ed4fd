//! Processes and network interfaces that were not there before.

use std::{collections::BTreeSet, fs, io};

/// What is there of Patina at one moment: `vmm` and `vmmd` processes, bridges and taps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// What is there now.
    ///
    /// # Errors
    /// `/proc` or `/sys` cannot be read.
    pub fn take() -> io::Result<Self> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // A process may end while we look at it: no comm, nothing left behind.
            if let Ok(comm) = fs::read_to_string(entry.path().join("comm"))
                && matches!(comm.trim_end(), "vmm" | "vmmd")
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

/// Whether `pid` has ended and only waits to be reaped.
fn is_dead(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_left_over() {
        let before = Snapshot(BTreeSet::from(["process vmmd (7)".to_owned()]));
        let after = Snapshot(BTreeSet::from(["process vmmd (7)".to_owned(), "process vmm (9)".to_owned()]));
        assert_eq!(after.since(&before), ["process vmm (9)"]);
        assert_eq!(before.since(&after), Vec::<String>::new());
    }
}
