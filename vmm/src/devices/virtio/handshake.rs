//! Device status and feature negotiation (virtio 1.2, 2.1, 2.2 and 3.1), as pure logic.

pub mod persist;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Features that every device of this transport has; VERSION_1 must be accepted.
pub const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// What a write to the status register asks of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The write asks nothing of the device.
    None,
    /// Stop and forget the driver.
    Reset,
    /// Start; the caller sets [`Handshake::fail`] when it cannot.
    Activate,
}

/// The state of the handshake between driver and device.
#[derive(Debug, Clone)]
pub struct Handshake {
    status: u32,
    offered: u64,
    accepted: u64,
    offered_select: u32,
    accepted_select: u32,
}

impl Handshake {
    /// A device that was just reset and offers these features.
    pub fn new(offered: u64) -> Self {
        Self { status: 0, offered, accepted: 0, offered_select: 0, accepted_select: 0 }
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.status
    }

    /// The features that the driver accepted.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// The driver runs and the device has not failed.
    pub fn is_active(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Queues may be set up now.
    pub fn may_set_queues(&self) -> bool {
        self.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET | FAILED) == FEATURES_OK
    }

    /// All features that the device offers.
    pub fn all_offered(&self) -> u64 {
        self.offered
    }

    /// DeviceFeatures.
    pub fn offered(&self) -> u32 {
        half(self.offered, self.offered_select)
    }

    /// DeviceFeaturesSel.
    pub fn select_offered(&mut self, select: u32) {
        self.offered_select = select;
    }

    /// DriverFeaturesSel.
    pub fn select_accepted(&mut self, select: u32) {
        self.accepted_select = select;
    }

    /// DriverFeatures: ignored outside the time that the protocol has for it.
    pub fn accept(&mut self, features: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            return;
        }
        let features = u64::from(features);
        match self.accepted_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | features,
            1 => self.accepted = self.accepted & 0xffff_ffff | features << 32,
            // Feature bits from 64 on are not offered: accepting one must not pass FEATURES_OK, and
            // there is no bit 63 to offer either, so it stands for them.
            _ if features != 0 => self.accepted |= 1 << 63,
            _ => {}
        }
    }

    /// Status: a write that clears a bit or skips a step changes nothing.
    pub fn write_status(&mut self, value: u32) -> Step {
        if value == 0 {
            *self = Self::new(self.offered);
            return Step::Reset;
        }
        // The driver cannot set what is the device's to set, and may leave it out.
        let value = value & !NEEDS_RESET | self.status & NEEDS_RESET;
        let added = value & !self.status;
        if self.status & !value != 0 || added == 0 {
            return Step::None;
        }
        if added & FAILED != 0 {
            self.status |= FAILED;
            return Step::None;
        }
        if self.status & (FAILED | NEEDS_RESET) != 0 || !in_order(value) {
            return Step::None;
        }
        if added & FEATURES_OK != 0 && !may_accept(self.offered, self.accepted) {
            // The driver reads FEATURES_OK back, and finds that it is not set.
            self.status = value & !(FEATURES_OK | DRIVER_OK);
            return Step::None;
        }
        self.status = value;
        if added & DRIVER_OK != 0 { Step::Activate } else { Step::None }
    }

    /// The device cannot continue until it is reset.
    pub fn fail(&mut self) {
        self.status |= NEEDS_RESET;
    }
}

/// What is not offered cannot be accepted, and VERSION_1 must be.
fn may_accept(offered: u64, accepted: u64) -> bool {
    accepted & !offered == 0 && accepted & (1 << VIRTIO_F_VERSION_1) != 0
}

/// Each step only after those before it, and no bit that means nothing.
fn in_order(status: u32) -> bool {
    [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK]
        .iter()
        .scan(0, |so_far, step| {
            *so_far |= step;
            Some(*so_far)
        })
        .any(|steps| steps == status)
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "handshake_test.rs"]
mod tests;
