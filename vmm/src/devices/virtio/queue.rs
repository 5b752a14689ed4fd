//! Virtqueues and descriptor chains, as a guest that may be hostile lays them out.
//!
//! A chain is checked completely before a device sees it. Every piece lies in the guest's RAM.
//! Pieces that the device reads come before those that it writes. The chain ends, and it has at
//! most [`CHAIN_MAX_PARTS`] pieces. An invalid queue or chain is an error, and its device requests
//! a reset.

pub mod persist;

use super::interrupt::Interrupt;
use crate::devices::Memory;
use crate::devices::sys::{GuestSlices, IOV_MAX};
use std::sync::atomic::Ordering;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

/// Most pieces of one chain, indirect or not.
pub const CHAIN_MAX_PARTS: usize = IOV_MAX;

/// How a guest broke a queue or a chain.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Size or addresses are invalid for a queue.
    #[error(
        "set up a queue of {size} entries: its rings at {descriptors:#x}, {available:#x}, {used:#x} are invalid"
    )]
    Setup {
        /// Entries.
        size: u32,
        /// The descriptor table.
        descriptors: u64,
        /// The available ring.
        available: u64,
        /// The used ring.
        used: u64,
    },
    /// The rings are inconsistent or unreadable.
    #[error("read the rings")]
    Ring(#[source] virtio_queue::Error),
    /// The chain loops, leads out of its table or ends in a descriptor that cannot be read.
    #[error("follow descriptor chain {head}: it has no valid end")]
    Endless {
        /// Its first descriptor.
        head: u16,
    },
    /// The chain has more than [`CHAIN_MAX_PARTS`] pieces or 4 GiB.
    #[error("follow descriptor chain {head}: it is too long")]
    TooLong {
        /// Its first descriptor.
        head: u16,
    },
    /// A piece is not in RAM.
    #[error("follow descriptor chain {head}: {length} bytes at {address:#x} are not in RAM")]
    NotRam {
        /// The chain's first descriptor.
        head: u16,
        /// Where the piece begins.
        address: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// A piece to read comes after one to write.
    #[error("follow descriptor chain {head}: a piece to read comes after one to write")]
    Order {
        /// The chain's first descriptor.
        head: u16,
    },
    /// A device needs more bytes than the chain has.
    #[error("use {length} bytes at offset {offset} of a chain: it has only {available} bytes")]
    Short {
        /// Where the bytes begin in the chain.
        offset: u32,
        /// How many bytes the device needs from there on.
        length: usize,
        /// How many bytes the chain has in all.
        available: u32,
    },
    /// Guest memory could not be accessed.
    #[error("access guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// The registers of one queue, as the guest wrote them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueRegisters {
    /// Entries.
    pub size: u32,
    /// The guest says that the queue is set up.
    pub ready: bool,
    /// The descriptor table's address.
    pub descriptors: u64,
    /// The available ring's address.
    pub available: u64,
    /// The used ring's address.
    pub used: u64,
}

/// A queue of an active device.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Option<Queue>,
}

impl VirtQueue {
    /// A queue as the guest set it up, after checking it. A queue that is not ready stays empty.
    pub fn start(
        registers: &QueueRegisters,
        max_size: u16,
        memory: &Memory,
        features: u64,
    ) -> Result<Self, QueueError> {
        if !registers.ready {
            return Ok(Self { queue: None });
        }
        let QueueRegisters { size, descriptors, available, used, .. } = *registers;
        let refuse = || QueueError::Setup { size, descriptors, available, used };
        let queue = Queue::try_from(QueueState {
            max_size,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
            size: u16::try_from(size).map_err(|_| refuse())?,
            ready: true,
            desc_table: descriptors,
            avail_ring: available,
            used_ring: used,
        })
        .map_err(|_| refuse())?;
        // The crate takes a ring at 0 as one that was never set, so such a ring is refused here
        // with a clear error.
        if available == 0 || !queue.is_valid(memory.as_ref()) {
            return Err(refuse());
        }
        Ok(Self { queue: Some(queue) })
    }

    /// Entries; 0 when the guest did not set the queue up.
    pub fn size(&self) -> u16 {
        self.queue.as_ref().map_or(0, QueueT::size)
    }

    /// Takes the next chain that the guest made available; false when there is none.
    pub fn next(&mut self, memory: &Memory, chain: &mut Chain) -> Result<bool, QueueError> {
        let Some(queue) = &mut self.queue else { return Ok(false) };
        let mut available = queue.iter(memory.as_ref()).map_err(QueueError::Ring)?;
        let Some(descriptors) = available.next() else { return Ok(false) };
        chain.fill(descriptors, memory)?;
        Ok(true)
    }

    /// Puts the last `count` chains that [`VirtQueue::next`] gave back into the queue, unused.
    pub fn put_back(&mut self, count: u16) {
        if let Some(queue) = &mut self.queue {
            queue.set_next_avail(queue.next_avail().wrapping_sub(count));
        }
    }

    /// Hands a chain back to the guest, with `written` bytes in its writable part.
    pub fn add_used(&mut self, memory: &Memory, head: u16, written: u32) -> Result<(), QueueError> {
        match &mut self.queue {
            Some(queue) => queue.add_used(memory.as_ref(), head, written).map_err(QueueError::Ring),
            None => Ok(()),
        }
    }

    /// Interrupts the guest for the chains handed back, unless it has suppressed that.
    pub fn signal(&mut self, memory: &Memory, interrupt: &Interrupt) -> Result<(), QueueError> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let mut wanted = queue.needs_notification(memory.as_ref()).map_err(QueueError::Ring)?;
        if !queue.event_idx_enabled() {
            let flags: u16 = memory
                .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(QueueError::Memory)?;
            wanted &= u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
        if wanted {
            interrupt.used();
        }
        Ok(())
    }

    /// Asks the guest to kick for its next chain; true when one arrived meanwhile.
    pub fn wait_for_kick(&mut self, memory: &Memory) -> Result<bool, QueueError> {
        match &mut self.queue {
            Some(queue) => queue.enable_notification(memory.as_ref()).map_err(QueueError::Ring),
            None => Ok(false),
        }
    }

    /// Tells the guest that it need not kick for now.
    pub fn no_kicks(&mut self, memory: &Memory) -> Result<(), QueueError> {
        match &mut self.queue {
            Some(queue) => queue.disable_notification(memory.as_ref()).map_err(QueueError::Ring),
            None => Ok(()),
        }
    }

    /// How many chains the guest has made available so far, modulo 2^16.
    pub fn made_available(&self, memory: &Memory) -> Result<u16, QueueError> {
        let Some(queue) = &self.queue else { return Ok(0) };
        let index = queue.avail_idx(memory.as_ref(), Ordering::Acquire).map_err(QueueError::Ring)?;
        Ok(index.0)
    }

    /// There are chains to take.
    pub fn has_chains(&self, memory: &Memory) -> Result<bool, QueueError> {
        let Some(queue) = &self.queue else { return Ok(false) };
        Ok(self.made_available(memory)? != queue.next_avail())
    }

    /// Asks the guest to kick when it makes more chains available than `seen` (see
    /// [`VirtQueue::made_available`]), taken or not; true when it has meanwhile.
    pub fn wait_beyond(&mut self, memory: &Memory, seen: u16) -> Result<bool, QueueError> {
        let Some(queue) = &mut self.queue else { return Ok(false) };
        let next = queue.next_avail();
        queue.set_next_avail(seen);
        let more = queue.enable_notification(memory.as_ref());
        queue.set_next_avail(next);
        more.map_err(QueueError::Ring)
    }
}

#[derive(Debug, Clone, Copy)]
struct Part {
    address: GuestAddress,
    length: u32,
}

/// One request of the guest: bytes for the device to read, then bytes for it to write. Made once
/// and filled again and again, so that taking a chain allocates nothing.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Part>,
    writable: Vec<Part>,
    readable_bytes: u32,
    writable_bytes: u32,
}

/// One side of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the device reads.
    Readable,
    /// What the device writes.
    Writable,
}

impl Chain {
    /// What [`VirtQueue::add_used`] wants to know.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes for the device to read.
    pub fn readable_bytes(&self) -> u32 {
        self.readable_bytes
    }

    /// Bytes for the device to write.
    pub fn writable_bytes(&self) -> u32 {
        self.writable_bytes
    }

    fn fill(
        &mut self,
        mut descriptors: DescriptorChain<&GuestMemoryMmap<()>>,
        memory: &Memory,
    ) -> Result<(), QueueError> {
        let head = descriptors.head_index();
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        (self.readable_bytes, self.writable_bytes) = (0, 0);
        // The iterator is bounded by the table's size, and stops early where it cannot go on: then
        // the last descriptor that it gave still points to a next one.
        let mut ended = false;
        for descriptor in descriptors.by_ref() {
            ended = !descriptor.has_next();
            self.add(&descriptor, memory)?;
        }
        if ended { Ok(()) } else { Err(QueueError::Endless { head }) }
    }

    fn add(&mut self, descriptor: &Descriptor, memory: &Memory) -> Result<(), QueueError> {
        let (head, address, length) = (self.head, descriptor.addr(), descriptor.len());
        let (parts, bytes) = if descriptor.is_write_only() {
            (&mut self.writable, &mut self.writable_bytes)
        } else if self.writable.is_empty() {
            (&mut self.readable, &mut self.readable_bytes)
        } else {
            return Err(QueueError::Order { head });
        };
        if length == 0 {
            return Ok(());
        }
        if parts.len() == CHAIN_MAX_PARTS {
            return Err(QueueError::TooLong { head });
        }
        if !memory.check_range(address, length as usize) {
            return Err(QueueError::NotRam { head, address: address.raw_value(), length });
        }
        *bytes = bytes.checked_add(length).ok_or(QueueError::TooLong { head })?;
        parts.push(Part { address, length });
        Ok(())
    }

    /// Copies bytes from `offset` of the readable side.
    pub fn read(&self, memory: &Memory, offset: u32, mut data: &mut [u8]) -> Result<(), QueueError> {
        for (address, length) in self.pieces(Side::Readable, offset, data.len())? {
            let (now, later) = data.split_at_mut(length);
            memory.read_slice(now, address).map_err(QueueError::Memory)?;
            data = later;
        }
        Ok(())
    }

    /// Copies bytes to `offset` of the writable side.
    pub fn write(&self, memory: &Memory, offset: u32, mut data: &[u8]) -> Result<(), QueueError> {
        for (address, length) in self.pieces(Side::Writable, offset, data.len())? {
            let (now, later) = data.split_at(length);
            memory.write_slice(now, address).map_err(QueueError::Memory)?;
            data = later;
        }
        Ok(())
    }

    /// `length` bytes from `offset` of one side, for a vectored system call.
    pub fn slices<'m>(
        &self,
        memory: &'m Memory,
        side: Side,
        offset: u32,
        length: usize,
    ) -> Result<GuestSlices<'m>, QueueError> {
        let mut slices = GuestSlices::with_capacity(self.parts(side).len());
        for (address, length) in self.pieces(side, offset, length)? {
            for slice in GuestMemoryBackend::get_slices(memory.as_ref(), address, length) {
                if !slices.push(&slice.map_err(QueueError::Memory)?) {
                    return Err(QueueError::TooLong { head: self.head });
                }
            }
        }
        Ok(slices)
    }

    fn parts(&self, side: Side) -> &[Part] {
        match side {
            Side::Readable => &self.readable,
            Side::Writable => &self.writable,
        }
    }

    fn pieces(
        &self,
        side: Side,
        offset: u32,
        length: usize,
    ) -> Result<impl Iterator<Item = (GuestAddress, usize)>, QueueError> {
        let available = match side {
            Side::Readable => self.readable_bytes,
            Side::Writable => self.writable_bytes,
        };
        if u64::from(offset) + length as u64 > u64::from(available) {
            return Err(QueueError::Short { offset, length, available });
        }
        let (mut skip, mut left) = (offset, length);
        Ok(self.parts(side).iter().filter_map(move |part| {
            let skipped = skip.min(part.length);
            skip -= skipped;
            let length = left.min((part.length - skipped) as usize);
            left -= length;
            (length > 0).then(|| (part.address.unchecked_add(u64::from(skipped)), length))
        }))
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
