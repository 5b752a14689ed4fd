//! A child process with its pipes or terminal.

use super::{CODE_NOT_EXECUTABLE, CODE_NOT_FOUND, terminal::Typed};
use crate::sys::spawn::{Spawn, Stdio, spawn};
use patina_abi::exec::{ARGV_MAX, Exit, Start};
use patina_daemon::chain;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Where programs are looked for without a PATH in the environment.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a program's name an error message repeats.
const NAME_SHOWN_CHARS: usize = 256;

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No argument, or more than [`ARGV_MAX`].
    #[error("exec: {0} arguments given, 1 to {ARGV_MAX} are allowed")]
    Arguments(usize),
    /// An argument or variable holds a zero byte.
    #[error("exec: an argument or variable contains a zero byte")]
    ZeroByte,
    /// No such directory to run in.
    #[error("exec: working directory {path}")]
    Directory {
        /// What was asked for.
        path: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// No such program.
    #[error("exec {0}: not found")]
    NotFound(String),
    /// The program is there and cannot be run.
    #[error("exec {program}")]
    NotExecutable {
        /// What was asked for.
        program: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No pipes or no terminal.
    #[error("exec: create {what}")]
    Stdio {
        /// What was to be made.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

impl StartError {
    /// As an answer to the host: the error's text, and the exit code that a shell has for it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let code = match self {
            Self::NotFound(_) => CODE_NOT_FOUND,
            _ => CODE_NOT_EXECUTABLE,
        };
        Exit { code: Some(code), signal: None, error: Some(chain(self)) }
    }
}

/// A running program; its owner reaps it.
#[derive(Debug)]
pub struct Program {
    pid: Pid,
    pidfd: OwnedFd,
    /// Whether its three streams are one terminal.
    pub terminal: bool,
    /// What was typed on that terminal.
    pub typed: Typed,
    /// Its standard input; non-blocking.
    pub stdin: Option<OwnedFd>,
    /// Its standard output and error; non-blocking. A terminal has only the first.
    pub outputs: [Option<OwnedFd>; 2],
}

struct Streams {
    child: Option<[OwnedFd; 3]>,
    terminal: Option<CString>,
    stdin: OwnedFd,
    outputs: [Option<OwnedFd>; 2],
}

impl Program {
    /// Starts what the host asks for, in a cgroup that must not be frozen now.
    ///
    /// # Errors
    /// It could not be started; nothing is left of it.
    pub fn start(start: &Start, cgroup: Option<BorrowedFd<'_>>) -> Result<Self, StartError> {
        let name = start.argv.first().filter(|_| start.argv.len() <= ARGV_MAX);
        let name = name.ok_or(StartError::Arguments(start.argv.len()))?;
        let environment = environment(&start.env, std::env::vars_os());
        let path = find(name, &environment)?;
        let argv = c_strings(start.argv.iter().map(|a| a.as_bytes().to_vec()))?;
        let envp = c_strings(environment.into_iter().map(OsString::into_vec))?;
        let cwd = open_directory(&start.cwd)?;
        let streams = match start.tty {
            Some(size) => Streams::terminal(size)?,
            None => Streams::pipes()?,
        };
        let stdio = match (&streams.terminal, &streams.child) {
            (Some(path), _) => Stdio::Terminal(path),
            (None, Some(fds)) => Stdio::Fds(fds.each_ref().map(AsFd::as_fd)),
            (None, None) => Stdio::Inherit,
        };
        let cwd = cwd.as_ref().map(AsFd::as_fd);
        let failed = |source| StartError::NotExecutable { program: shown(name), source };
        let (argv, envp, is_protected) = (&argv, &envp, false);
        let (pid, pidfd) =
            spawn(&Spawn { path: &path, argv, envp, cwd, stdio, cgroup, is_protected }).map_err(failed)?;
        let Streams { terminal, stdin, outputs, child: _ } = streams;
        Ok(Self {
            pid,
            pidfd,
            terminal: terminal.is_some(),
            typed: Typed::default(),
            stdin: Some(stdin),
            outputs,
        })
    }

    /// Its number; only before it is reaped.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable when the program has ended.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Reaps the program if it has ended. After that it must not be signalled: its number is free.
    #[must_use]
    pub fn reap(&self) -> Option<Exit> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(None) | Err(Errno::INTR) => None,
            Ok(Some(status)) => {
                Some(Exit { code: status.exit_status(), signal: status.terminating_signal(), error: None })
            }
            Err(e) => Some(Exit { error: Some(format!("wait for the program: {e}")), ..Exit::default() }),
        }
    }

    /// Sends a signal to the program's process group; only before it is reaped.
    pub fn signal(&self, signal: Signal) {
        kill_group(self.pid, signal);
    }

    /// Its outputs, for who reads them on when it has ended. None of a terminal: its end is the
    /// hang-up of all that run on it.
    pub fn take_outputs(&mut self) -> [Option<OwnedFd>; 2] {
        if self.terminal { [None, None] } else { std::mem::take(&mut self.outputs) }
    }

    /// The side of its terminal that it has.
    fn peer(&self) -> Option<OwnedFd> {
        let terminal = self.stdin.as_ref().filter(|_| self.terminal)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        rustix::pty::ioctl_tiocgptpeer(terminal, flags).ok()
    }

    /// Whether its terminal holds nothing that it could read.
    #[must_use]
    pub fn has_read_all(&self) -> bool {
        let Some(peer) = self.peer() else { return false };
        let mut fds = [PollFd::new(&peer, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
    }

    /// Tells the terminal's size.
    pub fn set_window(&self, rows: u16, columns: u16) {
        if let (true, Some(terminal)) = (self.terminal, &self.stdin)
            && let Err(error) = rustix::termios::tcsetwinsize(terminal, window(rows, columns))
        {
            crate::console::say(&format!("set a terminal's size: {error}"));
        }
    }
}

fn kill_group(pid: Pid, signal: Signal) {
    match rustix::process::kill_process_group(pid, signal) {
        // A group whose processes have all ended is what was wanted.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => crate::console::say(&format!("signal process group {pid}: {error}")),
    }
}

fn window(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Streams {
    fn pipes() -> Result<Self, StartError> {
        let error = |source| StartError::Stdio { what: "pipes", source };
        let (child_in, stdin) = pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
        let (stdout, child_out) = pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
        let (stderr, child_err) = pipe_with(PipeFlags::CLOEXEC).map_err(error)?;
        for ours in [&stdin, &stdout, &stderr] {
            ioctl_fionbio(ours, true).map_err(error)?;
        }
        let child = Some([child_in, child_out, child_err]);
        Ok(Self { child, terminal: None, stdin, outputs: [Some(stdout), Some(stderr)] })
    }

    fn terminal((rows, columns): (u16, u16)) -> Result<Self, StartError> {
        let error = |source| StartError::Stdio { what: "a terminal", source };
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).map_err(error)?;
        rustix::pty::unlockpt(&master).map_err(error)?;
        let path = rustix::pty::ptsname(&master, Vec::new()).map_err(error)?;
        rustix::termios::tcsetwinsize(&master, window(rows, columns)).map_err(error)?;
        ioctl_fionbio(&master, true).map_err(error)?;
        let stdin = rustix::io::fcntl_dupfd_cloexec(&master, 3).map_err(error)?;
        Ok(Self { child: None, terminal: Some(path), stdin, outputs: [Some(master), None] })
    }
}

/// The agent's environment with the host's additions, each name once, the last word winning.
fn environment(added: &[String], own: impl Iterator<Item = (OsString, OsString)>) -> Vec<OsString> {
    fn name(variable: &OsStr) -> &[u8] {
        variable.as_bytes().split(|b| *b == b'=').next().unwrap_or_default()
    }
    let mut all: Vec<OsString> = vec![OsString::from(format!("PATH={PATH_DEFAULT}"))];
    let own = own.map(|(key, value)| [key, value].join(OsStr::new("=")));
    for variable in own.chain(added.iter().map(OsString::from)) {
        all.retain(|other| name(other) != name(&variable));
        all.push(variable);
    }
    all
}

/// The program's path, searched as a shell does.
fn find(program: &str, environment: &[OsString]) -> Result<CString, StartError> {
    if program.contains('/') {
        let path = c_string(program.as_bytes().to_vec())?;
        return match rustix::fs::access(path.as_c_str(), Access::EXISTS) {
            Ok(()) => Ok(path),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(StartError::NotFound(shown(program))),
            Err(e) => Err(StartError::NotExecutable { program: shown(program), source: e.into() }),
        };
    }
    let path = environment.iter().find_map(|v| v.as_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
    let mut denied = None;
    for directory in path.split(|b| *b == b':').filter(|_| !program.is_empty()) {
        let candidate = c_string([directory, b"/", program.as_bytes()].concat())?;
        match rustix::fs::access(candidate.as_c_str(), Access::EXEC_OK) {
            Ok(()) => return Ok(candidate),
            Err(Errno::ACCESS) => denied = Some(Errno::ACCESS),
            Err(_) => {}
        }
    }
    let program = shown(program);
    Err(match denied {
        Some(e) => StartError::NotExecutable { program, source: e.into() },
        None => StartError::NotFound(program),
    })
}

fn open_directory(path: &str) -> Result<Option<OwnedFd>, StartError> {
    if path.is_empty() {
        return Ok(None);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.map(Some).map_err(|source| StartError::Directory { path: shown(path), source })
}

/// A name as it is shown in a message, which must fit a frame.
fn shown(name: &str) -> String {
    name.chars().take(NAME_SHOWN_CHARS).collect()
}

fn c_string(bytes: Vec<u8>) -> Result<CString, StartError> {
    CString::new(bytes).map_err(|_| StartError::ZeroByte)
}

fn c_strings(all: impl Iterator<Item = Vec<u8>>) -> Result<Vec<CString>, StartError> {
    all.map(c_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_variables_win_and_a_path_is_always_there() {
        let own = [("HOME".into(), "/root".into()), ("A".into(), "1".into())];
        let added = ["A=2".to_owned(), "B=x=y".to_owned()];
        let got = environment(&added, own.clone().into_iter());
        let path = format!("PATH={PATH_DEFAULT}");
        assert_eq!(got, [path.as_str(), "HOME=/root", "A=2", "B=x=y"]);
        let got = environment(&["PATH=/x".to_owned()], own.into_iter());
        assert_eq!(got, ["HOME=/root", "A=1", "PATH=/x"]);
    }

    #[test]
    fn a_program_is_searched_in_the_path_that_it_gets() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let path = [OsString::from(format!("PATH=/nowhere:{}", dir.path().display()))];
        // Root may do everything but execute a file that nobody may.
        assert!(matches!(find("tool", &path), Err(StartError::NotExecutable { .. })));
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, everyone).unwrap();
        assert_eq!(find("tool", &path).unwrap().as_bytes(), file.as_os_str().as_bytes());
        assert!(matches!(find("tool2", &path), Err(StartError::NotFound(_))));
        assert!(matches!(find("", &path), Err(StartError::NotFound(_))));
        assert!(matches!(find("/no/such", &path), Err(StartError::NotFound(_))));
    }

    #[test]
    fn bad_requests_are_refused_with_a_shells_exit_code() {
        let start = |argv: &[&str], cwd: &str| {
            let argv = argv.iter().map(|a| (*a).to_owned()).collect();
            Program::start(&Start { argv, env: Vec::new(), cwd: cwd.to_owned(), tty: None }, None)
                .unwrap_err()
        };
        assert_eq!(start(&[], "").to_string(), "exec: 0 arguments given, 1 to 1024 are allowed");
        assert!(matches!(start(&["x"; ARGV_MAX + 1], ""), StartError::Arguments(1025)));
        assert!(matches!(start(&["true", "a\0b"], ""), StartError::ZeroByte));
        assert_eq!(start(&["/dev/null"], "").exit().code, Some(126));
        assert_eq!(start(&["no-such-program"], "").exit().code, Some(127));
        let error = start(&["true"], "/no/such").exit().error.unwrap();
        assert!(error.starts_with("exec: working directory /no/such: "), "{error}");
    }
}
