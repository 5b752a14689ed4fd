//! A private scheduler for several hosts.

use crate::{
    daemon::{HostError, start_daemon, stop_daemon, system},
    keeper::{Keeper, Orphan},
    setup::Setup,
};
use std::{
    path::PathBuf,
    process::{Child, Command},
};
use tempfile::TempDir;

/// A running `scheduler`.
#[derive(Debug)]
pub struct Scheduler {
    program: PathBuf,
    dir: TempDir,
    options: Vec<String>,
    child: Option<Child>,
    // Ends it when this process is killed.
    keeper: Option<Keeper>,
}

impl Scheduler {
    /// Starts one, with options beside those for its socket and state.
    ///
    /// # Errors
    /// It does not get ready; its log is in the error.
    pub fn start(setup: &Setup, options: &[&str]) -> Result<Self, HostError> {
        let dir = tempfile::Builder::new().prefix("patina-").tempdir();
        let dir = dir.map_err(system("make a temporary directory"))?;
        let options = options.iter().map(|&word| word.to_owned()).collect();
        let mut scheduler =
            Self { program: setup.binary("scheduler"), dir, options, child: None, keeper: None };
        scheduler.start_again()?;
        Ok(scheduler)
    }

    /// Starts it again after [`Scheduler::kill`], with the same socket and state.
    ///
    /// # Errors
    /// As [`Scheduler::start`].
    pub fn start_again(&mut self) -> Result<(), HostError> {
        let mut command = Command::new(&self.program);
        command.arg("--listen").arg(self.address()).arg("--state-dir").arg(self.dir.path().join("state"));
        command.args(&self.options);
        let child = start_daemon("scheduler", command, self.dir.path(), &self.log_path())?;
        self.keeper = Keeper::of(&Orphan::Process(child.id())).map_err(system("start a keeper"))?;
        self.child = Some(child);
        Ok(())
    }

    /// What `vmmd --scheduler` takes.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("scheduler.sock")
    }

    /// Kills it with SIGKILL, as a crash would.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn kill(&mut self) -> Result<(), HostError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let killed = child.kill().and_then(|()| child.wait());
        killed.map(drop).map_err(system("kill the scheduler"))
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<(), HostError> {
        self.child.take().map_or(Ok(()), |child| stop_daemon("scheduler", child, &self.log_path()))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("scheduler.log")
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            patina_daemon::say!("clean up: {error}");
        }
    }
}
