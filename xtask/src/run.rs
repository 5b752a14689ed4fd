//! Child processes, mostly cargo.

use patina_tests::{
    interrupt,
    keeper::Keeper,
    leftovers::group_lives,
    process::{Waited, wait_until},
};
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};
use std::{
    env,
    io::{self, Read as _, Seek as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{self, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Longer than anything runs.
const FOREVER: Duration = Duration::from_hours(24 * 365);
/// How long a child may clean up after a signal: guests are ended, and interfaces removed.
const CLEAN_UP: Duration = Duration::from_secs(60);
/// How often is looked whether a process group has ended: the kernel tells of processes only.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why a child process did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("run {command}")]
    Start {
        /// Its command line.
        command: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended with a code that is not 0, or by a signal.
    #[error("{command}: {status}")]
    Status {
        /// Its command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It took too long, and was ended.
    #[error("{command}: it did not end within {limit:?}")]
    Late {
        /// Its command line.
        command: String,
        /// How long it may take.
        limit: Duration,
    },
}

/// A cargo command in the workspace's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(arguments);
    command
}

/// Runs `command` to its end. What it prints goes to standard error: standard output is for
/// results.
pub fn run(command: &mut Command) -> Result<(), RunError> {
    run_within(command, FOREVER)
}

/// Like [`run`], but ends `command` if it takes longer than `limit`.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<(), RunError> {
    run_to_its_end(command.stdout(io::stderr()), limit)
}

/// Like [`run`], but what `command` prints is returned: others run and print at the same time.
pub fn run_apart(command: &mut Command) -> (Result<(), RunError>, String) {
    let began = tempfile::tempfile().and_then(|file| {
        command.stdout(file.try_clone()?).stderr(file.try_clone()?);
        Ok(file)
    });
    let mut printed = match began {
        Ok(file) => file,
        Err(source) => return (Err(RunError::Start { command: shown(command), source }), String::new()),
    };
    let outcome = run_to_its_end(command, FOREVER);
    let mut bytes = Vec::new();
    let read = printed.rewind().and_then(|()| printed.read_to_end(&mut bytes));
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if let Err(error) = read {
        text.push_str(&format!("\n(the rest cannot be read: {error})"));
    }
    (outcome, text)
}

fn run_to_its_end(command: &mut Command, limit: Duration) -> Result<(), RunError> {
    match run_in_a_group(command.stdin(Stdio::null()), limit) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(RunError::Status { command: shown(command), status }),
        Ok(None) => Err(RunError::Late { command: shown(command), limit }),
        Err(source) => Err(RunError::Start { command: shown(command), source }),
    }
}

/// How many child processes run that end, and clean up, when they are told to.
static CHILDREN: AtomicUsize = AtomicUsize::new(0);

/// Watches for signals. While a child process or [`Guarded`] is there they are its to obey;
/// otherwise the first one ends us, as nothing has to be cleaned up.
///
/// # Errors
/// The kernel does not let us.
pub fn watch_for_signals() -> io::Result<()> {
    interrupt::watch()?;
    thread::Builder::new().name("signals".into()).spawn(|| {
        interrupt::wait();
        if CHILDREN.load(Ordering::SeqCst) == 0 {
            process::exit(interrupt::INTERRUPTED);
        }
    })?;
    Ok(())
}

/// While it is there, a signal is only noted, for whoever has to clean up.
#[derive(Debug)]
pub struct Guarded(());

impl Guarded {
    /// From now on.
    pub fn new() -> Self {
        CHILDREN.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        CHILDREN.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs a child in a process group of its own. A signal that comes to us ends that group, however
/// it reached us, and once only: by Ctrl-C at a terminal, or by `kill` of this process alone. It
/// then has time to clean up: not only the child, which may be a cargo that ends at once, but all
/// of the group. Where we are killed, the group is told to end, too. So it is after `limit`: then
/// there is no status.
fn run_in_a_group(command: &mut Command, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let guarded = Guarded::new();
    if interrupt::requested() {
        return Err(io::ErrorKind::Interrupted.into());
    }
    let keeper = Keeper::of_group()?;
    let kept = keeper.as_ref().map(Keeper::id);
    let leader = kept.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let mut child = command.process_group(leader.map_or(0, Pid::as_raw_pid)).spawn()?;
    let group = leader.unwrap_or(Pid::from_child(&child));
    let mut waited = wait_until(&mut child, limit, interrupt::woken())?;
    let late = waited == Waited::Late;
    // A signal that a cargo had as well as we has ended it by now.
    if late || waited == Waited::Stopped || interrupt::requested() {
        let begun = Instant::now();
        tell_group(group, Signal::TERM)?;
        if late || waited == Waited::Stopped {
            waited = wait_until(&mut child, CLEAN_UP, None)?;
        }
        while group_lives(kept.unwrap_or(child.id()), kept)? {
            if begun.elapsed() > CLEAN_UP {
                tell_group(group, Signal::KILL)?;
                break;
            }
            thread::sleep(LOOK_AGAIN);
        }
    }
    // Killed with its group, or told that all is done.
    drop(keeper);
    let status = match waited {
        Waited::Ended(status) => status,
        Waited::Late | Waited::Stopped => child.wait()?,
    };
    drop(guarded);
    Ok((!late).then_some(status))
}

/// Sends a signal to a group. One that has ended needs none.
fn tell_group(group: Pid, signal: Signal) -> io::Result<()> {
    match kill_process_group(group, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Runs `command` to its end: what it prints. Its errors go to standard error.
pub fn output(command: &mut Command) -> Result<String, RunError> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(RunError::Status { command: shown(command), status: output.status }),
        Err(source) => Err(RunError::Start { command: shown(command), source }),
    }
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Whether `command` can be run and succeeds. What it prints is discarded.
pub fn succeeds(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Whether `cargo NAME` is there.
pub fn has_subcommand(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| {
        env::split_paths(&path).any(|folder| folder.join(format!("cargo-{name}")).is_file())
    })
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => env::current_dir().unwrap_or_default().join(folder),
        None => workspace().join("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_tests::leftovers::processes_of;

    #[test]
    fn what_a_command_prints_is_returned_however_it_ends() {
        for (code, is_ok) in [(0, true), (3, false)] {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("echo one; echo two >&2; exit {code}")]);
            let (outcome, printed) = run_apart(&mut command);
            assert_eq!((outcome.is_ok(), printed.as_str()), (is_ok, "one\ntwo\n"));
        }
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended_with_its_children() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & wait"]).env("FOLDER", folder.path());
        let limit = Duration::from_millis(300);
        let error = run_within(&mut command, limit).expect_err("it is ended");
        assert!(matches!(error, RunError::Late { limit: told, .. } if told == limit), "{error}");
        assert_eq!(processes_of(folder.path()).expect("/proc"), Vec::<String>::new());
    }
}
