//! A daemon with its own socket and folder: starting it, ending it, and what goes wrong with it.

use crate::process::{self, Output, ProcessError};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};
use std::{
    fs, io,
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How long a daemon may take to start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a daemon may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// How long a `vmctl` call may take unless the caller says otherwise.
pub const CALL_DEADLINE: Duration = Duration::from_secs(180);

/// What went wrong with a host or one of its VMs.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call on the host failed.
    #[error("{what}: {source}")]
    System {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A daemon ended, or said nothing, instead of getting ready.
    #[error("start {daemon}: {what}; its log:\n{log}")]
    Start {
        /// The daemon's name: `vmmd`, for example.
        daemon: &'static str,
        /// What the daemon did instead of getting ready.
        what: String,
        /// The end of the daemon's log.
        log: String,
    },
    /// A program could not be run to its end.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A `vmctl` command ended with another code than 0.
    #[error("vmctl {arguments}: exit code {code}, stdout: {stdout}, stderr: {stderr}")]
    Call {
        /// The command's arguments.
        arguments: String,
        /// The command's exit code.
        code: i32,
        /// What the command wrote to standard output.
        stdout: String,
        /// What the command wrote to standard error.
        stderr: String,
    },
    /// A `vmctl -o json` command printed something else.
    #[error("vmctl printed no JSON: {source}: {text}")]
    Json {
        /// What the parser said.
        source: serde_json::Error,
        /// What was printed.
        text: String,
    },
    /// A signal asked us to end.
    #[error("interrupted")]
    Interrupted,
    /// Something of this host is still there.
    #[error("left behind: {}", .0.join(", "))]
    Leftovers(Vec<String>),
}

pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::System { what, source }
}

pub(crate) fn parse(text: String) -> Result<serde_json::Value, HostError> {
    serde_json::from_str(&text).map_err(|source| HostError::Json { source, text })
}

/// What a `vmctl` command printed, when its exit code is 0.
///
/// # Errors
/// Its exit code is another.
pub fn succeeded(arguments: &[&str], output: &Output) -> Result<String, HostError> {
    if output.code == 0 {
        return Ok(output.text());
    }
    Err(HostError::Call {
        arguments: arguments.join(" "),
        code: output.code,
        stdout: output.text(),
        stderr: output.errors(),
    })
}

/// The last `lines` lines of `text`.
#[must_use]
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

pub(crate) fn end_of(log: &Path) -> String {
    tail(&fs::read_to_string(log).unwrap_or_else(|error| error.to_string()), 60)
}

/// Starts a daemon that says on `NOTIFY_SOCKET` when it is ready, and waits for that.
pub(crate) fn start_daemon(
    daemon: &'static str,
    mut command: Command,
    dir: &Path,
    log_path: &Path,
) -> Result<Child, HostError> {
    let notify_path = dir.join("notify");
    if notify_path.exists() {
        fs::remove_file(&notify_path).map_err(system("remove the notify socket"))?;
    }
    let notify = UnixDatagram::bind(&notify_path).map_err(system("bind the notify socket"))?;
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(log_path)
        .map_err(system("open a daemon's log"))?;
    let errors = log.try_clone().map_err(system("share a daemon's log"))?;
    let mut child = command
        .env("NOTIFY_SOCKET", &notify_path)
        // A Ctrl-C at the terminal is for us: a daemon has to stay until its VMs are removed.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(system("start a daemon"))?;
    if let Err(what) = ready(&notify, &mut child) {
        child.kill().and_then(|()| child.wait()).map_err(system("kill a daemon"))?;
        return Err(HostError::Start { daemon, what, log: end_of(log_path) });
    }
    Ok(child)
}

/// Ends a daemon with SIGTERM.
pub(crate) fn stop_daemon(daemon: &'static str, mut child: Child, log_path: &Path) -> Result<(), HostError> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM).map_err(|errno| system("end a daemon")(errno.into()))?;
    }
    if process::wait(&mut child, STOP_DEADLINE).map_err(system("wait for a daemon"))?.is_none() {
        child.kill().and_then(|()| child.wait()).map_err(system("kill a daemon"))?;
        let what = format!("did not end within {} s of SIGTERM", STOP_DEADLINE.as_secs());
        return Err(HostError::Start { daemon, what, log: end_of(log_path) });
    }
    Ok(())
}

/// Waits for `READY=1` on the notify socket (sd_notify(3)), or for the end of `child`.
fn ready(notify: &UnixDatagram, child: &mut Child) -> Result<(), String> {
    let deadline = Timespec::try_from(START_DEADLINE).map_err(|error| error.to_string())?;
    let pidfd = process::pidfd(child.id()).map_err(|error| error.to_string())?;
    loop {
        let mut fds = [PollFd::new(notify, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
        let count = poll(&mut fds, Some(&deadline)).map_err(|error| error.to_string())?;
        if count == 0 {
            return Err(format!("not ready within {} s", START_DEADLINE.as_secs()));
        }
        if fds[0].revents().is_empty() {
            let status = child.wait().map_err(|error| error.to_string())?;
            return Err(format!("ended with {status}"));
        }
        let mut message = [0; 1024];
        let length = notify.recv(&mut message).map_err(|error| error.to_string())?;
        if String::from_utf8_lossy(&message[..length]).lines().any(|line| line == "READY=1") {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tail;

    #[test]
    fn tail_keeps_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
