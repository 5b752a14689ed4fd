//! What a process takes of the host.

use std::{fs, io};

/// Numbers of one process since its start, or of this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time that its threads ran, those for KVM guests included.
    pub cpu_us: u64,
    /// Memory that no other process shares.
    pub private_kib: u64,
    /// Memory that others share with it.
    pub shared_kib: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
}

/// Clock ticks a second in `/proc`, on every architecture that Linux has KVM for.
const TICK_US: u64 = 10_000;

impl Usage {
    /// As [`Self::of`], but memory by its kind: anonymous pages as private ones, pages of files (a memfd's among them) as shared ones. The
    /// kernel keeps these counts; who shares what it would find out by a walk through all page tables, seconds for a large VM, with a
    /// lock held that the VM needs.
    ///
    /// # Errors
    /// It is gone.
    pub fn counted(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat"));
        let usage = times(&stat).ok_or_else(unreadable)?;
        let kib = |name| kib(&status, name);
        Ok(Self { private_kib: kib("RssAnon:"), shared_kib: kib("RssShmem:") + kib("RssFile:"), ..usage })
    }

    /// Reads what `/proc` says of a process.
    ///
    /// # Errors
    /// It is gone, or another user's.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat"));
        let usage = times(&stat).ok_or_else(unreadable)?;
        let kib = |name| kib(&smaps, name);
        Ok(Self {
            private_kib: kib("Private_Clean:") + kib("Private_Dirty:"),
            shared_kib: kib("Shared_Clean:") + kib("Shared_Dirty:"),
            ..usage
        })
    }
}

/// Fields 10, 12, 14 and 15 of `/proc/PID/stat`, proc(5): the name in field 2 may hold anything, so counting begins after it.
fn times(stat: &str) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Usage {
        minor_faults: field(10)?,
        major_faults: field(12)?,
        cpu_us: field(14)?.saturating_add(field(15)?).saturating_mul(TICK_US),
        ..Usage::default()
    })
}

fn kib(smaps: &str, name: &str) -> u64 {
    let line = smaps.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_after_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 101 102 103 104 105 106 0 0 20 0 1 0 5";
        let usage = times(stat).unwrap();
        assert_eq!((usage.minor_faults, usage.major_faults, usage.cpu_us), (101, 103, 2_110_000));
        assert_eq!(times("7 (x) S 1"), None);
    }

    #[test]
    fn this_process_takes_something_and_no_process_nothing() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.private_kib > 0 && usage.minor_faults > 0, "{usage:?}");
        assert!(Usage::of(u32::MAX).is_err());
        let counted = Usage::counted(std::process::id()).unwrap();
        assert!(counted.private_kib > 0 && counted.shared_kib > 0, "{counted:?}");
        assert!(Usage::counted(u32::MAX).is_err());
    }
}
