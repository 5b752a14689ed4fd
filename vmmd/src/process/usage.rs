//! The host resources that a process uses.

use std::{fs, io};

/// Numbers of one process since its start, or of this moment. The kernel keeps them all, so reading
/// them costs the process nothing. How many pages are shared is not among them: only a walk through
/// all page tables shows it. For a large VM that takes seconds and holds a lock that the VM needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time that its threads ran, those for KVM guests included.
    pub cpu_us: u64,
    /// Anonymous memory, which no other process has.
    pub anonymous_kib: u64,
    /// Pages of memfds.
    pub memfd_kib: u64,
    /// Pages of files.
    pub file_kib: u64,
    /// Page faults without I/O.
    pub minor_faults: u64,
    /// Page faults with I/O.
    pub major_faults: u64,
}

/// Clock ticks a second in `/proc`, on every architecture that Linux has KVM for.
const TICK_US: u64 = 10_000;

impl Usage {
    /// Reads what `/proc` says of a process.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat"));
        let usage = times(&stat).ok_or_else(unreadable)?;
        let kib = |name| kib(&status, name);
        Ok(Self {
            anonymous_kib: kib("RssAnon:"),
            memfd_kib: kib("RssShmem:"),
            file_kib: kib("RssFile:"),
            ..usage
        })
    }

    /// Memory of a VM's own, KiB. Of a VM that has booted, until the first clone of its family
    /// (`is_uncloned`), all its RAM is, a memfd that nobody else has; from then on, and in a VM
    /// that started from a snapshot or an image, what is in memfds are generations.
    #[must_use]
    pub fn private_kib(&self, is_uncloned: bool) -> u64 {
        self.anonymous_kib + if is_uncloned { self.memfd_kib } else { 0 }
    }

    /// All other memory of a VM, KiB: of generations, which its family, or the VMs of its image,
    /// have in common, and of programs' files.
    #[must_use]
    pub fn shared_kib(&self, is_uncloned: bool) -> u64 {
        self.file_kib + if is_uncloned { 0 } else { self.memfd_kib }
    }
}

/// Fields 10, 12, 14 and 15 of `/proc/PID/stat`, proc(5): the name in field 2 may hold anything, so
/// counting begins after it.
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

fn kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::{fs::Uid, thread::set_thread_res_uid};

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
        assert!(usage.anonymous_kib > 0 && usage.file_kib > 0 && usage.minor_faults > 0, "{usage:?}");
        assert!(Usage::of(u32::MAX).is_err());
    }

    /// `smaps` and its like are for who may trace the process; the counters that the kernel keeps
    /// anyway are for everybody.
    #[test]
    fn usage_is_counted_without_reading_page_tables() {
        let nobody = Uid::from_raw(65534);
        if rustix::process::geteuid().is_root() {
            // Of this thread only.
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
        }
        assert!(fs::read("/proc/1/smaps_rollup").is_err());
        let init = Usage::of(1).unwrap();
        assert!(init.anonymous_kib > 0, "{init:?}");
    }

    #[test]
    fn ram_is_its_vms_own_until_the_first_clone() {
        let usage = Usage { anonymous_kib: 10, memfd_kib: 200, file_kib: 3, ..Usage::default() };
        assert_eq!((usage.private_kib(true), usage.shared_kib(true)), (210, 3));
        assert_eq!((usage.private_kib(false), usage.shared_kib(false)), (10, 203));
    }
}
