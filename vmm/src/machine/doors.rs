//! Where connections of the control socket go that are not the control connection.

use crate::api::control::Opened;
use crate::control::mailbox::Mailbox;
use crate::control::server::{Doors, answer};
use crate::devices::console::Console;
use crate::devices::virtio::vsock::{HostPorts, VsockDialer};
use crate::note::note;
use patina_abi::LINK_PORT;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The ways into a VM.
pub struct VmDoors {
    /// The serial console.
    pub console: Arc<Console>,
    /// Dials vsock ports of the guest.
    pub dialer: VsockDialer,
}

impl Doors for VmDoors {
    fn dial(&self, port: u32, stream: UnixStream) {
        // The answer goes before the first byte from the guest: the device pumps only after this has returned.
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
                    Err(error) => Opened::Error(format!("dial guest port {port}: {}", crate::chain(&error))),
                };
                answer(&peer, &opened);
            }),
        );
    }

    fn console(&self, stream: UnixStream) {
        // The client must see the answer before the console's bytes, so it goes first; a refusal closes the stream.
        if answer(&stream, &Opened::Ok)
            && let Err(error) = self.console.add_client(stream)
        {
            note(&crate::chain(&error));
        }
    }
}

/// The ports that a guest can reach on its host: the agent's link and no other.
pub struct LinkPort(pub Mailbox);

impl HostPorts for LinkPort {
    fn connect(&mut self, port: u32) -> Option<UnixStream> {
        if port != LINK_PORT {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        self.0.send_link(ours).then_some(theirs)
    }
}
