//! What the control thread asks of the VM, with the answers.

use super::Machine;
use super::generation::Generation;
use super::start::{Given, StartError};
use crate::control::opening::answer;
use crate::control::vm::{FreezeOutcome, Freezer, StartOutcome};
use crate::note::note;
use patina_control::end::{End, EndKind};
use patina_control::messages::Opened;
use patina_control::{memfd, rights};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

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
