//! The pager's process: started by this `vmmd`, or found after an earlier one.

use super::{error::PagerError, place::Place};
use crate::process::{
    Process,
    spawn::DIR_VARIABLE,
    stray,
    sys::{self, Dispensable},
    urgency::Urgency,
};
use patina_daemon::chain;
use rustix::fs::{Mode, OFlags};
use std::{
    collections::HashSet,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tokio::net::UnixStream;

/// The name of the folder that stands in a pager's environment, under the pager's own. Nothing is
/// in it; there is none.
const MARK: &str = "process";

/// Starts the program, and connects to it. May block for a moment.
///
/// # Errors
/// It cannot be started.
pub fn start(program: &Path, place: &Place) -> Result<Process, PagerError> {
    place.make()?;
    let log = place.open_log()?;
    let listener = listen(place)?;
    let failed = |source| PagerError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command
        .arg("--control-fd")
        .arg(listener.as_raw_fd().to_string())
        .env_clear()
        .env(DIR_VARIABLE, place.path().join(MARK))
        .envs(std::env::var_os("RUST_BACKTRACE").map(|value| ("RUST_BACKTRACE", value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log);
    // Guests wait for it, and all VMs that it serves are lost with their memory if it does not come
    // back.
    sys::keep_only(&mut command, &[listener.as_fd()], (Urgency::Urgent.nice(), Dispensable::AsVmmd));
    let child = command.spawn().map_err(failed)?;
    Ok(Process::of_child(child)?)
}

/// The process that an earlier `vmmd` started, if it runs. Others of this folder, which nobody can
/// reach, are ended.
#[must_use]
pub fn find(place: &Place) -> Option<Process> {
    if !place.socket().exists() {
        return None;
    }
    let folder = place.path().to_owned();
    let mut found: Vec<_> =
        stray::find(&[folder], &HashSet::new()).into_iter().map(|found| found.1).collect();
    found.sort_by_key(|process| process.id().start_ticks);
    let last = found.pop();
    for process in found {
        tracing::warn!(pid = process.id().pid, "a pager that another one has replaced is ended");
        if let Err(error) = process.kill() {
            tracing::error!(pid = process.id().pid, error = %chain(&error), "kill a pager");
        }
    }
    last
}

/// Connects to whoever listens.
///
/// # Errors
/// Nobody does.
pub async fn connect(place: &Place) -> Result<UnixStream, PagerError> {
    let (folder, path) = short(place)?;
    let connected = UnixStream::connect(path).await;
    drop(folder);
    Ok(connected?)
}

fn listen(place: &Place) -> Result<UnixListener, PagerError> {
    let socket = place.socket();
    match fs::remove_file(&socket) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(PagerError::Prepare { path: socket, source });
        }
        _ => {}
    }
    let (_folder, path) = short(place)?;
    UnixListener::bind(path).map_err(|source| PagerError::Prepare { path: socket, source })
}

/// The socket's path through the open folder: a socket's path has at most 107 bytes, the state
/// folder's may be longer.
fn short(place: &Place) -> Result<(OwnedFd, PathBuf), PagerError> {
    let path = place.path();
    let opened = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let folder =
        opened.map_err(|errno| PagerError::Prepare { path: path.to_owned(), source: errno.into() })?;
    let short = PathBuf::from(format!("/proc/self/fd/{}/pager.sock", folder.as_raw_fd()));
    Ok((folder, short))
}

/// Opens, for reading and writing, the memfd that a process has open. None: it does not have it.
#[must_use]
pub fn memfd_of(pid: u32, number: crate::process::filling::FileNumber) -> Option<fs::File> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let opened = entries.flatten().filter_map(|entry| {
        let is_it = fs::metadata(entry.path()).ok().is_some_and(|stat| {
            use std::os::unix::fs::MetadataExt as _;
            (stat.dev(), stat.ino()) == (number.device, number.inode)
        });
        is_it.then(|| fs::File::options().read(true).write(true).open(entry.path()).ok())?
    });
    // Another process may change what the path leads to between the look and the opening.
    opened.into_iter().find(|file| super::parts::number_of(file).is_ok_and(|found| found == number))
}
