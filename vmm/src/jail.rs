//! Gives the process's rights away before the guest runs: what is left is what the open descriptors allow.
//!
//! 1. Where it is root, it becomes the user and group [`NOBODY`], without groups of its own.
//! 2. It can gain nothing by running another program (no_new_privs), and can run none:
//! 3. a seccomp filter leaves it the system calls that a running VM needs. Any other kills the process with
//!    SIGSYS, which `vmmd` records as the VM's end. No file can be opened (that is answered with EACCES), no socket made, no process started.
//!
//! The filter holds for the calling thread and for those that it starts afterwards; so the jail is entered after
//! everything has been made and before the first thread is started.

use crate::sys::rights;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;

/// The user and group of a jailed process.
pub const NOBODY: u32 = 65_534;

/// Why the rights could not be given away.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The kernel did not let it become another user.
    #[error("enter the jail: become user {NOBODY}")]
    User(#[source] std::io::Error),
    /// The filter could not be made.
    #[error("enter the jail: make the system call filter")]
    Filter(#[source] seccompiler::BackendError),
    /// The kernel did not take the filter.
    #[error("enter the jail: set the system call filter; does the kernel have CONFIG_SECCOMP_FILTER?")]
    Apply(#[source] seccompiler::Error),
}

/// Reading, writing and waiting on what is open.
const INPUT_OUTPUT: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_lseek,
    libc::SYS_ftruncate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_getrandom,
    libc::SYS_timerfd_settime,
    libc::SYS_memfd_create,
    libc::SYS_openat,
];
/// Unix sockets that are there already, and pairs.
const SOCKETS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_socketpair,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
];
/// Memory and threads, as the C library uses them.
const PROCESS: &[libc::c_long] = &[
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sched_getattr,
    libc::SYS_sched_setattr,
    libc::SYS_prctl,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Enters the jail. There is no way out.
///
/// # Errors
/// The kernel refuses a part; the process must not go on then.
pub fn enter() -> Result<(), JailError> {
    if rustix::process::geteuid().is_root() {
        rights::become_user(NOBODY).map_err(JailError::User)?;
    }
    // Of two filters the stricter answer counts. Applying one sets no_new_privs as well.
    for filter in [refuse_open(), allow()] {
        seccompiler::apply_filter(&filter.map_err(JailError::Filter)?).map_err(JailError::Apply)?;
    }
    Ok(())
}

/// The C library opens a file or two for advice (how many CPUs are there?) and does without: refused, not killed.
fn refuse_open() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = BTreeMap::from([(libc::SYS_openat, Vec::new())]);
    let refuse = SeccompAction::Errno(libc::EACCES as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?.try_into()
}

fn allow() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        [INPUT_OUTPUT, SOCKETS, PROCESS].into_iter().flatten().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_ioctl, ioctls()?);
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?
        .try_into()
}

/// KVM's own, by the type byte in their number; a tap's offloads; looking at and tracking one's own pages; non-blocking.
fn ioctls() -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    const TYPE: u64 = 0xff00;
    const KVM: u64 = 0xae00;
    const TUNSETOFFLOAD: u64 = 0x4004_54d0;
    const PAGEMAP_SCAN: u64 = crate::sys::pagemap::PAGEMAP_SCAN;
    const UFFDIO_REGISTER: u64 = crate::sys::pagemap::UFFDIO_REGISTER;
    const UFFDIO_UNREGISTER: u64 = crate::sys::pagemap::UFFDIO_UNREGISTER;
    let number = |operation, value| {
        SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, operation, value)?])
    };
    Ok(vec![
        number(SeccompCmpOp::MaskedEq(TYPE), KVM)?,
        number(SeccompCmpOp::Eq, TUNSETOFFLOAD)?,
        number(SeccompCmpOp::Eq, PAGEMAP_SCAN)?,
        number(SeccompCmpOp::Eq, UFFDIO_REGISTER)?,
        number(SeccompCmpOp::Eq, UFFDIO_UNREGISTER)?,
        number(SeccompCmpOp::Eq, libc::FIONBIO)?,
    ])
}
