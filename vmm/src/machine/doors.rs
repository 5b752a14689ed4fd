//! Where connections of the control socket go that are not the control connection.

use super::build::Machine;
use super::freeze::Generation;
use crate::api::control::Opened;
use crate::api::end::{End, EndKind};
use crate::control::mailbox::Mailbox;
use crate::control::server::{Doors, Freezer, answer};
use crate::devices::console::Console;
use crate::devices::virtio::net::Link;
use crate::devices::virtio::vsock::{HostPorts, VsockDialer};
use crate::note::note;
use patina_abi::LINK_PORT;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// The ways into a VM.
pub struct VmDoors {
    /// The serial console.
    pub console: Arc<Console>,
    /// Dials vsock ports of the guest.
    pub dialer: VsockDialer,
    /// The network's switch: shut in a clone until it is somebody.
    pub link: Link,
}

impl Doors for VmDoors {
    fn ready(&self) {
        self.link.set_open(true);
    }

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

impl Freezer for Machine {
    fn freeze(&mut self, stream: UnixStream) -> Option<End> {
        match Machine::freeze(self) {
            Ok(generation) => {
                if let Err(error) = send_generation(&stream, &generation) {
                    note(&format!("send the generation: {error}"));
                }
                None
            }
            Err(error) => {
                let reason = crate::chain(&error);
                answer(&stream, &Opened::Error(reason.clone()));
                error.is_fatal().then_some(End { kind: EndKind::VmmError, reason })
            }
        }
    }
}

/// The answer, with the generation's state (in a memfd of its own) and RAM.
fn send_generation(stream: &UnixStream, generation: &Generation) -> std::io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut state =
        File::from(memfd_create("patina-state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    state.write_all(&generation.state)?;
    fcntl_add_seals(&state, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    let mut line = serde_json::to_vec(&Opened::Ok)?;
    line.push(b'\n');
    let descriptors = [state.as_fd(), generation.memfd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(&descriptors));
    // A fresh socket takes a line whole.
    sendmsg(stream, &[IoSlice::new(&line)], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
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
