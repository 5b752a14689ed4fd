//! Saves and restores a queue.
//!
//! While the device loop is stopped, a queue's only state of its own is its two positions.
//! Addresses and size are in the registers, event suppression is a feature, and the rings are in
//! the guest's RAM.

use super::{QueueError, QueueRegisters, VirtQueue};
use crate::devices::Memory;
use crate::persist::Persist;
use patina_snapshot::layout::Item;
use std::convert::Infallible;
use virtio_queue::QueueT;

/// A queue: what the guest wrote, and where an active device stands in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    /// What the guest wrote.
    pub(crate) registers: QueueRegisters,
    /// None: the device is not active, or the guest did not set the queue up.
    pub(crate) position: Option<Position>,
}

patina_snapshot::layout!(QueueState { registers: QueueRegisters, position: Option<Position> });

patina_snapshot::layout!(QueueRegisters {
    size: u32,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
});

impl Item for QueueState {
    const WHAT: &'static str = "queues";
    /// More than any device has.
    const MOST: usize = 16;
}

/// A device's positions in the rings of a queue, modulo 2^16. All values are safe, because the
/// rings are checked at each use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
}

patina_snapshot::layout!(Position { next_avail: u16, next_used: u16 });

impl Persist for QueueState {
    /// A queue's registers, and the queue if its device is active.
    type Source<'a> = (&'a QueueRegisters, Option<&'a VirtQueue>);
    /// The greatest size of the queue, the guest's RAM, and the features that its driver accepted.
    type Target<'a> = (u16, &'a Memory, u64);
    type Restored = VirtQueue;
    type SaveError = Infallible;
    type RestoreError = QueueError;

    fn save((registers, queue): (&QueueRegisters, Option<&VirtQueue>)) -> Result<Self, Infallible> {
        let queue = queue.and_then(|queue| queue.queue.as_ref());
        let position =
            queue.map(|queue| Position { next_avail: queue.next_avail(), next_used: queue.next_used() });
        Ok(Self { registers: *registers, position })
    }

    fn restore(&self, (max_size, memory, features): (u16, &Memory, u64)) -> Result<VirtQueue, QueueError> {
        let mut restored = VirtQueue::start(&self.registers, max_size, memory, features)?;
        if let (Some(queue), Some(position)) = (&mut restored.queue, self.position) {
            queue.set_next_avail(position.next_avail);
            queue.set_next_used(position.next_used);
        }
        Ok(restored)
    }
}
