//! A queue, saved and restored.
//!
//! Of a queue at rest (the device loop is stopped) only its two positions are the device's own: addresses and size
//! are in the registers, event suppression is a feature, and the rings are in the guest's RAM.

use super::{QueueError, QueueRegisters, VirtQueue};
use crate::devices::Memory;
use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

/// Where a device stands in the rings of a queue, modulo 2^16. Any values are safe: the rings are checked whenever
/// they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    next_avail: u16,
    next_used: u16,
}

impl VirtQueue {
    /// What a saved VM keeps; none when the guest did not set the queue up.
    pub fn position(&self) -> Option<Position> {
        let queue = self.queue.as_ref()?;
        Some(Position { next_avail: queue.next_avail(), next_used: queue.next_used() })
    }

    /// The queue that these registers describe, checked, at this position.
    pub fn restore(
        registers: &QueueRegisters,
        max_size: u16,
        memory: &Memory,
        features: u64,
        position: Option<Position>,
    ) -> Result<Self, QueueError> {
        let mut restored = Self::start(registers, max_size, memory, features)?;
        if let (Some(queue), Some(position)) = (&mut restored.queue, position) {
            queue.set_next_avail(position.next_avail);
            queue.set_next_used(position.next_used);
        }
        Ok(restored)
    }
}
