//! Runs a program with a deadline and collects its output.

use crate::interrupt;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use std::{
    fmt,
    io::{self, Read, Write},
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What a program left: its exit code and what it printed.
#[derive(Clone)]
pub struct Output {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Standard output, bytes.
    pub stdout: Vec<u8>,
    /// Standard error, bytes.
    pub stderr: Vec<u8>,
    /// Start to end.
    pub elapsed: Duration,
}

/// Why there is no [`Output`].
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program could not be started or waited for.
    #[error("run {program}: {source}")]
    Run {
        /// The command line.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A signal asked us to end; it was killed.
    #[error("interrupted")]
    Interrupted,
    /// It did not end in time, and was killed.
    #[error("{program} did not end within {seconds} s; it had printed: {printed}")]
    Deadline {
        /// The command line.
        program: String,
        /// The deadline.
        seconds: u64,
        /// Both outputs so far.
        printed: String,
    },
}

impl fmt::Debug for Output {
    /// As text: it is what a failed test shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}, stdout {:?}, stderr {:?}", self.code, self.text(), self.errors())
    }
}

impl Output {
    /// Standard output as text, without the last newline.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }
}

/// A program that another one runs, whose words come first: `nsenter`, for example.
pub(crate) fn wrapped(wrapper: &[String], program: &Path) -> Command {
    let Some((first, rest)) = wrapper.split_first() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    command
}

/// Runs `command` with `input` on its standard input until it ends, at most `deadline`, or until
/// [`interrupt`] says that we are to end.
///
/// # Errors
/// It could not be started, or did not end in time (it is killed then).
pub fn run(command: &mut Command, input: &[u8], deadline: Duration) -> Result<Output, ProcessError> {
    run_until(command, input, deadline, interrupt::woken())
}

/// As [`run`], whatever signals come: for what cleans up after them.
///
/// # Errors
/// As for [`run`].
pub fn run_even_now(command: &mut Command, input: &[u8], deadline: Duration) -> Result<Output, ProcessError> {
    run_until(command, input, deadline, None)
}

fn run_until(
    command: &mut Command,
    input: &[u8],
    deadline: Duration,
    stop: Option<BorrowedFd<'_>>,
) -> Result<Output, ProcessError> {
    let program = format!("{command:?}");
    let failed = |source| ProcessError::Run { program: program.clone(), source };
    let started = Instant::now();
    let mut child = command
        .stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        // A program may end without reading all of its input: what came of the write does not
        // matter.
        let writer = scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input)));
        let stdout = scope.spawn(move || collect(stdout));
        let stderr = scope.spawn(move || collect(stderr));
        let waited = wait_until(&mut child, deadline, stop).map_err(failed)?;
        if !matches!(waited, Waited::Ended(_)) {
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
        }
        drop(writer.join());
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        match waited {
            Waited::Stopped => Err(ProcessError::Interrupted),
            Waited::Ended(status) => {
                Ok(Output { code: code(status), stdout, stderr, elapsed: started.elapsed() })
            }
            Waited::Late => Err(ProcessError::Deadline {
                program: program.clone(),
                seconds: deadline.as_secs(),
                printed: String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned(),
            }),
        }
    })
}

/// Waits for `child` to end, at most `deadline`; `None` when it still runs then.
///
/// # Errors
/// The kernel does not let us wait.
pub fn wait(child: &mut Child, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    Ok(match wait_until(child, deadline, None)? {
        Waited::Ended(status) => Some(status),
        Waited::Late | Waited::Stopped => None,
    })
}

/// What came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The process has ended so.
    Ended(ExitStatus),
    /// The deadline.
    Late,
    /// We are to stop.
    Stopped,
}

/// Waits for `child` to end, at most `deadline`, or until `stop` is readable.
///
/// # Errors
/// The kernel does not let us wait.
pub fn wait_until(child: &mut Child, deadline: Duration, stop: Option<BorrowedFd<'_>>) -> io::Result<Waited> {
    if let Some(status) = child.try_wait()? {
        return Ok(Waited::Ended(status));
    }
    let pidfd = pidfd(child.id())?;
    Ok(match first_of(&pidfd, stop, deadline)? {
        Some(true) => Waited::Ended(child.wait()?),
        Some(false) => Waited::Stopped,
        None => Waited::Late,
    })
}

/// A file descriptor that becomes readable when the process ends.
///
/// # Errors
/// There is no such process.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal to the process of `pidfd`. One that is gone needs none.
///
/// # Errors
/// It is another user's.
pub(crate) fn send(pidfd: &OwnedFd, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits until the process of `pidfd` has ended, at most `deadline`: whether it has.
///
/// # Errors
/// The kernel does not let us wait.
pub fn ended(pidfd: &OwnedFd, deadline: Duration) -> io::Result<bool> {
    first_of(pidfd, None, deadline).map(|first| first.is_some())
}

/// Whether the process of `pidfd` has ended (true) or `stop` is readable (false), at most
/// `deadline`.
fn first_of(pidfd: &OwnedFd, stop: Option<BorrowedFd<'_>>, deadline: Duration) -> io::Result<Option<bool>> {
    let limit = Instant::now() + deadline;
    let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
    fds.extend(stop.as_ref().map(|stop| PollFd::new(stop, PollFlags::IN)));
    loop {
        let left = Timespec::try_from(limit.saturating_duration_since(Instant::now()))
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(fds.first().is_some_and(|process| !process.revents().is_empty()))),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn collect(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // A read error ends the output; what came before it is what there is to show.
        if let Err(error) = pipe.read_to_end(&mut bytes) {
            bytes.extend_from_slice(format!("\n[read: {error}]").as_bytes());
        }
    }
    bytes
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_code_and_input_are_passed() {
        let output = run(&mut sh("cat; echo oops >&2; exit 3"), b"in", Duration::from_secs(10)).unwrap();
        assert_eq!((output.code, output.text().as_str(), output.errors().as_str()), (3, "in", "oops"));
    }

    #[test]
    fn a_program_is_killed_when_we_are_to_stop() {
        use std::os::fd::AsFd as _;
        let (stop, mut signal) = std::io::pipe().unwrap();
        let mut command = sh("exec sleep 60");
        let begun = Instant::now();
        thread::scope(|scope| {
            let run =
                scope.spawn(|| run_until(&mut command, b"", Duration::from_secs(50), Some(stop.as_fd())));
            signal.write_all(b"x").unwrap();
            let error = run.join().unwrap().unwrap_err();
            assert!(matches!(error, ProcessError::Interrupted), "{error}");
        });
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let error = run(&mut sh("echo begun; exec sleep 60"), b"", Duration::from_millis(300)).unwrap_err();
        assert!(matches!(&error, ProcessError::Deadline { printed, .. } if printed == "begun\n"), "{error}");
    }
}
