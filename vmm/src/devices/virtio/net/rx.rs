//! Receives frames for the guest, one at a time: from the port, and answers of the vmm's own.

use super::frame::Answer;
use super::inbound::{self, Verdict};
use super::{FRAME_MAX_BYTES, FramePort, HEADER_BYTES, NetworkGate, Owner};
use crate::devices::virtio::queue::{Chain, QueueError};
use crate::devices::virtio::{DeviceError, Io, Next};
use patina_control::best_effort;
use rustix::io::Errno;
use std::collections::VecDeque;

/// Where the number of merged buffers stands in the header.
const BUFFERS_AT: u32 = 10;
/// Frames thrown away at most when the gate opens; a tap holds fewer.
const DISCARD_MAX_FRAMES: usize = 8192;
/// Answers of our own kept at most. A guest that gets none for a segment sends it again.
pub(super) const ANSWERS_MAX: usize = 16;

/// The frame that waits for the guest's buffers, if any.
#[derive(Default)]
pub struct Receiver {
    frame: Vec<u8>,
    /// Length of the frame that waits, 0 for none.
    waiting_bytes: usize,
    chains: Vec<Chain>,
    answers: VecDeque<Answer>,
}

/// The outcome of a frame's delivery.
#[derive(Debug, PartialEq, Eq)]
enum Delivery {
    Delivered,
    /// The guest has no buffers for it now, and kicks when it has more.
    Waits,
    /// More buffers came just now: try again.
    Again,
    /// It does not fit in all the buffers that the guest can have.
    TooLong,
}

/// The outcome of a search for the next frame.
#[derive(Debug, PartialEq, Eq)]
enum Fetched {
    /// A frame, which waits for the guest's buffers now.
    Frame,
    /// A frame that is not for the guest. There may be more.
    Other,
    /// Nothing for now.
    Nothing,
}

impl Receiver {
    /// Receives until the port is empty, the guest has no buffers, or the turn ends.
    pub fn run(
        &mut self,
        io: &mut Io<'_>,
        index: usize,
        (port, gate, owner): (&dyn FramePort, &NetworkGate, &Owner),
        mergeable: bool,
    ) -> Result<Next, DeviceError> {
        let failed = DeviceError::queue(index);
        let (mut next, mut used) = (Next::Again(index), false);
        for _ in 0..io.queues.get(index).map_or(0, |queue| queue.size()) {
            match if gate.is_open() { self.fetch(port, owner)? } else { Fetched::Nothing } {
                Fetched::Frame => {}
                Fetched::Other => continue,
                Fetched::Nothing => {
                    next = Next::Wait;
                    break;
                }
            }
            match self.deliver(io, index, mergeable).map_err(&failed)? {
                Delivery::Delivered => (self.waiting_bytes, used) = (0, true),
                Delivery::TooLong => self.waiting_bytes = 0,
                Delivery::Again => {}
                Delivery::Waits => {
                    next = Next::Wait;
                    break;
                }
            }
        }
        if let Some(queue) = io.queues.get_mut(index) {
            if queue.size() == 0 {
                return Ok(Next::Wait);
            }
            if used {
                queue.signal(io.memory, io.interrupt).map_err(&failed)?;
            }
        }
        Ok(next)
    }

    /// Keeps a frame for the guest, which goes before those of the port; drops it when there are
    /// too many.
    pub fn answer(&mut self, answer: Answer) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push_back(answer);
        }
    }

    /// There are frames from [`Receiver::answer`].
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Takes the next frame unless one waits.
    fn fetch(&mut self, port: &dyn FramePort, owner: &Owner) -> Result<Fetched, DeviceError> {
        if self.waiting_bytes > 0 {
            return Ok(Fetched::Frame);
        }
        self.frame.resize(FRAME_MAX_BYTES, 0);
        if let Some(answer) = self.answers.pop_front() {
            for (to, from) in self.frame.iter_mut().zip(answer) {
                *to = from;
            }
            self.waiting_bytes = answer.len();
            return Ok(Fetched::Frame);
        }
        loop {
            match rustix::io::read(port.fd(), &mut self.frame[..]) {
                Ok(0) => return Ok(Fetched::Nothing),
                // A frame without a header cannot be passed to a guest.
                Ok(length) => match inbound::judge(self.frame.get(..length).unwrap_or_default(), owner) {
                    Verdict::Deliver => {
                        self.waiting_bytes = length;
                        return Ok(Fetched::Frame);
                    }
                    Verdict::Drop => return Ok(Fetched::Other),
                    Verdict::Answer(answer) => {
                        best_effort(
                            rustix::io::write(port.fd(), &answer),
                            "as a network may, it loses what the port does not take",
                        );
                        return Ok(Fetched::Other);
                    }
                },
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Fetched::Nothing),
                Err(error) => return Err(DeviceError::io("receive from the tap")(error.into())),
            }
        }
    }

    fn deliver(&mut self, io: &mut Io<'_>, index: usize, mergeable: bool) -> Result<Delivery, QueueError> {
        let Some(queue) = io.queues.get_mut(index) else { return Ok(Delivery::Waits) };
        let most = if mergeable { queue.size() } else { 1 };
        let (mut taken, mut room_bytes) = (0_u16, 0_usize);
        while room_bytes < self.waiting_bytes {
            if taken == most {
                // No more buffers can come: they are all here, and go back to the guest's next
                // frame.
                queue.put_back(taken);
                return Ok(Delivery::TooLong);
            }
            let at = usize::from(taken);
            if self.chains.len() == at {
                self.chains.push(Chain::default());
            }
            let Some(chain) = self.chains.get_mut(at) else { break };
            if !queue.next(io.memory, chain)? {
                // Asked while the buffers are still taken: the kick is to come for those beyond
                // them.
                let more = queue.wait_for_kick(io.memory)?;
                queue.put_back(taken);
                return Ok(if more { Delivery::Again } else { Delivery::Waits });
            }
            room_bytes = room_bytes.saturating_add(chain.writable_bytes() as usize);
            taken += 1;
        }
        let header = self.frame.get_mut(BUFFERS_AT as usize..HEADER_BYTES);
        if let Some(buffers) = header {
            buffers.copy_from_slice(&taken.to_le_bytes());
        }
        let mut rest = self.frame.get(..self.waiting_bytes).unwrap_or_default();
        for chain in self.chains.iter().take(usize::from(taken)) {
            let (now, later) = rest.split_at(rest.len().min(chain.writable_bytes() as usize));
            chain.write(io.memory, 0, now)?;
            queue.add_used(io.memory, chain.head(), now.len() as u32)?;
            rest = later;
        }
        Ok(Delivery::Delivered)
    }

    /// Discards all waiting frames, here and in the port.
    pub fn discard(&mut self, port: &dyn FramePort) {
        self.waiting_bytes = 0;
        self.answers.clear();
        // Enough for the header; of the rest of a frame the kernel disposes.
        let mut start = [0; 64];
        for _ in 0..DISCARD_MAX_FRAMES {
            match rustix::io::read(port.fd(), &mut start) {
                Ok(1..) | Err(Errno::INTR) => {}
                Ok(0) | Err(_) => return,
            }
        }
    }
}
