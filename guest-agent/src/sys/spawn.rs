//! posix_spawn: the cheapest way to start a program (glibc shares the memory with the child until it
//! has executed, so nothing is copied), with a terminal or three descriptors.

use rustix::process::Pid;
use std::ffi::{CStr, CString, c_char, c_int, c_short};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// The program's standard input, output and error.
#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// The caller's.
    Inherit,
    /// These three.
    Fds([BorrowedFd<'a>; 3]),
    /// A terminal's path: it becomes the controlling terminal of a new session.
    Terminal(&'a CStr),
}

/// What to start. It gets a process group of its own, no blocked signals, and default signal actions
/// where Rust programs ignore one (SIGPIPE).
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
}

fn check(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// What the child does to its descriptors, in order.
struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init writes the whole object or returns an error.
        unsafe {
            check(libc::posix_spawn_file_actions_init(raw.as_mut_ptr()))?;
            Ok(Self(raw.assume_init()))
        }
    }

    fn open(&mut self, fd: c_int, path: &CStr) -> io::Result<()> {
        // SAFETY: `self.0` is initialised; libc copies the path.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(&raw mut self.0, fd, path.as_ptr(), libc::O_RDWR, 0)
        })
    }

    fn dup2(&mut self, from: c_int, to: c_int) -> io::Result<()> {
        // SAFETY: `self.0` is initialised; a bad descriptor is an error in the child, which is reported.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from, to) })
    }

    fn fchdir(&mut self, directory: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: as for dup2.
        check(unsafe { libc::posix_spawn_file_actions_addfchdir_np(&raw mut self.0, directory.as_raw_fd()) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: `self.0` is initialised and goes away; for a valid object the call cannot fail.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new(own_session: bool) -> io::Result<Self> {
        let group: c_int =
            if own_session { libc::POSIX_SPAWN_SETSID.into() } else { libc::POSIX_SPAWN_SETPGROUP };
        let flags = group | libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        let flags = c_short::try_from(flags).map_err(io::Error::other)?;
        let mut raw = MaybeUninit::uninit();
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        let mut defaulted = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: each init call writes its whole object before that is used; the attribute object is owned
        // by `this`, whose drop frees it, as soon as it is initialised. A process group of 0, the initial
        // value, means a new one.
        unsafe {
            check(libc::posix_spawnattr_init(raw.as_mut_ptr()))?;
            let mut this = Self(raw.assume_init());
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigemptyset(defaulted.as_mut_ptr());
            libc::sigaddset(defaulted.as_mut_ptr(), libc::SIGPIPE);
            check(libc::posix_spawnattr_setsigmask(&raw mut this.0, none.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(&raw mut this.0, defaulted.as_ptr()))?;
            check(libc::posix_spawnattr_setflags(&raw mut this.0, flags))?;
            Ok(this)
        }
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: `self.0` is initialised and goes away; for a valid object the call cannot fail.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

/// A C array of the strings' addresses, ended by a null; valid while `strings` is.
fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    strings.iter().map(|s| s.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

/// Starts a program; the caller reaps it.
///
/// # Errors
/// What the kernel said to any step in the child up to and including the exec.
pub fn spawn(what: &Spawn<'_>) -> io::Result<Pid> {
    let mut actions = Actions::new()?;
    match what.stdio {
        Stdio::Inherit => {}
        Stdio::Fds(fds) => {
            for (to, from) in (0..).zip(fds) {
                actions.dup2(from.as_raw_fd(), to)?;
            }
        }
        // posix_spawn makes the session first, and a session leader without a terminal that opens one
        // has it as its controlling terminal.
        Stdio::Terminal(path) => {
            actions.open(0, path)?;
            actions.dup2(0, 1)?;
            actions.dup2(0, 2)?;
        }
    }
    if let Some(directory) = what.cwd {
        actions.fchdir(directory)?;
    }
    let attributes = Attributes::new(matches!(what.stdio, Stdio::Terminal(_)))?;
    let (argv, envp) = (pointers(what.argv), pointers(what.envp));
    let mut pid = 0;
    // SAFETY: path, actions and attributes are initialised objects that outlive the call; argv and envp are
    // arrays of C strings that end with a null and outlive it too, and libc does not write through them.
    check(unsafe {
        libc::posix_spawn(
            &raw mut pid,
            what.path.as_ptr(),
            &raw const actions.0,
            &raw const attributes.0,
            argv.as_ptr(),
            envp.as_ptr(),
        )
    })?;
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("posix_spawn returned no process"))
}
