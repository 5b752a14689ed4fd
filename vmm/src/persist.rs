//! [`Persist`]: saves each part of a VM into a generation and restores it in a clone.

pub mod mirror;

/// The state of one part of a VM: a vCPU, a device, a queue. The state is plain data with a fixed
/// layout, which [`patina_snapshot::layout!`] lists below its declaration. It implements this
/// trait, and not the part: two of the parts are KVM's, and others are shared by threads.
///
/// # Who calls, and when
/// [`Persist::save`] is called while the VM stands still (`machine/freeze.rs`): no vCPU runs, and
/// the device loop is stopped. Each vCPU's state is saved on its own thread. Saving changes nothing
/// that the guest can notice (KVM takes in an interrupt that is on its way), so the parent goes on
/// as if nothing had happened. All states together are a `MachineState`, which is encoded once,
/// after the pause (`machine/state.rs`).
///
/// [`Persist::restore`] is called in a warm VM (`machine/start.rs`), whose parts exist already: it
/// must not open a file by its name, as the process is in its jail. The order is:
/// 1. RAM is mapped, because queues are checked against it.
/// 2. Devices: each transport restores its handshake, then its queues, then the device behind it.
///    Then the console. Nothing may raise an interrupt yet (`devices/virtio/mmio/persist.rs`).
/// 3. vCPUs, all at once, each on its own thread, in KVM's order (`vcpu/persist.rs`). They need
///    neither 1 nor 2, so they begin at the same time.
/// 4. KVM's interrupt controllers, timer and clock (`machine/persist.rs`). This overwrites
///    interrupts that came earlier, and sends those that wait to the vCPUs' APICs.
/// 5. The vCPUs run, and the device loop starts: it kicks each queue once and raises the devices'
///    interrupts again. What a vCPU notifies before that stays in event descriptors.
///
/// # What is checked
/// A state comes from another process, which a hostile guest may have taken over. So a state is
/// checked as if a guest had written it: its lengths, its counts, and whether it fits the part.
/// Values that no check can reject must be harmless: they may break the clone's guest, but not this
/// process or its host. A state that does not fit is refused with an error that names what was
/// found and what was expected. The VM is then not started, and its process ends.
pub trait Persist: Sized {
    /// What is saved, and what else that takes.
    type Source<'a>;
    /// What the state is given to, and what else that takes.
    type Target<'a>;
    /// What a restore returns: nothing, if the target exists already.
    type Restored;
    /// Why the state cannot be taken. [`std::convert::Infallible`] where it always can.
    type SaveError;
    /// Why the state cannot be restored.
    type RestoreError;

    /// Takes the state of a part that stands still.
    ///
    /// # Errors
    /// KVM refuses.
    fn save(source: Self::Source<'_>) -> Result<Self, Self::SaveError>;

    /// Checks the state, and gives it to a part that was just made or reset.
    ///
    /// # Errors
    /// The state does not fit the part, or KVM refuses it.
    fn restore(&self, target: Self::Target<'_>) -> Result<Self::Restored, Self::RestoreError>;
}
