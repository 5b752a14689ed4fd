//! The memory of a `vmm` process beyond its guest's RAM, from `/proc/PID/smaps`.

/// Guest RAM is the memfd of this name.
const RAM: &str = "/memfd:patina-ram";

/// The process's share of memory (Pss: shared pages count by their share) over all mappings but guest RAM, KiB.
/// `None` when no mapping of guest RAM is seen: then what was read is not a `vmm`.
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
    fn a_process_without_guest_memory_is_no_vmm() {
        assert_eq!(overhead_kib("5600-5700 r-xp 0 fe:00 1 /bin/sh\nPss: 5 kB\n"), None);
    }
}
