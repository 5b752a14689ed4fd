//! Whether the kernel's OOM killer ended a process. Only the kernel's log has this by pid.

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};
use std::{fs::File, io::Read};

/// Most records that are looked at: the log of a kernel holds fewer.
const RECORDS_MAX: usize = 200_000;
/// Longest record of the kernel's log, bytes.
const RECORD_MAX_BYTES: usize = 8192;

/// Whether process `pid`, which started so many microseconds after boot, was ended so. False also
/// where the log cannot be read.
pub fn has_killed(pid: u32, started_us: u64) -> bool {
    let Ok(fd) = open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) else {
        return false;
    };
    let (mut log, mut record) = (File::from(fd), [0; RECORD_MAX_BYTES]);
    for _ in 0..RECORDS_MAX {
        match log.read(&mut record) {
            Ok(0) => return false,
            Ok(length) => {
                if tells_of(&String::from_utf8_lossy(&record[..length]), pid, started_us) {
                    return true;
                }
            }
            // What was to be read next has been overwritten meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {}
            Err(_) => return false,
        }
    }
    false
}

/// A record is "priority,sequence,microseconds,flags[,…];text". A process with the same number may
/// have been killed before.
fn tells_of(record: &str, pid: u32, started_us: u64) -> bool {
    let Some((head, text)) = record.split_once(';') else { return false };
    let at_us = head.split(',').nth(2).and_then(|us| us.parse::<u64>().ok());
    let killed = text.split_once("Killed process ").and_then(|(before, after)| {
        let is_oom = before.to_ascii_lowercase().contains("out of memory");
        is_oom.then(|| after.split(|byte: char| !byte.is_ascii_digit()).next()).flatten()
    });
    at_us.is_some_and(|us| us >= started_us) && killed.is_some_and(|number| number == pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_whom_its_oom_killer_ended() {
        let host = "4,1234,5000000,-;Out of memory: Killed process 4711 (vmm) total-vm:1kB, anon-rss:1kB, UID:65534 pgtables:1kB oom_score_adj:500\n";
        let cgroup = "3,1235,5000000,-,caller=T1;Memory cgroup out of memory: Killed process 4711 (vmm) total-vm:1kB\n";
        for record in [host, cgroup] {
            assert!(tells_of(record, 4711, 5_000_000), "{record}");
            assert!(!tells_of(record, 471, 5_000_000), "another number");
            assert!(!tells_of(record, 4711, 5_000_001), "an earlier process with that number");
        }
        assert!(!tells_of("6,1,9000000,-;sysrq: Killed process 4711 (vmm)", 4711, 0));
        assert!(!tells_of("Out of memory: Killed process 4711 (vmm)", 4711, 0));
        assert!(!tells_of("", 4711, 0));
    }
}
