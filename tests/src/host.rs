//! A private `vmmd` with its own socket and state directory, which leaves nothing behind.

use crate::{
    interrupt,
    keeper::{Keeper, Orphan},
    leftovers,
    place::Place,
    process::{self, Output, ProcessError},
    setup::Setup,
    vm::Vm,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};
use std::{
    fs, io,
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// How long a daemon may take to start.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long a daemon may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(20);
/// How long a `vmctl` call may take unless the caller says otherwise.
pub const CALL_DEADLINE: Duration = Duration::from_secs(180);

/// A running `vmmd` of one's own.
#[derive(Debug)]
pub struct Host {
    place: Place,
    // Removed when all else is.
    _dir: TempDir,
    vmmd: Option<Child>,
    is_clean: bool,
    // Ends all of it when this process is killed. Dropped last.
    _keeper: Option<Keeper>,
}

/// What went wrong with a [`Host`] or a [`Vm`].
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

impl Host {
    /// Starts `vmmd --standalone` on a socket and a state directory of its own.
    ///
    /// # Errors
    /// It does not start, or is not ready within half a minute; its log is in the error.
    pub fn start(setup: &Setup) -> Result<Self, HostError> {
        Self::start_wrapped(setup, &[])
    }

    /// Starts `vmmd` through a program that runs the one its last arguments name, such as `unshare`.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn start_wrapped(setup: &Setup, wrapper: &[&str]) -> Result<Self, HostError> {
        Self::start_as(setup, wrapper, &[])
    }

    /// Starts `vmmd` with further options.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn start_with(setup: &Setup, options: &[&str]) -> Result<Self, HostError> {
        Self::start_as(setup, &[], options)
    }

    fn start_as(setup: &Setup, wrapper: &[&str], options: &[&str]) -> Result<Self, HostError> {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let dir = tempfile::Builder::new()
            .prefix("patina-")
            .tempdir()
            .map_err(system("make a temporary directory"))?;
        let place = Place {
            setup: setup.clone(),
            dir: dir.path().to_owned(),
            wrapper: owned(wrapper),
            options: owned(options),
        };
        let keeper = Keeper::of(&Orphan::Host(place.clone())).map_err(system("start a keeper"))?;
        let mut host = Self { place, _dir: dir, vmmd: None, is_clean: false, _keeper: keeper };
        host.start_vmmd()?;
        Ok(host)
    }

    /// Starts `vmmd` again after [`Host::kill_vmmd`], with the same socket and state.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub fn start_vmmd(&mut self) -> Result<(), HostError> {
        self.vmmd = Some(self.place.start_vmmd()?);
        Ok(())
    }

    /// The command that starts a `vmmd` on this host's socket and state directory.
    #[must_use]
    pub fn vmmd_command(&self) -> Command {
        self.place.vmmd_command()
    }

    /// Kills `vmmd` with SIGKILL, as a crash would; its VMs run on.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn kill_vmmd(&mut self) -> Result<(), HostError> {
        if let Some(mut child) = self.vmmd.take() {
            child.kill().and_then(|()| child.wait()).map_err(system("kill vmmd"))?;
        }
        Ok(())
    }

    /// What `vmctl --host` and `vmmd --listen` take.
    #[must_use]
    pub fn address(&self) -> String {
        self.place.address()
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.place.socket()
    }

    /// Where `vmmd` keeps its state.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.place.state_dir()
    }

    /// A directory for files of tests; it goes with the host.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// What the host was started with.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.place.setup
    }

    /// The pid of `vmmd`, while it runs.
    #[must_use]
    pub fn vmmd_pid(&self) -> Option<u32> {
        self.vmmd.as_ref().map(Child::id)
    }

    /// A `vmctl` command to this host, not started yet.
    #[must_use]
    pub fn vmctl_command(&self, arguments: &[&str]) -> Command {
        self.place.vmctl_command(arguments)
    }

    /// Runs `vmctl` with `arguments`, whatever its exit code.
    ///
    /// # Errors
    /// It could not be run, or did not end within [`CALL_DEADLINE`].
    pub fn vmctl(&self, arguments: &[&str]) -> Result<Output, HostError> {
        self.vmctl_with_input(arguments, b"")
    }

    /// Runs `vmctl` with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Host::vmctl`].
    pub fn vmctl_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Output, HostError> {
        if interrupt::requested() {
            return Err(HostError::Interrupted);
        }
        process::run(&mut self.vmctl_command(arguments), input, CALL_DEADLINE).map_err(|error| match error {
            ProcessError::Interrupted => HostError::Interrupted,
            other => other.into(),
        })
    }

    /// Runs `vmctl` with `arguments`, which must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn call(&self, arguments: &[&str]) -> Result<String, HostError> {
        succeeded(arguments, &self.vmctl(arguments)?)
    }

    /// Runs `vmctl -o json` with `arguments`, which must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0, or it prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value, HostError> {
        let text = self.call(&[&["-o", "json"], arguments].concat())?;
        parse(text)
    }

    /// Runs a VM (`vmctl run --name NAME ARGUMENTS…`) and waits until its agent is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Result<Vm<'_>, HostError> {
        self.call(&[&["run", "--name", name], arguments].concat())?;
        Ok(Vm::new(self, name))
    }

    /// A VM that is there already.
    #[must_use]
    pub fn vm(&self, name: &str) -> Vm<'_> {
        Vm::new(self, name)
    }

    /// The end of what `vmmd` has logged.
    #[must_use]
    pub fn vmmd_log(&self) -> String {
        end_of(&self.place.vmmd_log_path())
    }

    /// Ends every VM and `vmmd`, and looks for what they left.
    ///
    /// # Errors
    /// [`HostError::Leftovers`] when something is still there.
    pub fn stop(mut self) -> Result<(), HostError> {
        let interfaces = self.clean()?;
        let mut left = leftovers::processes_of(self.dir()).map_err(system("look for processes"))?;
        let still_there = interfaces.into_iter().filter(|name| leftovers::interface_exists(name));
        left.extend(still_there.map(|name| format!("network interface {name}")));
        if self.socket().exists() {
            left.push(format!("socket {}", self.socket().display()));
        }
        if left.is_empty() { Ok(()) } else { Err(HostError::Leftovers(left)) }
    }

    /// Removes all VMs, then ends `vmmd`. Returns the interfaces that its VMs had.
    fn clean(&mut self) -> Result<Vec<String>, HostError> {
        let vmmd = self.vmmd.take();
        self.is_clean = true;
        if interrupt::requested() { self.place.clean_cut_short(vmmd) } else { self.place.clean(vmmd) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !self.is_clean
            && let Err(error) = self.clean()
        {
            patina_daemon::say!("clean up {}: {error}", self.dir().display());
        }
    }
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

fn end_of(log: &Path) -> String {
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
