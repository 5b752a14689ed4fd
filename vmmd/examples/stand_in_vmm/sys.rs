//! The edge to the kernel.
#![allow(unsafe_code, reason = "the edge to the kernel; each block names its invariant")]

use std::os::fd::{FromRawFd, RawFd};

/// What this process was started with, and takes once.
pub fn taken<T: FromRawFd>(fd: RawFd) -> T {
    // SAFETY: the descriptor was inherited for this process, which takes each only once.
    unsafe { T::from_raw_fd(fd) }
}

/// Makes a system call that a filter of its own does not allow, as a jailed vmm may: the kernel
/// kills the process with SIGSYS.
pub fn do_what_is_forbidden() -> ! {
    let mut kill = libc::sock_filter {
        code: u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap(),
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_KILL_PROCESS,
    };
    let program = libc::sock_fprog { len: 1, filter: &raw mut kill };
    patina_daemon::say!("about to make a system call that is not allowed");
    // SAFETY: the kernel copies the program of one instruction, which is live; from then on it
    // allows no system call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        libc::getppid();
    }
    unreachable!("the filter allows no system call")
}
