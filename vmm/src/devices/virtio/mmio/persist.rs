//! Saves and restores a transport with its device.
//!
//! The order of a restore. The caller is responsible for steps 1, 3 and 4:
//! 1. [`MmioTransport::interrupt_line`] and [`MmioTransport::kicks`] are registered with KVM, and
//!    the transport is attached to the device loop, which does not run yet. A warm process does
//!    this long before it has a state.
//! 2. [`TransportState::restore`].
//! 3. KVM's interrupt controllers are restored. This overwrites every earlier interrupt, so none
//!    may have been raised.
//! 4. The vCPUs run, and the device loop starts and raises the interrupts that step 2 has noted.
//!
//! No function of this module has to be called in step 4. Kicks and interrupts that were in
//! progress at the save were in event descriptors of the old process, or in KVM's work queue, and
//! are lost. So a restore kicks every queue once, and a device with an unacknowledged interrupt
//! raises it once more. An extra kick or interrupt is harmless, but a missing one may hang the
//! guest. The kicks stay in their event descriptors until the loop starts. The interrupt is raised
//! at the first kick.

use super::{Inner, MmioTransport};
use crate::devices::Memory;
use crate::devices::virtio::DeviceState;
use crate::devices::virtio::handshake::Handshake;
use crate::devices::virtio::handshake::persist::HandshakeState;
use crate::devices::virtio::interrupt::{CONFIG, USED_RING};
use crate::devices::virtio::persist::RestoreError;
use crate::devices::virtio::queue::VirtQueue;
use crate::devices::virtio::queue::persist::QueueState;
use crate::persist::Persist;
use patina_daemon::lock;
use std::convert::Infallible;

/// A device and its registers between two instructions of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransportState {
    pub(crate) handshake: HandshakeState,
    pub(crate) queue_select: u32,
    pub(crate) queues: Vec<QueueState>,
    pub(crate) interrupt_status: u32,
    pub(crate) config_generation: u32,
    pub(crate) device: DeviceState,
}

patina_snapshot::layout!(TransportState {
    handshake: HandshakeState,
    queue_select: u32,
    queues: Vec<QueueState>,
    interrupt_status: u32,
    config_generation: u32,
    device: DeviceState,
});

impl Persist for TransportState {
    type Source<'a> = &'a MmioTransport;
    /// A transport that exists already, as in a warm process, and the guest's RAM. The device loop
    /// starts only after KVM's interrupt controllers are restored. On failure the device is as
    /// after a reset.
    type Target<'a> = (&'a MmioTransport, Memory);
    type Restored = ();
    type SaveError = Infallible;
    type RestoreError = RestoreError;

    fn save(transport: &MmioTransport) -> Result<Self, Infallible> {
        let inner = lock(&transport.inner);
        let queues = inner.registers.iter().enumerate();
        let queues = queues.map(|(index, registers)| QueueState::save((registers, inner.queues.get(index))));
        Ok(Self {
            handshake: HandshakeState::save(&inner.handshake)?,
            queue_select: inner.queue_select,
            queues: queues.collect::<Result<_, _>>()?,
            interrupt_status: transport.interrupt.status(),
            config_generation: transport.interrupt.generation(),
            device: DeviceState::save(inner.device.as_ref())?,
        })
    }

    fn restore(&self, (transport, memory): (&MmioTransport, Memory)) -> Result<(), RestoreError> {
        let mut inner = lock(&transport.inner);
        inner.memory = memory;
        inner.load(self)?;
        // The configuration may have changed (a card's address). A new generation number makes a
        // guest that is reading it read again.
        transport.interrupt.restore(self.interrupt_status, self.config_generation.wrapping_add(1));
        inner.resends_interrupt = true;
        (0..transport.kicks.len()).for_each(|index| transport.kick(index));
        Ok(())
    }
}

impl Inner {
    fn load(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let offered = self.handshake.all_offered();
        self.handshake = Handshake::new(offered);
        self.reset();
        let handshake = state.handshake.restore(offered).map_err(RestoreError::Handshake)?;
        let (status, active) = (state.interrupt_status, handshake.is_active());
        if status & !(USED_RING | CONFIG) != 0 {
            return Err(RestoreError::Interrupt { status });
        }
        let queues = self.restored_queues(&handshake, &state.queues)?;
        // The device's own state comes before its activation, which is what a driver would do last,
        // too.
        state.device.restore((self.device.as_mut(), active))?;
        if active && let Err(error) = self.device.activate(handshake.features()) {
            self.device.reset();
            return Err(RestoreError::Activate(error));
        }
        self.registers = state.queues.iter().map(|queue| queue.registers).collect();
        self.queue_select = state.queue_select;
        (self.handshake, self.queues, self.fault) = (handshake, queues, None);
        Ok(())
    }

    fn restored_queues(
        &self,
        handshake: &Handshake,
        states: &[QueueState],
    ) -> Result<Vec<VirtQueue>, RestoreError> {
        let sizes = self.device.queue_max_sizes();
        if states.len() != sizes.len() {
            return Err(RestoreError::QueueCount { saved: states.len(), found: sizes.len() });
        }
        let active = handshake.is_active();
        let queue = |(index, (state, max_size)): (usize, (&QueueState, &u16))| {
            if state.position.is_some() != (active && state.registers.ready) {
                return Err(RestoreError::Position { index });
            }
            let features = handshake.features();
            active
                .then(|| state.restore((*max_size, &self.memory, features)))
                .transpose()
                .map_err(|source| RestoreError::Queue { index, source })
        };
        // An inactive device has no queues, only registers.
        states.iter().zip(sizes).enumerate().filter_map(|pair| queue(pair).transpose()).collect()
    }
}

#[cfg(test)]
#[path = "persist_test.rs"]
mod tests;
