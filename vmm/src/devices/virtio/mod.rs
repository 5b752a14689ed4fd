//! Virtio devices on an MMIO transport (virtio 1.2).
//!
//! - [`mmio`]: the register window that vCPUs read and write, and what owns a device and its
//!   queues.
//! - [`handshake`]: status and feature negotiation, as pure logic.
//! - [`queue`]: virtqueues and descriptor chains, checked against the guest's RAM.
//! - [`interrupt`]: how a device interrupts the guest.
//! - [`persist`]: the errors of a restore. Each device has its own state, and [`DeviceState`]
//!   unites them.
//! - [`block`], [`net`], [`rng`], [`vsock`]: the devices.

pub mod block;
pub mod handshake;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod persist;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;

use super::Memory;
use super::event_loop::Source;
use crate::persist::Persist;
use block::persist::BlockState;
use interrupt::Interrupt;
use patina_snapshot::layout::{Decoder, Encoder, Layout, LayoutError};
use persist::RestoreError;
use queue::{Chain, QueueError, VirtQueue};
use std::convert::Infallible;
use std::io;
use std::time::{Duration, Instant};
use vsock::persist::VsockState;

/// What a device does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Waits for an event.
    Wait,
    /// Has more to do, but lets the other devices go first: handle this queue again.
    Again(usize),
}

/// Why a device stopped: it sets DEVICE_NEEDS_RESET and does nothing until the guest resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The guest broke a queue.
    #[error("handle queue {index}")]
    Queue {
        /// The queue's index in its device.
        index: usize,
        /// What is wrong with the queue.
        #[source]
        source: QueueError,
    },
    /// The host's side of the device failed.
    #[error("{operation}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl DeviceError {
    /// For `map_err` at an I/O operation.
    pub fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }

    /// For `map_err` at a queue operation.
    pub fn queue(index: usize) -> impl Fn(QueueError) -> Self {
        move |source| Self::Queue { index, source }
    }
}

/// What an active device works with.
pub struct Io<'a> {
    /// Its queues, as many as [`VirtioDevice::queue_max_sizes`]; those that the guest did not set
    /// up are empty for ever.
    pub queues: &'a mut [VirtQueue],
    /// The guest's RAM.
    pub memory: &'a Memory,
    /// To call the guest.
    pub interrupt: &'a Interrupt,
    /// The features that the guest accepted.
    pub features: u64,
}

/// Most bytes of chains that a queue's turn may take, besides those of its last chain.
const TURN_MAX_BYTES: u64 = 1 << 20;
/// How long a queue's turn may take, besides its last chain.
const TURN_MAX: Duration = Duration::from_millis(1);

impl Io<'_> {
    /// Handles the chains of a queue one by one. `handle` returns how many bytes it wrote into
    /// each. The turn ends after as many chains as the queue holds, after `TURN_MAX_BYTES`, or
    /// after `TURN_MAX`. So a guest that keeps the queue full cannot delay other devices, a stop of
    /// the devices, or a vCPU that needs the device's registers.
    pub fn serve(
        &mut self,
        index: usize,
        chain: &mut Chain,
        mut handle: impl FnMut(&Memory, &Chain) -> Result<u32, DeviceError>,
    ) -> Result<Next, DeviceError> {
        let (memory, failed) = (self.memory, DeviceError::queue(index));
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.size() > 0) else {
            return Ok(Next::Wait);
        };
        queue.no_kicks(memory).map_err(&failed)?;
        let (mut next, mut used) = (Next::Again(index), false);
        let (began, mut bytes) = (Instant::now(), 0);
        for _ in 0..queue.size() {
            if queue.next(memory, chain).map_err(&failed)? {
                let written = handle(memory, chain)?;
                queue.add_used(memory, chain.head(), written).map_err(&failed)?;
                used = true;
                bytes += u64::from(chain.readable_bytes()) + u64::from(chain.writable_bytes());
                if bytes >= TURN_MAX_BYTES || began.elapsed() >= TURN_MAX {
                    break;
                }
            } else if !queue.wait_for_kick(memory).map_err(&failed)? {
                next = Next::Wait;
                break;
            }
        }
        if used {
            queue.signal(memory, self.interrupt).map_err(&failed)?;
        }
        Ok(next)
    }
}

/// A device behind a transport. All calls come with the transport's lock held; those with [`Io`]
/// come from the device thread, except [`VirtioDevice::activate`].
pub trait VirtioDevice: Send {
    /// The virtio device type.
    fn device_type(&self) -> u32;
    /// Greatest size of each queue, powers of two.
    fn queue_max_sizes(&self) -> &[u16];
    /// The features offered, besides those of the transport (see
    /// [`handshake::TRANSPORT_FEATURES`]).
    fn features(&self) -> u64;
    /// Reads the configuration space; what lies beyond it stays as it is.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes the configuration space; by default there is nothing to write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The guest's driver is ready. Called on a vCPU thread, so it must not touch the queues; every
    /// queue gets a [`VirtioDevice::queue_event`] right afterwards.
    fn activate(&mut self, _features: u64) -> Result<(), DeviceError> {
        Ok(())
    }
    /// The guest kicked a queue, or [`Next::Again`] asked for it.
    fn queue_event(&mut self, io: &mut Io<'_>, index: usize) -> Result<Next, DeviceError>;
    /// Descriptors of its own to watch, tokens below [`mmio::SOURCE_TOKENS`].
    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }
    /// One of its own descriptors has an event; without [`Io`] while the device is not active.
    fn source_event(&mut self, _io: Option<&mut Io<'_>>, _token: u32) -> Result<Next, DeviceError> {
        Ok(Next::Wait)
    }
    /// The guest resets the device, or the device failed: drops all state that belongs to the
    /// driver.
    fn reset(&mut self);
    /// What a saved VM keeps of the device. The device loop is stopped.
    fn save(&self) -> DeviceState;
    /// Takes over what a device of the same kind saved, and checks it. The device was just made or
    /// reset; its driver is there if `is_active`, and then [`VirtioDevice::activate`] and an event
    /// for each queue follow.
    fn restore(&mut self, state: &DeviceState, is_active: bool) -> Result<(), RestoreError>;
}

/// What a device keeps besides its registers and queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceState {
    /// A disk.
    Block(BlockState),
    /// A network card. Its address is that of the new VM. A frame in progress is lost, as a network
    /// may lose frames.
    Net,
    /// An entropy device has nothing to keep: a clone that got the same randomness twice would be a
    /// flaw.
    Rng,
    /// A socket device.
    Vsock(VsockState),
}

const BLOCK: u8 = 1;
const NET: u8 = 2;
const RNG: u8 = 3;
const VSOCK: u8 = 4;

/// A `u8` for the kind of device (1 block, 2 net, 3 rng, 4 vsock), then its state.
impl Layout for DeviceState {
    fn encode(&self, to: &mut Encoder) {
        match self {
            Self::Block(state) => {
                BLOCK.encode(to);
                state.encode(to);
            }
            Self::Net => NET.encode(to),
            Self::Rng => RNG.encode(to),
            Self::Vsock(state) => {
                VSOCK.encode(to);
                state.encode(to);
            }
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, LayoutError> {
        match from.code("kind of device", |kind| (BLOCK..=VSOCK).contains(&kind).then_some(kind))? {
            BLOCK => Ok(Self::Block(BlockState::decode(from)?)),
            NET => Ok(Self::Net),
            RNG => Ok(Self::Rng),
            _ => Ok(Self::Vsock(VsockState::decode(from)?)),
        }
    }
}

impl Persist for DeviceState {
    type Source<'a> = &'a dyn VirtioDevice;
    /// A device that was just made or reset, and whether its driver is there.
    type Target<'a> = (&'a mut dyn VirtioDevice, bool);
    type Restored = ();
    type SaveError = Infallible;
    type RestoreError = RestoreError;

    fn save(device: &dyn VirtioDevice) -> Result<Self, Infallible> {
        Ok(device.save())
    }

    fn restore(&self, (device, is_active): (&mut dyn VirtioDevice, bool)) -> Result<(), RestoreError> {
        device.restore(self, is_active)
    }
}

impl DeviceState {
    fn kind(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Net => "net",
            Self::Rng => "rng",
            Self::Vsock(_) => "vsock",
        }
    }

    /// For a device that finds another's state.
    pub(super) fn is_not(&self, wanted: &'static str) -> RestoreError {
        RestoreError::Kind { wanted, saved: self.kind() }
    }
}

/// Reads `data.len()` bytes at `offset` of a configuration space; what lies beyond it is left
/// alone.
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)) else { return };
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}
