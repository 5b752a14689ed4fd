//! Where connections of the control socket go that are not the control connection.

use super::build::Machine;
use super::freeze::Generation;
use super::start::{Given, StartError};
use crate::control::mailbox::Mailbox;
use crate::control::opening::answer;
use crate::control::vm::{Doors, FreezeOutcome, Freezer, StartOutcome};
use crate::devices::console::Console;
use crate::devices::virtio::net::Link;
use crate::devices::virtio::vsock::{HostPorts, VsockDialer};
use crate::note::note;
use patina_abi::LINK_PORT;
use patina_control::end::{End, EndKind};
use patina_control::messages::Opened;
use patina_control::{memfd, rights};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
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
    fn freeze(&mut self, stream: UnixStream, is_held: bool) -> FreezeOutcome {
        match Machine::freeze(self, is_held) {
            Ok(generation) => match send_generation(&stream, &generation) {
                Ok(()) => FreezeOutcome::Frozen,
                Err(error) => {
                    note(&format!("send the generation: {error}"));
                    FreezeOutcome::Refused
                }
            },
            Err(error) => {
                let reason = crate::chain(&error);
                answer(&stream, &Opened::Error(reason.clone()));
                if error.is_fatal() {
                    FreezeOutcome::Ended(End { kind: EndKind::VmmError, reason })
                } else {
                    FreezeOutcome::Refused
                }
            }
        }
    }

    fn start(&mut self, descriptors: Vec<OwnedFd>, stream: UnixStream) -> StartOutcome {
        let mut files = descriptors.into_iter().map(File::from);
        let (Some(state), Some(touched)) = (files.next(), files.next()) else {
            answer(
                &stream,
                &Opened::Error("start: the call came without a state and a list of pages".into()),
            );
            return StartOutcome::Refused;
        };
        match Machine::start(self, Given { state, touched, layers: files.collect() }) {
            Ok(entered_ns) => {
                answer(&stream, &Opened::Started { entered_ns });
                // Whoever waits for the answer need not wait for this, and the guest runs beside it.
                self.copy_ahead();
                StartOutcome::Started
            }
            Err(error) => {
                let reason = crate::chain(&error);
                answer(&stream, &Opened::Error(reason.clone()));
                match error {
                    StartError::Running => StartOutcome::Refused,
                    _ => StartOutcome::Ended(End { kind: EndKind::VmmError, reason }),
                }
            }
        }
    }

    fn ready(&mut self) {
        if let Err(error) = self.note_ready() {
            note(&crate::chain(&error));
        }
    }

    fn touched(&mut self, stream: UnixStream) {
        let bytes: Vec<u8> = self
            .touched
            .iter()
            .flat_map(|range| [range.start, range.end - range.start])
            .flat_map(u64::to_le_bytes)
            .collect();
        let sent = memfd::sealed("patina-touched", &bytes)
            .and_then(|file| send_with(&stream, &Opened::Ok, &[file.as_fd()]));
        if let Err(error) = sent {
            note(&format!("send the touched pages: {error}"));
        }
    }
}

/// The answer, with the generation's state and the memfds of its RAM.
fn send_generation(stream: &UnixStream, generation: &Generation) -> std::io::Result<()> {
    let state = memfd::sealed("patina-state", &generation.state)?;
    let mut descriptors = vec![state.as_fd()];
    descriptors.extend(generation.layers.iter().map(AsFd::as_fd));
    send_with(stream, &Opened::Frozen(generation.frozen), &descriptors)
}

/// An answer that comes with descriptors.
fn send_with(stream: &UnixStream, opened: &Opened, descriptors: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(opened)?;
    line.push(b'\n');
    rights::send(stream, &line, descriptors)
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
