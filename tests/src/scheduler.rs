//! A private scheduler for several hosts.

use crate::{
    daemon::{HostError, end_of, start_daemon, stop_daemon, system},
    keeper::{Keeper, Orphan},
    process,
    setup::Setup,
};
use std::{path::PathBuf, process::Child};
use tempfile::TempDir;

/// A running `scheduler`.
#[derive(Debug)]
pub struct Scheduler {
    program: PathBuf,
    dir: TempDir,
    // What runs it in another network namespace, if anything does.
    wrapper: Vec<String>,
    // Where it listens instead of its own socket.
    listen: Option<String>,
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
        Self::start_as(setup, &[], None, options)
    }

    /// Starts one in the network namespace of a [`Switch`], at a TCP address.
    ///
    /// # Errors
    /// As [`Scheduler::start`].
    ///
    /// [`Switch`]: crate::switch::Switch
    pub fn start_over_tcp(
        setup: &Setup,
        wrapper: &[String],
        address: &str,
        options: &[&str],
    ) -> Result<Self, HostError> {
        Self::start_as(setup, wrapper, Some(address), options)
    }

    fn start_as(
        setup: &Setup,
        wrapper: &[String],
        listen: Option<&str>,
        options: &[&str],
    ) -> Result<Self, HostError> {
        let dir = tempfile::Builder::new().prefix("patina-").tempdir();
        let dir = dir.map_err(system("make a temporary directory"))?;
        let options = options.iter().map(|&word| word.to_owned()).collect();
        let (wrapper, listen) = (wrapper.to_vec(), listen.map(str::to_owned));
        let program = setup.binary("scheduler");
        let mut scheduler = Self { program, dir, wrapper, listen, options, child: None, keeper: None };
        scheduler.start_again()?;
        Ok(scheduler)
    }

    /// Starts it again after [`Scheduler::kill`], with the same socket and state.
    ///
    /// # Errors
    /// As [`Scheduler::start`].
    pub fn start_again(&mut self) -> Result<(), HostError> {
        let mut command = process::wrapped(&self.wrapper, &self.program);
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
        self.listen.clone().unwrap_or_else(|| format!("unix:{}", self.socket().display()))
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

    /// The end of what it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        end_of(&self.log_path())
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
