//! Passes connections of the control socket to the guest's vsock ports and console.

use super::pager_link::{LazyError, PagerLink};
use crate::control::mailbox::{Mailbox, Origin};
use crate::control::opening::answer;
use crate::control::vm::Connections;
use crate::devices::console::Console;
use crate::devices::virtio::net::NetworkGate;
use crate::devices::virtio::vsock::connection::Ports;
use crate::devices::virtio::vsock::{HostPorts, VsockDialer};
use crate::note::note;
use patina_abi::{AGENT_PORTS, LINK_PORT};
use patina_control::messages::Opened;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The parts of a VM that connections lead to.
pub struct VmConnections {
    console: Arc<Console>,
    dialer: VsockDialer,
    /// Stops the network. In a clone the gate is closed until the clone has its identity.
    network_gate: NetworkGate,
    pager: PagerLink,
}

impl VmConnections {
    /// Connections to these parts.
    #[must_use]
    pub fn new(
        console: &Arc<Console>,
        dialer: VsockDialer,
        network_gate: NetworkGate,
        pager: &PagerLink,
    ) -> Self {
        Self { console: Arc::clone(console), dialer, network_gate, pager: pager.clone() }
    }
}

impl Connections for VmConnections {
    fn ready(&self) {
        self.network_gate.set_open(true);
    }

    fn dial(&self, port: u32, stream: UnixStream) {
        // The answer precedes the first byte from the guest, because the device moves data only
        // after this returns.
        let peer = match stream.try_clone() {
            Ok(peer) => peer,
            Err(error) => {
                answer(&stream, &Opened::Error(format!("dial guest port {port}: {error}")));
                return;
            }
        };
        self.dialer.dial(
            port,
            stream,
            Box::new(move |result| {
                let opened = match result {
                    Ok(()) => Opened::Ok,
                    Err(error) => {
                        Opened::Error(format!("dial guest port {port}: {}", patina_daemon::chain(&error)))
                    }
                };
                answer(&peer, &opened);
            }),
        );
    }

    fn console(&self, stream: UnixStream) {
        if let Err(error) = self.console.add_client(stream) {
            note(&patina_daemon::chain(&error));
        }
    }

    fn attach(&self, pager: OwnedFd, stream: UnixStream) {
        let attached = move |outcome: Result<(), LazyError>| {
            let opened =
                outcome.map_or_else(|error| Opened::Error(patina_daemon::chain(&error)), |()| Opened::Ok);
            answer(&stream, &opened);
        };
        self.pager.attach(UnixStream::from(pager), Box::new(attached));
    }
}

/// The ports that a guest can reach on its host: the agent's link and no other.
pub struct LinkPort(pub Mailbox);

impl LinkPort {
    fn link(&self, ports: Ports, is_carried_on: bool) -> Option<UnixStream> {
        if ports.host != LINK_PORT {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        let origin = Origin { is_carried_on, is_privileged: AGENT_PORTS.contains(&ports.guest) };
        self.0.send_link(ours, origin).then_some(theirs)
    }
}

impl HostPorts for LinkPort {
    fn connect(&mut self, ports: Ports) -> Option<UnixStream> {
        self.link(ports, false)
    }

    fn carry_on(&mut self, ports: Ports) -> Option<UnixStream> {
        self.link(ports, true)
    }
}
