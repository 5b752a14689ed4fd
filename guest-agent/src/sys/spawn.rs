//! Starts a program. The child runs in the parent's memory, and the parent waits until the child
//! has called exec, so nothing is copied. posix_spawn works in the same way, but makes 120 calls of
//! sigaction for signals that nothing here handles (36 ms in a guest with an emulated kernel), and
//! does not return the process's descriptor. The child starts in its target cgroup: moving it there
//! later would wait for a grace period of the kernel.

use rustix::process::{Pid, WaitOptions};
use std::arch::asm;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// The child's stack until it has executed: it calls a few functions of libc that need hundreds of
/// bytes.
const STACK_BYTES: usize = 16 * 1024;
/// Signals that the parent or its parent may ignore, which would pass on to the program: Rust's own
/// start-up ignores the first, a shell the others for what it starts in the background.
const DEFAULTED: [c_int; 3] = [libc::SIGPIPE, libc::SIGINT, libc::SIGQUIT];

/// The program's standard input, output and error.
#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// The caller's.
    Inherit,
    /// These three, whose numbers are above 2.
    Fds([BorrowedFd<'a>; 3]),
    /// A terminal's path: it becomes the controlling terminal of a new session.
    Terminal(&'a CStr),
}

/// What to start. It gets a process group of its own, no blocked signals, and default actions for
/// SIGPIPE, SIGINT and SIGQUIT.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program's path; there is no search.
    pub path: &'a CStr,
    /// With the program's name as the first.
    pub argv: &'a [CString],
    /// `KEY=VALUE`.
    pub envp: &'a [CString],
    /// Its working directory, when not the caller's.
    pub cwd: Option<BorrowedFd<'a>>,
    /// Its first three descriptors. All others must be close-on-exec.
    pub stdio: Stdio<'a>,
    /// The directory of its cgroup, when not the caller's. It must not be frozen: the caller would
    /// wait with the child.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it keeps the caller's protection from the kernel's OOM killer ([`protect`]).
    pub is_protected: bool,
}

/// How the kernel's OOM killer chooses a process: 0 as any other, -1000 never.
const OOM_SCORE: &CStr = c"/proc/self/oom_score_adj";

/// The kernel never kills this process to have memory.
///
/// # Errors
/// The kernel's: it has no such file, or the process may not.
pub fn protect() -> io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::open(OOM_SCORE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, b"-1000")?;
    Ok(())
}

/// For clone_args: `cgroup` is a descriptor of the child's cgroup.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const _: () = assert!(size_of::<libc::clone_args>() == 88);

/// What the child reads of its parent's memory, and where it leaves why it failed.
struct Plan<'a> {
    what: &'a Spawn<'a>,
    argv: *const *const c_char,
    envp: *const *const c_char,
    error: AtomicI32,
}

/// A C array of the strings' addresses, ended by a null; valid while `strings` is.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Plan<'_> {
    /// In the child: becomes the program, or says why not. It shares all memory with its parent, so
    /// it allocates nothing and holds no lock.
    fn execute(&self) -> io::Result<()> {
        // SAFETY: all are system calls on integers, C strings and initialised structures that the
        // plan or this function holds; argv and envp are arrays of C strings that end with a null.
        unsafe {
            match self.what.stdio {
                Stdio::Inherit => check(libc::setpgid(0, 0)).map(drop)?,
                Stdio::Fds(fds) => {
                    check(libc::setpgid(0, 0))?;
                    for (to, from) in (0..).zip(fds) {
                        check(libc::dup2(from.as_raw_fd(), to))?;
                    }
                }
                // A session leader without a terminal that opens one has it as its controlling
                // terminal.
                Stdio::Terminal(path) => {
                    check(libc::setsid())?;
                    let terminal = check(libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC))?;
                    for to in 0..3 {
                        check(libc::dup2(terminal, to))?;
                    }
                }
            }
            if let Some(directory) = self.what.cwd {
                check(libc::fchdir(directory.as_raw_fd()))?;
            }
            if !self.what.is_protected {
                // One that cannot give it up keeps it.
                let file = libc::open(OOM_SCORE.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if file >= 0 {
                    libc::write(file, c"0".as_ptr().cast(), 1);
                }
            }
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            for signal in DEFAULTED {
                check(libc::sigaction(signal, &raw const action, ptr::null_mut()))?;
            }
            let none: libc::sigset_t = std::mem::zeroed();
            check(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()))?;
            check(libc::execve(self.what.path.as_ptr(), self.argv, self.envp)).map(drop)
        }
    }
}

extern "C" fn child(plan: *const c_void) -> ! {
    // SAFETY: `spawn` passes a plan, which lives until this process has executed or ended.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    if let Err(error) = plan.execute() {
        plan.error.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
    }
    // SAFETY: ends this process without running what its parent has registered for its own end.
    unsafe { libc::_exit(127) }
}

/// clone3(2): the child calls [`child`] with `plan` on its own stack. glibc has no function for it.
///
/// # Safety
/// `args` has a stack, CLONE_VM and CLONE_VFORK, and its addresses are valid; `plan` is a
/// [`Plan`]'s.
unsafe fn clone3(args: &libc::clone_args, plan: *const c_void) -> io::Result<c_int> {
    let result: isize;
    // SAFETY: in the parent the kernel changes rax, rcx, r11 and the memory of the descriptor that
    // `args` points to. The child has the registers of its parent and a stack of its own, aligned
    // to 16 bytes as a call wants it; `child` does not return. The parent's stack is not touched.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") plan,
            in("r13") child as extern "C" fn(*const c_void) -> !,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    let result = c_int::try_from(result).map_err(io::Error::other)?;
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

/// Starts a program; the caller reaps it. The second value is its descriptor, readable when it has
/// ended.
///
/// The calling process must have no signal handler that uses its memory: until it has executed, the
/// child would run it there.
///
/// # Errors
/// What the kernel said to any step in the child up to and including the exec.
pub fn spawn(what: &Spawn<'_>) -> io::Result<(Pid, OwnedFd)> {
    let (argv, envp) = (pointers(what.argv), pointers(what.envp));
    let plan = Plan { what, argv: argv.as_ptr(), envp: envp.as_ptr(), error: AtomicI32::new(0) };
    // 16-byte elements: the stack's top is aligned as the ABI wants it.
    let mut stack: Vec<u128> = Vec::with_capacity(STACK_BYTES / size_of::<u128>());
    let room = stack.spare_capacity_mut();
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is integers only, for which all bits zero is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64;
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = room.as_mut_ptr().expose_provenance() as u64;
    args.stack_size = size_of_val(room) as u64;
    if let Some(cgroup) = what.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: with CLONE_VFORK this thread waits until the child has executed or ended, so stack
    // and plan, which the child uses, outlive its use, and nobody changes what it reads.
    // CLONE_PIDFD writes a descriptor to `pidfd`.
    let pid = unsafe { clone3(&args, (&raw const plan).cast()) }?;
    // SAFETY: the kernel made the descriptor for us as the clone succeeded, and nobody else has it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("clone returned no process"))?;
    match plan.error.load(Ordering::Relaxed) {
        0 => Ok((pid, pidfd)),
        code => {
            rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
            Err(io::Error::from_raw_os_error(code))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::waitpid;

    fn strings(all: &[&str]) -> Vec<CString> {
        all.iter().map(|s| CString::new(*s).unwrap()).collect()
    }

    fn run(path: &CStr, argv: &[&str]) -> io::Result<Option<i32>> {
        let (argv, envp) = (strings(argv), strings(&["PATH=/usr/bin:/bin"]));
        let (cwd, stdio, cgroup) = (None, Stdio::Inherit, None);
        let what = Spawn { path, argv: &argv, envp: &envp, cwd, stdio, cgroup, is_protected: false };
        let (pid, _) = spawn(&what)?;
        Ok(waitpid(Some(pid), WaitOptions::empty())?.and_then(|(_, status)| status.exit_status()))
    }

    #[test]
    fn a_program_runs_and_a_failed_exec_is_reported_and_reaped() {
        assert_eq!(run(c"/bin/sh", &["sh", "-c", "exit 3"]).unwrap(), Some(3));
        let error = run(c"/no/such", &["x"]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = run(c"/", &["x"]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    #[ignore = "changes the process that it runs in: run by a_program_does_not_inherit_the_protection_of_its_starter"]
    fn a_program_does_not_inherit_it_inside() {
        // Any value is as good as that of `protect`, and everybody may have this one.
        std::fs::write("/proc/self/oom_score_adj", "500").unwrap();
        let script = |wanted| format!("test $(cat /proc/self/oom_score_adj) = {wanted}");
        assert_eq!(run(c"/bin/sh", &["sh", "-c", &script(0)]).unwrap(), Some(0));
        let (argv, stdio) = (strings(&["sh", "-c", &script(500)]), Stdio::Inherit);
        let envp = strings(&["PATH=/usr/bin:/bin"]);
        let (path, cwd, cgroup) = (c"/bin/sh", None, None);
        let what = Spawn { path, argv: &argv, envp: &envp, cwd, stdio, cgroup, is_protected: true };
        let (pid, _) = spawn(&what).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0), "one that is to keep it");
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        assert_eq!(own.trim(), "500", "what a child gives up is the child's");
    }

    #[test]
    fn a_program_does_not_inherit_the_protection_of_its_starter() {
        let test = "sys::spawn::tests::a_program_does_not_inherit_it_inside";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", "--ignored", test, "--nocapture"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    fn a_program_has_no_blocked_and_no_ignored_signal() {
        // SIGINT, SIGQUIT and SIGPIPE in the mask of ignored ones.
        let script = "set -- $(grep -E '^Sig(Blk|Ign)' /proc/self/status); \
            test $((0x$2)) = 0 && test $((0x$4 & 0x1006)) = 0";
        // Rust's test harness ignores SIGPIPE; a blocked signal is added on this thread only.
        crate::sys::signals::block(&[libc::SIGUSR1]).unwrap();
        assert_eq!(run(c"/bin/sh", &["sh", "-c", script]).unwrap(), Some(0));
    }
}
