//! How long a thread runs before others get their turn: the slice of Linux's EEVDF scheduler (6.12), which
//! sched_setattr(2) takes as `sched_runtime` of an ordinary thread.

use std::time::Duration;

/// `struct sched_attr` of `linux/sched/types.h`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    clamp_least: u32,
    clamp_most: u32,
}

/// Asks for slices of so long for the calling thread: 0.1 to 100 ms. A scheduler that has no such slices takes no notice.
///
/// # Errors
/// The kernel refuses.
pub fn set(slice: Duration) -> std::io::Result<()> {
    let size = size_of::<Attributes>() as u32;
    let mut attributes = Attributes { size, ..Attributes::default() };
    // SAFETY: the kernel writes `size` bytes of attributes at most; thread 0 is the caller.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got != 0 {
        return Err(std::io::Error::last_os_error());
    }
    attributes.size = size;
    attributes.runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads `size` bytes of attributes.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_taken_and_the_priority_stays() {
        let thread = std::thread::spawn(|| {
            let nice = rustix::process::nice(3).expect("nice");
            set(Duration::from_millis(50)).expect("a slice");
            let size = size_of::<Attributes>() as u32;
            let mut found = Attributes { size, ..Attributes::default() };
            // SAFETY: as in `set`.
            let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size, 0) };
            (got, found.policy, found.nice - nice, found.runtime)
        });
        let (got, policy, nice_changed, runtime) = thread.join().expect("a thread");
        assert_eq!((got, policy, nice_changed), (0, 0, 0));
        // Before Linux 6.12 there is none.
        assert!([0, 50_000_000].contains(&runtime), "{runtime}");
    }
}
