//! virtio-vsock in user space: streams between ports of the guest and Unix streams of the host.
//!
//! - `packet`: headers. `connection`: one connection, as pure logic.
//! - `stream`: a connection with its stream on the host. `muxer`: all connections.
//! - `dialer`: how other threads open connections to the guest.
//!
//! No crate parses the headers here, because a driver may split a packet into pieces of any size.

pub(crate) mod connection;
mod dialer;
mod muxer;
mod packet;
pub mod persist;
mod stream;

pub use dialer::{DialError, Done, VsockDialer};
pub use packet::HOST_CID;

use self::persist::VsockState;
use super::DeviceState;
use super::interrupt::Interrupt;
use super::persist::RestoreError;
use super::queue::{Chain, QueueError, VirtQueue};
use super::{DeviceError, Io, Next, VirtioDevice, read_config_bytes};
use crate::devices::event_loop::Source;
use crate::devices::{Memory, sys};
use crate::persist::Persist;
use connection::Ports;
use muxer::Muxer;
use packet::HEADER_BYTES;
use patina_control::best_effort;
use std::io;
use std::os::unix::net::UnixStream;

/// The virtio type of a socket device.
pub const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
/// Most connections at a time, in both directions together.
pub const CONNECTIONS_MAX: usize = 256;

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZES: [u16; 3] = [64, 64, 8];

const TOKEN_STREAMS: u32 = 0;
const TOKEN_DIALER: u32 = 1;
/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
#[error("create the vsock's events")]
pub struct VsockError(#[source] io::Error);

/// Accepts the guest's connections to ports of the host.
pub trait HostPorts: Send {
    /// The guest connects to a port of the host: the stream to connect it with, or none to refuse.
    /// Called on the device thread, so it must not block.
    fn connect(&mut self, ports: Ports) -> Option<UnixStream>;

    /// A clone's guest has a connection to a port from its parent. Returns the stream with which it
    /// continues, or none to reset it. Called before the device runs.
    fn carry_on(&mut self, ports: Ports) -> Option<UnixStream>;
}

/// Whether the guest knows that all its connections are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResetNews {
    /// It knows, or there was nothing to tell.
    Known,
    /// It is still to be told.
    Owed,
    /// It was told. It returns the event's buffer after it has handled the event, and so makes more
    /// available.
    Told { made_available: u16 },
}

/// The device.
pub struct Vsock {
    muxer: Muxer,
    dialer: VsockDialer,
    config: [u8; 8],
    chain: Chain,
    reset_news: ResetNews,
    /// The guest's packets wait until it has taken refusals, or the news of a reset.
    is_held: bool,
}

impl Vsock {
    /// A device for a guest with this address (3 or above), and the handle that dials it.
    pub fn new(guest_cid: u64, host_ports: Box<dyn HostPorts>) -> Result<(Self, VsockDialer), VsockError> {
        let dialer = VsockDialer::new().map_err(VsockError)?;
        let device = Self {
            muxer: Muxer::new(guest_cid, host_ports).map_err(VsockError)?,
            dialer: dialer.clone(),
            config: guest_cid.to_le_bytes(),
            chain: Chain::default(),
            reset_news: ResetNews::Known,
            is_held: false,
        };
        Ok((device, dialer))
    }

    /// Handles the guest's packets, then makes packets for it.
    fn exchange(&mut self, io: &mut Io<'_>) -> Result<Next, DeviceError> {
        self.is_held = !self.may_pass(io)? || self.muxer.is_congested();
        let mut next = Next::Wait;
        if !self.is_held {
            let muxer = &mut self.muxer;
            next = io.serve(TX, &mut self.chain, |memory, chain| {
                // A packet without a whole header says nothing.
                if chain.readable_bytes() >= HEADER_BYTES as u32 {
                    muxer.packet(memory, chain).map_err(DeviceError::queue(TX))?;
                }
                Ok(0)
            })?;
        }
        match self.output(io)? {
            Next::Wait => Ok(next),
            again => Ok(if next == Next::Wait { again } else { next }),
        }
    }

    /// Makes packets for the guest as long as it has buffers, for at most one round of its queue.
    fn output(&mut self, io: &mut Io<'_>) -> Result<Next, DeviceError> {
        if !self.may_pass(io)? {
            return Ok(Next::Wait);
        }
        let (memory, failed) = (io.memory, DeviceError::queue(RX));
        let Some(queue) = io.queues.get_mut(RX) else { return Ok(Next::Wait) };
        let (mut used, mut waits) = (false, queue.size() == 0);
        for _ in 0..queue.size() {
            if !self.muxer.may_have_output() {
                waits = true;
                break;
            }
            if queue.next(memory, &mut self.chain).map_err(&failed)? {
                match self.muxer.next_packet(memory, &self.chain).map_err(&failed)? {
                    Some(length) => {
                        queue.add_used(memory, self.chain.head(), length).map_err(&failed)?;
                        used = true;
                    }
                    None => queue.put_back(1),
                }
            } else if !queue.wait_for_kick(memory).map_err(&failed)? {
                waits = true;
                break;
            }
        }
        if used {
            queue.signal(memory, io.interrupt).map_err(&failed)?;
        }
        if self.is_held && !self.muxer.is_congested() {
            return Ok(Next::Again(TX));
        }
        Ok(if waits { Next::Wait } else { Next::Again(RX) })
    }

    /// Whether packets may pass. Until the guest knows of a reset they may not, or it would mistake
    /// new connections for old ones. Tells the guest, and checks whether it knows.
    fn may_pass(&mut self, io: &mut Io<'_>) -> Result<bool, DeviceError> {
        let failed = DeviceError::queue(EVENT);
        if self.reset_news == ResetNews::Known {
            return Ok(true);
        }
        let packets_wait = match io.queues.get(TX) {
            Some(queue) => queue.has_chains(io.memory).map_err(DeviceError::queue(TX))?,
            None => false,
        };
        let Some(queue) = io.queues.get_mut(EVENT).filter(|queue| queue.size() > 0) else {
            self.reset_news = ResetNews::Known;
            return Ok(true);
        };
        if self.reset_news == ResetNews::Owed {
            self.send_event(queue, io.memory, io.interrupt).map_err(&failed)?;
        }
        if let ResetNews::Told { made_available } = self.reset_news {
            // A kick for it costs the guest an exit: only when something waits for it.
            let is_known = queue.made_available(io.memory).map_err(&failed)? != made_available
                || (packets_wait || self.muxer.may_have_output())
                    && queue.wait_beyond(io.memory, made_available).map_err(&failed)?;
            if is_known {
                self.reset_news = ResetNews::Known;
            }
        }
        Ok(self.reset_news == ResetNews::Known)
    }

    /// Tells the guest that all connections are gone, if it has a buffer to be told in.
    fn send_event(
        &mut self,
        queue: &mut VirtQueue,
        memory: &Memory,
        interrupt: &Interrupt,
    ) -> Result<(), QueueError> {
        // Asked again when a buffer came between looking and asking for a kick.
        for _ in 0..2 {
            // Read before the guest can know, so that its next buffer is one more.
            let made_available = queue.made_available(memory)?;
            if queue.next(memory, &mut self.chain)? {
                self.chain.write(memory, 0, &TRANSPORT_RESET)?;
                queue.add_used(memory, self.chain.head(), TRANSPORT_RESET.len() as u32)?;
                self.reset_news = ResetNews::Told { made_available };
                return queue.signal(memory, interrupt);
            }
            if !queue.wait_for_kick(memory)? {
                break;
            }
        }
        Ok(())
    }

    fn dialer_event(&mut self, is_active: bool) {
        best_effort(self.dialer.changed().read(), "nothing to read means that the news were already taken");

        for dial in self.dialer.take() {
            if is_active {
                self.muxer.dial(dial);
            } else {
                (dial.done)(Err(DialError::NotReady));
            }
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn queue_event(&mut self, io: &mut Io<'_>, index: usize) -> Result<Next, DeviceError> {
        match index {
            // With nothing held back, a kick of the receive queue only means room. One of the event
            // queue may mean that the guest knows of a reset.
            RX if !self.is_held => self.output(io),
            _ => self.exchange(io),
        }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![
            Source { fd: self.muxer.ready(), token: TOKEN_STREAMS, edge: false },
            Source { fd: sys::borrow(self.dialer.changed()), token: TOKEN_DIALER, edge: false },
        ]
    }

    fn source_event(&mut self, io: Option<&mut Io<'_>>, token: u32) -> Result<Next, DeviceError> {
        match token {
            TOKEN_DIALER => self.dialer_event(io.is_some()),
            _ => self.muxer.stream_events(),
        }
        io.map_or(Ok(Next::Wait), |io| self.output(io))
    }

    fn reset(&mut self) {
        self.muxer.reset();
        self.reset_news = ResetNews::Known;
        self.is_held = false;
    }

    fn save(&self) -> DeviceState {
        let Ok(state) = VsockState::save(self);
        DeviceState::Vsock(state)
    }

    fn restore(&mut self, state: &DeviceState, is_active: bool) -> Result<(), RestoreError> {
        let DeviceState::Vsock(state) = state else { return Err(state.is_not("vsock")) };
        state.restore((self, is_active))
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.muxer.reset();
        self.dialer.close();
    }
}

#[cfg(test)]
#[path = "vsock_test.rs"]
mod tests;
