//! Connects devices to KVM. A write to a queue's notify register wakes the device thread without an
//! exit to user space (ioeventfd). A device interrupts the guest through an eventfd (irqfd).

use crate::boot::layout;
use crate::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY, WINDOW_BYTES};
use kvm_ioctls::{IoEventAddress, VmFd};
use std::sync::Arc;

/// KVM refused a connection.
#[derive(Debug, thiserror::Error)]
#[error("connect device {device} to KVM: {call}")]
pub struct WiringError {
    /// The device's number.
    device: u32,
    /// The KVM call that failed.
    call: &'static str,
    /// What KVM said.
    source: kvm_ioctls::Error,
}

/// Connects `transport`, which is device number `device`.
///
/// # Errors
/// KVM refuses.
pub fn connect(vm: &VmFd, device: u32, transport: &Arc<MmioTransport>) -> Result<(), WiringError> {
    let failed = |call| move |source| WiringError { device, call, source };
    let base = layout::MMIO_BASE + u64::from(device) * WINDOW_BYTES;
    let notify = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
    for (queue, kick) in (0u32..).zip(transport.kicks()) {
        vm.register_ioevent(kick, &notify, queue).map_err(failed("KVM_IOEVENTFD"))?;
    }
    vm.register_irqfd(transport.interrupt_line(), layout::MMIO_FIRST_IRQ + device)
        .map_err(failed("KVM_IRQFD"))
}
