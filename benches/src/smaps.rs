//! The memory of a process, as the kernel counts it: a `vmm`'s memory beyond its guest's RAM, and
//! the private memory of a process.

use std::{fs, io};

/// Guest RAM is the memfd of this name.
const RAM: &str = "/memfd:patina-ram";

/// The process's share of memory (Pss: shared pages count by their share) over all mappings but
/// guest RAM, KiB. `None` when no mapping of guest RAM is seen: then what was read is not a `vmm`.
pub fn overhead_kib(smaps: &str) -> Option<u64> {
    let (mut sum_kib, mut in_ram, mut seen_ram) = (0, false, false);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            in_ram = line.contains(RAM);
            seen_ram |= in_ram;
        } else if first == "Pss:" && !in_ram {
            sum_kib += line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
        }
    }
    seen_ram.then_some(sum_kib)
}

/// A process's memory cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SmapsError {
    /// The kernel does not show it.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not what was expected there.
    #[error("{0} does not list private memory")]
    Form(String),
}

/// Memory that the process shares with no other, KiB.
pub fn private_kib(pid: u32) -> Result<f64, SmapsError> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|source| SmapsError::Read { path: path.clone(), source })?;
    sum_private_kib(&text).map(|kib| kib as f64).ok_or(SmapsError::Form(path))
}

fn sum_private_kib(rollup: &str) -> Option<u64> {
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    let values: Option<Vec<u64>> = lines.map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
5600-5700 r-xp 00000000 fe:00 1 /usr/bin/vmm
Size:               1024 kB
Pss:                 512 kB
Pss_Dirty:           100 kB
7f00-8f00 rw-s 00000000 00:01 2 /memfd:patina-ram (deleted)
Pss:              131072 kB
Pss_Dirty:        131072 kB
7fff-8000 rw-p 00000000 00:00 0 [stack]
Pss:                  12 kB
VmFlags: rd wr mr
";

    #[test]
    fn guest_memory_does_not_count() {
        assert_eq!(overhead_kib(SMAPS), Some(524));
    }

    #[test]
    fn private_memory_is_clean_dirty_and_huge() {
        let rollup = "5600-7fff ---p 0 00:00 0 [rollup]\nRss: 900 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 100 kB\n\
            Private_Hugetlb: 2048 kB\n";
        assert_eq!(sum_private_kib(rollup), Some(2152));
        assert_eq!(sum_private_kib("Rss: 900 kB\n"), None);
        assert!(private_kib(std::process::id()).unwrap() > 0.0);
    }

    #[test]
    fn a_process_without_guest_memory_is_no_vmm() {
        assert_eq!(overhead_kib("5600-5700 r-xp 0 fe:00 1 /bin/sh\nPss: 5 kB\n"), None);
    }
}
