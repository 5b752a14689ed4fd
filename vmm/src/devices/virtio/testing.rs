//! A guest's driver for tests: sets a device up through its registers and works its queues in guest
//! memory.

use super::handshake::TRANSPORT_FEATURES;
use super::mmio::persist::TransportState;
use super::mmio::{MmioTransport, SOURCE_TOKENS};
use super::{DeviceError, VirtioDevice};
use crate::devices::Memory;
use crate::devices::event_loop::EventHandler;
use crate::persist::Persist;
use patina_snapshot::layout;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub const RAM_BYTES: usize = 4 << 20;
/// From here on tests may put their data.
pub const DATA: u64 = 0x10_0000;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap())
}

/// A piece of a chain: address, length, does the device write it.
pub type Part = (u64, u32, bool);

#[derive(Debug, Clone, Copy)]
pub struct Rings {
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub size: u16,
    pub next_descriptor: u16,
    pub made_available: u16,
    pub seen_used: u16,
}

pub struct Driver {
    pub transport: Arc<MmioTransport>,
    pub memory: Memory,
    pub rings: Vec<Rings>,
}

impl Driver {
    /// A driver with all of the device's features.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let features = device.features();
        Self::with_features(device, features)
    }

    pub fn with_features(device: Box<dyn VirtioDevice>, features: u64) -> Self {
        let sizes = device.queue_max_sizes().to_vec();
        let memory = memory();
        let transport = Arc::new(MmioTransport::new(device, Arc::clone(&memory)).unwrap());
        let mut driver = Self { transport, memory, rings: Vec::new() };
        driver.handshake(&sizes, features | TRANSPORT_FEATURES);
        driver
    }

    /// The same driver in a clone: a copy of its memory, and another device with the saved state,
    /// which has been bytes meanwhile. As in a warm process, the transport was there before the
    /// memory.
    pub fn fork(&self, device: Box<dyn VirtioDevice>) -> Self {
        let memory = memory();
        memory.write_slice(&self.get(0, RAM_BYTES), GuestAddress(0)).unwrap();
        let state = layout::to_bytes(&TransportState::save(&self.transport).unwrap());
        let state: TransportState = layout::from_bytes(&state).unwrap();
        let transport = MmioTransport::new(device, Arc::new(GuestMemoryMmap::new())).unwrap();
        state.restore((&transport, Arc::clone(&memory))).unwrap();
        Self { transport: Arc::new(transport), memory, rings: self.rings.clone() }
    }

    /// Handles all kicks that wait, as the device thread would.
    pub fn settle(&self) {
        for _ in 0..1000 {
            let waits = |kick: &&EventFd| kick.read().is_ok_and(|count| kick.write(count).is_ok());
            let Some(queue) = self.transport.kicks().iter().position(|kick| waits(&kick)) else { return };
            self.transport.event(SOURCE_TOKENS + queue as u32);
        }
        panic!("the device is never done");
    }

    /// From reset to DRIVER_OK.
    pub fn handshake(&mut self, sizes: &[u16], features: u64) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        self.rings.clear();
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        for select in 0..2 {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * select)) as u32);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for (index, size) in sizes.iter().enumerate() {
            let base = 0x1_0000 * (index as u64 + 1);
            let rings = Rings {
                descriptors: base,
                available: base + 0x4000,
                used: base + 0x8000,
                size: *size,
                next_descriptor: 0,
                made_available: 0,
                seen_used: 0,
            };
            self.memory.write_slice(&[0; 0x1_0000], GuestAddress(base)).unwrap();
            self.rings.push(rings);
            self.set_queue(index as u32, &rings);
        }
        self.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        (0..sizes.len()).for_each(|queue| self.run(queue));
    }

    pub fn set_queue(&self, index: u32, rings: &Rings) {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, u32::from(rings.size));
        for (low, address) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, rings.descriptors),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, rings.available),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, rings.used),
        ] {
            self.write(low, address as u32);
            self.write(low + 4, (address >> 32) as u32);
        }
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    pub fn write(&self, register: u32, value: u32) {
        self.transport.write(u64::from(register), &value.to_le_bytes());
    }

    pub fn read(&self, register: u32) -> u32 {
        let mut value = [0; 4];
        self.transport.read(u64::from(register), &mut value);
        u32::from_le_bytes(value)
    }

    pub fn status(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_STATUS)
    }

    /// The device failed; returns why.
    pub fn fault(&self) -> Option<DeviceError> {
        assert_eq!(self.status() & NEEDS_RESET != 0, self.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS) & 2 != 0);
        self.transport.take_fault()
    }

    pub fn put_descriptor(&self, queue: usize, index: u16, part: Part, flags: u16, next: u16) {
        let at = self.rings[queue].descriptors + 16 * u64::from(index);
        put_descriptor(&self.memory, at, part, flags, next);
    }

    pub fn make_available(&mut self, queue: usize, head: u16) {
        let rings = &mut self.rings[queue];
        let slot = u64::from(rings.made_available % rings.size);
        self.memory.write_obj(head, GuestAddress(rings.available + 4 + 2 * slot)).unwrap();
        rings.made_available = rings.made_available.wrapping_add(1);
        self.memory
            .store(rings.made_available, GuestAddress(rings.available + 2), Ordering::Release)
            .unwrap();
    }

    /// Makes a chain available, without a kick; returns its head.
    pub fn add(&mut self, queue: usize, parts: &[Part]) -> u16 {
        let size = self.rings[queue].size;
        let head = self.rings[queue].next_descriptor;
        for (count, part) in parts.iter().enumerate() {
            let index = (head + count as u16) % size;
            let more = if count + 1 < parts.len() { NEXT } else { 0 };
            self.put_descriptor(queue, index, *part, more, (index + 1) % size);
        }
        self.rings[queue].next_descriptor = (head + parts.len() as u16) % size;
        self.make_available(queue, head);
        head
    }

    /// Lets the device handle a queue as the device thread would after a kick.
    pub fn run(&self, queue: usize) {
        self.transport.kicks()[queue].write(1).unwrap();
        let mut rounds = 0;
        while self.transport.kicks()[queue]
            .read()
            .is_ok_and(|_| self.transport.kicks()[queue].write(1).is_ok())
        {
            self.transport.event(SOURCE_TOKENS + queue as u32);
            rounds += 1;
            assert!(rounds < 1000, "the device handles queue {queue} for ever");
        }
    }

    pub fn source_event(&self, token: u32) {
        self.transport.event(token);
    }

    /// Chains that the device handed back since the last call: head and bytes written.
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let rings = &mut self.rings[queue];
        let mut used = Vec::new();
        loop {
            // Asks to be interrupted for the next chain, then looks whether it is there already.
            let event = rings.available + 4 + 2 * u64::from(rings.size);
            self.memory.write_obj(rings.seen_used, GuestAddress(event)).unwrap();
            fence(Ordering::SeqCst);
            let index: u16 = self.memory.load(GuestAddress(rings.used + 2), Ordering::Acquire).unwrap();
            if rings.seen_used == index {
                break;
            }
            let at = rings.used + 4 + 8 * u64::from(rings.seen_used % rings.size);
            used.push((
                self.memory.read_obj(GuestAddress(at)).unwrap(),
                self.memory.read_obj(GuestAddress(at + 4)).unwrap(),
            ));
            rings.seen_used = rings.seen_used.wrapping_add(1);
        }
        used
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

pub fn put_descriptor(memory: &Memory, at: u64, (address, length, write): Part, flags: u16, next: u16) {
    let flags = if write { flags | WRITE } else { flags };
    memory.write_obj(address, GuestAddress(at)).unwrap();
    memory.write_obj(length, GuestAddress(at + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
    memory.write_obj(next, GuestAddress(at + 14)).unwrap();
}
