//! The heap's settings.

/// Keeps freed memory in the process: a page given back to the kernel costs a page fault when it is
/// wanted again, and everything the agent holds has a limit anyway.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (option, value_bytes) in [(libc::M_TRIM_THRESHOLD, i32::MAX), (libc::M_MMAP_THRESHOLD, 1 << 20)] {
        // SAFETY: mallopt takes two integers and touches only malloc's own state; it runs before
        // any thread. It returns 0 for an option it does not know, which costs speed, not
        // correctness.
        unsafe { libc::mallopt(option, value_bytes) };
    }
}
