//! Hosts, a scheduler and an operator, each in a network namespace of its own on one Ethernet. They
//! speak TCP and TLS with each other, so that a link that is cut is cut for all that they say.

use crate::{
    daemon::{CALL_DEADLINE, HostError, parse, succeeded, system},
    host::Host,
    process,
    scheduler::Scheduler,
    setup::Setup,
    switch::{Entered, Switch},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// How many hosts there are.
pub const HOSTS: u8 = 3;
/// The namespace of the operator, where the switch is. The hosts follow.
const OPERATOR: u8 = 0;
/// The namespace of the scheduler.
const SCHEDULER: u8 = HOSTS + 1;
/// The port of the scheduler.
const SCHEDULER_PORT: u16 = 7000;
/// The port of every vmmd.
const HOST_PORT: u16 = 7001;
/// What daemons log: also what happens at which step.
const LOG: &str = "PATINA_LOG=info,vmmd=debug,scheduler=debug";

/// Who is on the Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A host, from 0 on.
    Host(u8),
    /// The scheduler.
    Scheduler,
}

impl Place {
    fn number(self) -> u8 {
        match self {
            Self::Host(host) => host + 1,
            Self::Scheduler => SCHEDULER,
        }
    }
}

/// See the module. What is dropped first comes first.
#[derive(Debug)]
pub struct Hosts {
    /// The hosts.
    pub hosts: Vec<Host>,
    /// Their scheduler.
    pub scheduler: Scheduler,
    setup: Setup,
    operator: PathBuf,
    // Who calls is where the operator is.
    _entered: Entered,
    switch: Switch,
    _certificates: TempDir,
}

impl Hosts {
    /// Starts them, hosts with further options.
    ///
    /// # Errors
    /// A certificate, a namespace or a daemon is not to be had.
    pub fn start(setup: &Setup, options: &[&str]) -> Result<Self, HostError> {
        let certificates = tempfile::tempdir().map_err(system("make a temporary directory"))?;
        let folder = certificates.path().join("pki");
        let pki = |arguments: &[&str]| pki(setup, &folder, arguments);
        pki(&["init"])?;
        pki(&["operator", "tester", "--role", "admin"])?;
        let operator = folder.join("operators/tester");
        let switch = Switch::of(SCHEDULER + 1)?;
        let entered = switch.enter(OPERATOR)?;
        let tls = |number: u8| {
            let name = format!("h{number}");
            pki(&["host", &name, "--address", &switch.address(number)])?;
            Ok::<_, HostError>(folder.join("hosts").join(name).display().to_string())
        };
        let wrapper = |number| [&["env", LOG].map(str::to_owned)[..], &switch.wrapper(number)].concat();
        let to_scheduler = format!("tcp:{}:{SCHEDULER_PORT}", switch.address(SCHEDULER));
        let scheduler_tls = tls(SCHEDULER)?;
        let of_scheduler = ["--tls-dir", &scheduler_tls, "--overcommit-cpu", "64"];
        let scheduler = Scheduler::start_over_tcp(setup, &wrapper(SCHEDULER), &to_scheduler, &of_scheduler)?;
        let mut hosts = Vec::new();
        for number in (0..HOSTS).map(|host| Place::Host(host).number()) {
            let (ip, tls) = (switch.address(number), tls(number)?);
            let listen = format!("tcp:{ip}:{HOST_PORT}");
            let own =
                ["--scheduler", &to_scheduler, "--listen", &listen, "--tls-dir", &tls, "--overlay", &ip];
            let options = [&own[..], options].concat();
            hosts.push(Host::start_over_tcp(setup, &wrapper(number), &options, &operator)?);
        }
        let setup = setup.clone();
        Ok(Self { hosts, scheduler, setup, operator, _entered: entered, switch, _certificates: certificates })
    }

    /// Ends all of it.
    ///
    /// # Errors
    /// A daemon does not end, or something is left.
    pub fn stop(self) -> Result<(), HostError> {
        let stopped: Vec<_> = self.hosts.into_iter().map(Host::stop).collect();
        stopped.into_iter().collect::<Result<(), _>>()?;
        self.scheduler.stop()
    }

    /// What connects them, for what is not cut or mended.
    #[must_use]
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Runs a program in a host's namespace, which must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn on(&self, host: u8, words: &[&str]) -> Result<String, HostError> {
        self.switch.call(Place::Host(host).number(), words)
    }

    /// A host's address on the Ethernet.
    #[must_use]
    pub fn address(&self, host: u8) -> String {
        self.switch.address(Place::Host(host).number())
    }

    /// Loses what one sends to another, or does so no longer.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn lose(&self, from: Place, to: Place, is_lost: bool) -> Result<(), HostError> {
        let (from, to) = (from.number(), to.number());
        if is_lost { self.switch.cut(from, to) } else { self.switch.mend(from, to) }
    }

    /// Pulls a host's cable, or plugs it in again.
    ///
    /// # Errors
    /// The kernel does not let us.
    pub fn plug(&self, host: u8, is_in: bool) -> Result<(), HostError> {
        self.switch.plug(Place::Host(host).number(), is_in)
    }

    /// A `vmctl` command to the scheduler, not started yet.
    #[must_use]
    pub fn vmctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.setup.binary("vmctl"));
        command.env("PATINA_TLS_DIR", &self.operator).args(["--scheduler", &self.scheduler.address()]);
        command.args(arguments);
        command
    }

    /// Runs `vmctl` with the scheduler, which must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn call(&self, arguments: &[&str]) -> Result<String, HostError> {
        succeeded(arguments, &process::run(&mut self.vmctl_command(arguments), b"", CALL_DEADLINE)?)
    }

    /// Runs `vmctl -o json` with the scheduler, which must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0, or it prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value, HostError> {
        parse(self.call(&[&["-o", "json"], arguments].concat())?)
    }
}

fn pki(setup: &Setup, folder: &Path, arguments: &[&str]) -> Result<String, HostError> {
    let mut command = Command::new(setup.binary("vmctl"));
    command.env("PATINA_PKI_DIR", folder).arg("pki").args(arguments);
    succeeded(arguments, &process::run(&mut command, b"", CALL_DEADLINE)?)
}
