//! Sets a thread's time slice in Linux's EEVDF scheduler (6.12). sched_setattr(2) takes it as
//! `sched_runtime` of an ordinary thread.

use std::{io, mem::MaybeUninit, time::Duration};

// The kernel's struct without, and with, the clamps of utilization.
const _: () = assert!(matches!(size_of::<libc::sched_attr>(), 48 | 56));

/// Requests a time slice for the calling thread: 0.1 to 100 ms. A scheduler without such slices
/// ignores this.
///
/// # Errors
/// The kernel refuses.
pub fn set(slice: Duration) -> io::Result<()> {
    let mut attributes = get()?;
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads `size` bytes of attributes, which `get` has set; thread 0 is the
    // caller.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The attributes of the calling thread.
fn get() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attributes = MaybeUninit::<libc::sched_attr>::zeroed();
    // SAFETY: the kernel writes `size` bytes of attributes at most; thread 0 is the caller.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is made of numbers, and all zeros are such numbers.
    Ok(libc::sched_attr { size, ..unsafe { attributes.assume_init() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_taken_and_the_priority_stays() {
        let thread = std::thread::spawn(|| {
            let nice = rustix::process::nice(3).expect("nice");
            set(Duration::from_millis(50)).expect("a slice");
            let found = get().expect("attributes");
            (found.sched_policy, found.sched_nice - nice, found.sched_runtime)
        });
        let (policy, nice_changed, runtime) = thread.join().expect("a thread");
        assert_eq!((policy, nice_changed), (0, 0));
        // Before Linux 6.12 there is none.
        assert!([0, 50_000_000].contains(&runtime), "{runtime}");
    }
}
