//! What the processes that serve guests share: `vmm` and `pager`. Both are started by `vmmd` with
//! descriptors by number, and give their privileges up before they serve anybody.
//!
//! - [`sys::inherit`]: takes over the descriptors. [`sys::rights`]: changes the user.
//! - [`enter`]: the jail. Each process lists the system calls that it needs.
//! - [`ioctl`]: how the kernel composes the number of an ioctl; [`userfaultfd`]: those of one kind.
//!
//! 1. If the process is root, it becomes user and group [`NOBODY`] and drops its supplementary
//!    groups.
//! 2. It sets no_new_privs, so no program that it might execute could gain privileges.
//! 3. A seccomp filter allows only the system calls that the process needs. Any other kills the
//!    process with SIGSYS. To open a file fails with EACCES. No program can be executed. Threads
//!    can be started. The filter cannot tell a fork from a thread, so it allows both, and it holds
//!    in the child as well.
//!
//! The filter holds for the calling thread and for threads that it starts later. So the process
//! enters the jail after everything has been made and before the first thread that stays is
//! started. Libraries that initialize themselves at their first use must do so before: see
//! [`prime`].

pub mod ioctl;
pub mod sys;
pub mod userfaultfd;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;
use std::hash::RandomState;
use std::hint::black_box;
use std::time::{Instant, SystemTime};
use sys::rights;

/// The user and group of a jailed process.
pub const NOBODY: u32 = 65_534;

/// Why the process could not enter the jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The kernel refused the change of user.
    #[error("enter the jail: become user {NOBODY}")]
    User(#[source] std::io::Error),
    /// The filter could not be made.
    #[error("enter the jail: make the system call filter")]
    Filter(#[source] seccompiler::BackendError),
    /// The kernel refused the filter.
    #[error("enter the jail: set the system call filter; the kernel needs CONFIG_SECCOMP_FILTER")]
    Apply(#[source] seccompiler::Error),
}

/// System calls that look up files by name. They fail with EACCES, and the process continues:
/// libraries use them only for hints, such as the number of CPUs, or the program's file for a
/// backtrace.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
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
    // The C library before 2.34 starts threads with the first of these.
    libc::SYS_clone,
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
    libc::SYS_getrusage,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// An ioctl that the filter allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ioctl {
    /// The one with this number.
    Number(u64),
    /// All whose number has this type byte.
    Type(u8),
}

/// Makes libraries do now what they do at their first use and the jail would forbid.
///
/// - rustix reads the auxiliary vector to find the kernel's clock: from `/proc/self/auxv` before
///   Linux 6.4.
/// - The C library and std bind functions of threads, clocks and random numbers when they are first
///   called.
///
/// # Errors
/// No thread can be started.
pub fn prime() -> std::io::Result<()> {
    let first_uses = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        black_box((now, Instant::now(), SystemTime::now(), RandomState::new()));
    };
    first_uses();
    // A thread ends before the jail is entered, so none is left outside.
    let thread = std::thread::Builder::new().name("prime".into()).spawn(first_uses)?;
    thread.join().map_err(|_| std::io::Error::other("a thread failed"))
}

/// Enters the jail, for good. From now on the process may make the system calls of `calls`, these
/// `ioctls`, and those that the C library makes for memory and threads.
///
/// # Errors
/// The kernel refuses a part. The process must not continue then.
pub fn enter(calls: &[&[libc::c_long]], ioctls: &[Ioctl]) -> Result<(), JailError> {
    if rustix::process::geteuid().is_root() {
        rights::become_user(NOBODY).map_err(JailError::User)?;
    }
    // Of two filters the stricter answer counts. Applying one sets no_new_privs as well.
    for filter in [refuse_files(), allow(calls, ioctls)] {
        seccompiler::apply_filter(&filter.map_err(JailError::Filter)?).map_err(JailError::Apply)?;
    }
    Ok(())
}

fn refuse_files() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let refuse = SeccompAction::Errno(libc::EACCES as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?.try_into()
}

fn allow(calls: &[&[libc::c_long]], ioctls: &[Ioctl]) -> Result<BpfProgram, seccompiler::BackendError> {
    let calls = calls.iter().chain([&REFUSED, &PROCESS]).copied().flatten();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls.map(|call| (*call, Vec::new())).collect();
    let ioctls: Result<_, _> = ioctls.iter().map(|ioctl| ioctl.rule()).collect();
    rules.insert(libc::SYS_ioctl, ioctls?);
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?
        .try_into()
}

impl Ioctl {
    fn rule(self) -> Result<SeccompRule, seccompiler::BackendError> {
        const TYPE: u64 = 0xff00;
        let (operation, value) = match self {
            Self::Number(number) => (SeccompCmpOp::Eq, number),
            Self::Type(byte) => (SeccompCmpOp::MaskedEq(TYPE), u64::from(byte) << 8),
        };
        SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, operation, value)?])
    }
}
