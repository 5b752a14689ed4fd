//! The virtio-mmio register window (virtio 1.2, 4.2) in front of one device.
//!
//! ```text
//!  vCPU threads --read/write--> registers --DRIVER_OK--> queues checked, device active
//!  device thread --event------> device, with its queues, while it is active
//! ```
//! One lock covers registers, device and queues, so the device has stopped when a reset returns.
//! The registers on the guest's interrupt path do not take the lock. A guest may access anything in
//! any order and width: invalid accesses read as zero and write nothing.

pub mod persist;

use super::handshake::{Handshake, Step, TRANSPORT_FEATURES};
use super::interrupt::Interrupt;
use super::queue::{QueueError, QueueRegisters, VirtQueue};
use super::{DeviceError, Io, Next, VirtioDevice};
use crate::devices::event_loop::{DeviceLoop, EventHandler, LoopError, Source};
use crate::devices::{Memory, sys};
use patina_control::best_effort;
use patina_daemon::lock;
use std::io;
use std::sync::{Arc, Mutex};
use virtio_bindings::virtio_mmio as reg;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Size of the window, bytes.
pub const WINDOW_BYTES: u64 = 0x1000;
/// Where the guest kicks queues: register each of [`MmioTransport::kicks`] as an ioeventfd here,
/// four bytes wide, matching its index.
pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Tokens that a device has for its own sources: those below this.
pub const SOURCE_TOKENS: u32 = 0x1_0000;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"patn");
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;
/// Length and base of a shared memory region that does not exist.
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// A device and its register window.
pub struct MmioTransport {
    interrupt: Interrupt,
    kicks: Vec<EventFd>,
    inner: Mutex<Inner>,
}

struct Inner {
    memory: Memory,
    device: Box<dyn VirtioDevice>,
    handshake: Handshake,
    queue_select: u32,
    registers: Vec<QueueRegisters>,
    queues: Vec<VirtQueue>,
    fault: Option<DeviceError>,
    /// The device thread interrupts the guest again if need be, as its first work after a restore.
    resends_interrupt: bool,
}

impl MmioTransport {
    /// Puts a window in front of a device.
    pub fn new(device: Box<dyn VirtioDevice>, memory: Memory) -> io::Result<Self> {
        let queues = device.queue_max_sizes().len();
        let kick = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            interrupt: Interrupt::new()?,
            kicks: (0..queues).map(kick).collect::<Result<_, _>>()?,
            inner: Mutex::new(Inner {
                memory,
                handshake: Handshake::new(device.features() | TRANSPORT_FEATURES),
                registers: vec![QueueRegisters::default(); queues],
                queues: Vec::new(),
                queue_select: 0,
                fault: None,
                resends_interrupt: false,
                device,
            }),
        })
    }

    /// One event for each queue: see [`QUEUE_NOTIFY`].
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The interrupt line: register it as the irqfd of the device's interrupt, edge-triggered.
    pub fn interrupt_line(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// The reason for which the device last requested a reset, if it did so since the last call.
    pub fn take_fault(&self) -> Option<DeviceError> {
        lock(&self.inner).fault.take()
    }

    /// Lets the device thread drive the device.
    pub fn attach(self: &Arc<Self>, devices: &DeviceLoop) -> Result<(), LoopError> {
        let inner = lock(&self.inner);
        let kicks = (0..).zip(&self.kicks).map(|(index, kick)| Source {
            fd: sys::borrow(kick),
            token: SOURCE_TOKENS + index,
            edge: false,
        });
        let sources: Vec<_> = inner.device.sources().into_iter().chain(kicks).collect();
        devices.add(Arc::clone(self) as Arc<dyn EventHandler>, &sources)
    }

    /// A vCPU reads `data.len()` bytes at `offset` of the window.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            lock(&self.inner).device.read_config(offset, data);
        } else if let (Ok(data), 0) = (<&mut [u8; 4]>::try_from(data), offset % 4) {
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    /// A vCPU writes `data` at `offset` of the window.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let mut inner = lock(&self.inner);
            if inner.handshake.is_active() {
                inner.device.write_config(offset, data);
            }
        } else if let (Ok(data), 0) = (<[u8; 4]>::try_from(data), offset % 4) {
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHARED_MEMORY,
            _ => lock(&self.inner).read_register(offset),
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.kick(value as usize),
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            _ => lock(&self.inner).write_register(offset, value),
        }
    }

    fn kick(&self, index: usize) {
        if let Some(kick) = self.kicks.get(index) {
            best_effort(
                kick.write(1),
                "the only error is a full counter: then the queue will be looked at anyway",
            );
        }
    }

    fn write_status(&self, value: u32) {
        let mut inner = lock(&self.inner);
        match inner.handshake.write_status(value) {
            Step::None => {}
            Step::Reset => {
                inner.reset();
                self.interrupt.acknowledge(u32::MAX);
            }
            Step::Activate => match inner.activate() {
                // Kicks may have come before there was anybody to take them.
                Ok(()) => (0..self.kicks.len()).for_each(|index| self.kick(index)),
                Err(error) => inner.fail(error, &self.interrupt),
            },
        }
    }

    fn settle(&self, inner: &mut Inner, result: Result<Next, DeviceError>) {
        match result {
            Ok(Next::Wait) => {}
            Ok(Next::Again(queue)) => self.kick(queue),
            Err(error) => inner.fail(error, &self.interrupt),
        }
    }
}

impl EventHandler for MmioTransport {
    fn event(&self, token: u32) {
        let mut guard = lock(&self.inner);
        let inner = &mut *guard;
        if std::mem::take(&mut inner.resends_interrupt) {
            self.interrupt.resend();
        }
        let active = inner.handshake.is_active();
        let mut io = Io {
            queues: &mut inner.queues,
            memory: &inner.memory,
            interrupt: &self.interrupt,
            features: inner.handshake.features(),
        };
        let result = match token.checked_sub(SOURCE_TOKENS) {
            None => inner.device.source_event(active.then_some(&mut io), token),
            Some(queue) => {
                let queue = queue as usize;
                if let Some(kick) = self.kicks.get(queue) {
                    best_effort(kick.read(), "nothing to read means that the kick was already taken");
                }
                if !active {
                    return;
                }
                inner.device.queue_event(&mut io, queue)
            }
        };
        self.settle(inner, result);
    }
}

impl Inner {
    fn read_register(&self, offset: u32) -> u32 {
        let select = self.queue_select as usize;
        let max_size = self.device.queue_max_sizes().get(select).copied();
        match offset {
            reg::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            reg::VIRTIO_MMIO_DEVICE_FEATURES => self.handshake.offered(),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => max_size.map_or(0, u32::from),
            reg::VIRTIO_MMIO_QUEUE_READY => {
                self.registers.get(select).map_or(0, |queue| u32::from(queue.ready))
            }
            reg::VIRTIO_MMIO_STATUS => self.handshake.status(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.handshake.select_offered(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.handshake.select_accepted(value),
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.handshake.accept(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        let may_set = self.handshake.may_set_queues();
        let Some(queue) = self.registers.get_mut(self.queue_select as usize).filter(|_| may_set) else {
            return;
        };
        if offset == reg::VIRTIO_MMIO_QUEUE_READY {
            queue.ready = value & 1 != 0;
        } else if !queue.ready {
            match offset {
                reg::VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
                reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
                reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
                reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
                reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
                reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
                reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
                _ => {}
            }
        }
    }

    fn activate(&mut self) -> Result<(), DeviceError> {
        let features = self.handshake.features();
        let start = |(index, (registers, max_size)): (usize, (&QueueRegisters, &u16))| {
            VirtQueue::start(registers, *max_size, &self.memory, features)
                .map_err(|source: QueueError| DeviceError::Queue { index, source })
        };
        let set_up = self.registers.iter().zip(self.device.queue_max_sizes()).enumerate();
        self.queues = set_up.map(start).collect::<Result<_, _>>()?;
        self.device.activate(features)
    }

    fn fail(&mut self, error: DeviceError, interrupt: &Interrupt) {
        self.handshake.fail();
        self.device.reset();
        self.queues.clear();
        self.fault = Some(error);
        interrupt.config_changed();
    }

    fn reset(&mut self) {
        self.device.reset();
        self.queues.clear();
        self.registers.fill(QueueRegisters::default());
        self.queue_select = 0;
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
