//! Counts the page faults of this process.

use std::mem::MaybeUninit;

/// The number of page faults of all threads since the start of the process, including those of KVM
/// for the guest. The first write to a page since it was write-protected causes one, with two rare
/// exceptions: a page that a kernel thread has swapped in for KVM, and a page that the kernel has
/// moved meanwhile. `None`: the number cannot be read.
#[must_use]
pub fn count() -> Option<u64> {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one `rusage`.
    let done = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: any bytes are valid in a `rusage`, zeros too.
    let usage = (done == 0).then(|| unsafe { usage.assume_init() })?;
    [usage.ru_minflt, usage.ru_majflt].into_iter().map(|count| u64::try_from(count).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_control::PAGE_BYTES;

    #[test]
    fn every_page_that_is_written_for_the_first_time_counts() {
        const PAGES: u64 = 300;
        let memory = crate::memory::reserve(PAGES * PAGE_BYTES).expect("address space");
        let file = crate::memory::layers::new_layer(PAGES * PAGE_BYTES).expect("a memfd");
        let layers = crate::memory::layers::Layers::whole(file, PAGES * PAGE_BYTES);
        layers.map_over(&memory).expect("a view");
        let before = count().expect("a count");
        for page in 0..PAGES {
            use vm_memory::Bytes;
            memory.write_obj(1u8, vm_memory::GuestAddress(page * PAGE_BYTES)).expect("a write");
        }
        assert!(count().expect("a count") - before >= PAGES);
    }
}
