//! What the tests share: a host with guests that are created when the first test needs them. They
//! start from images of earlier runs, where there are some.

use crate::family::PARENT;
use libtest_mimic::Failed;
use patina_tests::{
    host::{Host, HostError, tail},
    setup::Setup,
    vm::Vm,
};
use std::{net::TcpListener, sync::OnceLock};

/// The shared guest's name.
pub const SHARED: &str = "shared";
/// The guest's name that has booted.
const BOOTED: &str = "booted";
/// The port of the shared guest that is published on [`Stage::published`].
pub const GUEST_PORT: u16 = 8080;

/// The shared host, and what hosts are made of.
pub struct Stage {
    setup: Setup,
    published: u16,
    host: OnceLock<Result<Host, String>>,
    guest: OnceLock<Result<(), String>>,
    booted: OnceLock<Result<(), String>>,
    parent: OnceLock<Result<(), String>>,
}

impl Stage {
    /// Nothing runs yet.
    pub fn new(setup: Setup) -> Self {
        let published = free_port().unwrap_or_default();
        let (host, guest, booted, parent) = Default::default();
        Self { setup, published, host, guest, booted, parent }
    }

    /// What hosts are made of.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The port of the host on which [`GUEST_PORT`] is published.
    pub fn published(&self) -> u16 {
        self.published
    }

    /// The shared host.
    pub fn host(&self) -> Result<&Host, Failed> {
        let start = || Host::start(&self.setup).map_err(|error| error.to_string());
        self.host.get_or_init(start).as_ref().map_err(Failed::from)
    }

    /// The shared guest of two vCPUs, ready.
    pub fn guest(&self) -> Result<Vm<'_>, Failed> {
        let publish = format!("{}:{GUEST_PORT}", self.published);
        self.ready(&self.guest, SHARED, &["--vcpus", "2", "-p", &publish])
    }

    /// A guest that has booted whatever images there are, ready. Without images, every guest has.
    pub fn booted(&self) -> Result<Vm<'_>, Failed> {
        if self.setup.image_cache.is_none() {
            return self.guest();
        }
        self.ready(&self.booted, BOOTED, &["--cold", "--vcpus", "2"])
    }

    /// The guest of one vCPU that is cloned, ready.
    pub fn parent(&self) -> Result<Vm<'_>, Failed> {
        self.ready(&self.parent, PARENT, &[])
    }

    fn ready(
        &self,
        cell: &OnceLock<Result<(), String>>,
        name: &str,
        arguments: &[&str],
    ) -> Result<Vm<'_>, Failed> {
        let host = self.host()?;
        let run = || match host.run(name, arguments) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error}\n{}", explain(host, name))),
        };
        cell.get_or_init(run).as_ref().map_err(Failed::from)?;
        Ok(host.vm(name))
    }

    /// Ends everything, and fails when something is left.
    pub fn close(self) -> Result<(), HostError> {
        match self.host.into_inner() {
            Some(Ok(host)) => host.stop(),
            _ => Ok(()),
        }
    }
}

/// Console, vmm log and vmmd log: what helps to see why a guest did not do its work.
pub fn explain(host: &Host, name: &str) -> String {
    let log = |arguments: &[&str]| match host.vmctl(arguments) {
        Ok(output) => tail(&output.text(), 30),
        Err(error) => error.to_string(),
    };
    let (console, vmm) = (log(&["logs", name]), log(&["logs", "--vmm", name]));
    format!("console:\n{console}\nvmm:\n{vmm}\nvmmd:\n{}", host.vmmd_log())
}

/// A TCP port of the host that nobody uses at this moment.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
