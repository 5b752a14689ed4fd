//! Passes connections of the control socket to the guest's vsock ports and console.

use crate::control::mailbox::Mailbox;
use crate::control::opening::answer;
use crate::control::vm::Connections;
use crate::devices::console::Console;
use crate::devices::virtio::net::NetworkGate;
use crate::devices::virtio::vsock::{HostPorts, VsockDialer};
use crate::note::note;
use patina_abi::LINK_PORT;
use patina_control::messages::Opened;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The parts of a VM that connections lead to.
pub struct VmConnections {
    /// The serial console.
    pub console: Arc<Console>,
    /// Dials vsock ports of the guest.
    pub dialer: VsockDialer,
    /// Stops the network. In a clone the gate is closed until the clone has its identity.
    pub network_gate: NetworkGate,
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
}

/// The ports that a guest can reach on its host: the agent's link and no other.
pub struct LinkPort(pub Mailbox);

impl LinkPort {
    fn link(&self, is_carried_on: bool) -> Option<UnixStream> {
        let (ours, theirs) = UnixStream::pair().ok()?;
        self.0.send_link(ours, is_carried_on).then_some(theirs)
    }
}

impl HostPorts for LinkPort {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        if port != LINK_PORT {
            return None;
        }
        self.link(false)
    }

    fn carry_on(&mut self, port: u32) -> Option<UnixStream> {
        if port != LINK_PORT {
            return None;
        }
        self.link(true)
    }
}
