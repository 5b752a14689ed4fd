//! Carries out what the control thread orders of the VM: freeze, start, prefault list and free
//! pages.

use super::Machine;
use super::freeze_error::FreezeError;
use super::generation::{Generation, Ram};
use super::lazy::Filling;
use super::start::GenerationFiles;
use crate::control::vm::{Failure, Reply, VmControl};
use crate::free_pages::{self, image::Image};
use crate::note::note;
use patina_abi::link::{CallError, Vmcoreinfo};
use patina_control::config::Member;
use patina_control::end::{End, EndKind};
use patina_control::memfd;
use patina_control::messages::{FREE_PAGES_MAX_BYTES, Opened};
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

impl VmControl for Machine {
    fn freeze(&mut self, is_held: bool, until: Option<Instant>) -> Result<Reply, Failure> {
        let generation = Self::freeze(self, is_held, until).map_err(|error| match error {
            FreezeError::Late => {
                Failure::NotPrepared(CallError { code: libc::ETIMEDOUT, message: error.to_string() })
            }
            error => failure(&error, FreezeError::is_fatal(&error)),
        })?;
        let Generation { state, layers, frozen } = generation;
        let mut files = vec![sealed("patina-state", &state)?];
        files.extend(layers);
        Ok(Reply { opened: Opened::Frozen(frozen), files })
    }

    fn start(
        &mut self,
        mut descriptors: Vec<OwnedFd>,
        filling: Vec<u8>,
        member: Option<Box<Member>>,
    ) -> Result<Reply, Failure> {
        let pager = if filling.is_empty() { None } else { descriptors.pop() };
        let filling = pager.map(|pager| Filling { layers: filling, pager: UnixStream::from(pager) });
        let mut files = descriptors.into_iter().map(File::from);
        let (Some(state), Some(prefault_list)) = (files.next(), files.next()) else {
            return Err(Failure::Refused("start: the request has no state or no prefault list".into()));
        };
        let files = GenerationFiles { state, prefault_list, layers: files.collect(), filling };
        let started = self.take_member(member).and_then(|()| Self::start(self, files));
        let entered_ns = started.map_err(|error| failure(&error, error.is_fatal()))?;
        Ok(Reply { opened: Opened::Started { entered_ns }, files: Vec::new() })
    }

    fn started(&mut self) {
        // The answer was sent already, and the guest runs meanwhile.
        self.prefault();
    }

    fn ready(&mut self) {
        if let Err(error) = self.note_ready() {
            note(&patina_daemon::chain(&error));
        }
    }

    fn prefault_list(&mut self) -> Result<Reply, Failure> {
        let bytes = bytes_of_list(&self.prefault_list);
        Ok(Reply { opened: Opened::Ok, files: vec![sealed("patina-prefault-list", &bytes)?] })
    }

    fn free_pages(&mut self, frozen: u64, note: Option<Vmcoreinfo>) -> Result<Reply, Failure> {
        const RANGES_MAX: usize = (FREE_PAGES_MAX_BYTES / 16) as usize;
        let refused = |reason: &str| Failure::Refused(format!("find the free pages: {reason}"));
        let note = note.ok_or_else(|| refused("the guest's kernel or its agent does not say where"))?;
        let Ram::View(layers) = &self.ram else { return Err(refused("the VM was never frozen")) };
        if frozen == 0 || frozen != self.frozen.number() {
            return Err(refused("the VM has been frozen since"));
        }
        let found = free_pages::find(&Image::new(layers), note, RANGES_MAX);
        let found = found.map_err(|error| refused(&patina_daemon::chain(&error)))?;
        let files = vec![sealed("patina-free-pages", &bytes_of_list(&found))?];
        Ok(Reply { opened: Opened::Ok, files })
    }

    fn finish(&mut self) {
        Self::finish(self);
    }
}

fn failure(error: &dyn std::error::Error, is_fatal: bool) -> Failure {
    let reason = patina_daemon::chain(error);
    if is_fatal { Failure::Ended(End { kind: EndKind::VmmError, reason }) } else { Failure::Refused(reason) }
}

/// Ranges as they are sent: pairs of first byte and length.
fn bytes_of_list(ranges: &[Range<u64>]) -> Vec<u8> {
    let numbers = ranges.iter().flat_map(|range| [range.start, range.end - range.start]);
    numbers.flat_map(u64::to_le_bytes).collect()
}

/// A sealed file in memory for a reply.
fn sealed(name: &str, bytes: &[u8]) -> Result<Arc<File>, Failure> {
    let file = memfd::sealed(name, bytes);
    file.map(Arc::new).map_err(|error| Failure::Refused(format!("make the file {name} in memory: {error}")))
}
