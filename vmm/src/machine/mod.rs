//! One VM, put together: memory, kernel, devices and vCPUs. Its verbs work on [`Machine`].
//!
//! - [`build`]: makes it all from a configuration.
//! - [`wiring`]: devices to KVM: kicks, interrupts, windows.
//! - [`connections`]: connections of the control socket to the guest's vsock and console. [`orders`]: what is asked of the VM itself.
//! - [`generation`]: what a VM is frozen into.
//! - [`origin`]: where a VM begins: with a kernel, or warm, waiting for a generation.
//! - [`start`]: gives a warm VM its generation.
//! - [`freeze`]: turns the VM into a generation and lets it go on.
//! - `standstill`: in which order it stops for that, and whether it goes on. `merging`: fewer layers for its next generation.
//! - [`prefault`]: copies pages in bulk before the guest writes them.
//! - `tune`: what KVM is told to leave.
//! - [`persist`]: what KVM keeps of a VM, saved and restored.

pub mod build;
pub mod connections;
pub mod freeze;
pub mod freeze_error;
pub mod generation;
mod merging;
pub mod orders;
pub mod origin;
pub mod persist;
pub mod prefault;
mod standstill;
pub mod start;
pub mod tune;
pub mod wiring;

use crate::bus::Bus;
use crate::devices::event_loop::DeviceLoop;
use crate::note::note;
use crate::sys::pagemap::{Pagemap, Pages, WriteTracker};
use crate::sys::slot::VmWithMemory;
use crate::vcpu::gate::Vcpus;
use crate::vcpu::run::Runner;
use generation::Ram;
use merging::Merging;
use std::ops::Range;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// The parts of a VM that its orders work on: freeze, start, prefault.
pub struct Machine {
    bus: Arc<Bus>,
    devices: DeviceLoop,
    vcpus: Vcpus<Runner>,
    vm: VmWithMemory,
    ram: Ram,
    pagemap: Pagemap,
    /// Tells which pages are written, if the kernel can.
    tracker: Option<WriteTracker>,
    /// Present if what it tells is all that is not in [`Machine::ram`]'s layers yet: how many page faults there had been when it
    /// was asked last ([`faults::count`](crate::sys::faults::count)).
    tracked_since: Option<u64>,
    memory_mib: u32,
    /// Fewer layers for the next generation, in the making.
    merging: Option<Merging>,
    /// The MSRs that make up a vCPU's state.
    msrs: Arc<[u32]>,
    /// Ranges of RAM that are still to be prefaulted.
    to_prefault: Vec<Range<u64>>,
    /// Ranges of RAM that the VM wrote from its start to ready.
    prefault_list: Vec<Range<u64>>,
    wants_prefault_list: bool,
    /// Whether the tracker looks at RAM that is shared still.
    tracks_shared: bool,
}

impl Machine {
    /// Stops the devices and brings the console's last output to its log.
    pub fn finish(&mut self) {
        if let Err(error) = self.devices.stop() {
            note(&crate::chain(&error));
        }
        self.bus.serial.flush();
    }

    /// The pages of a private view that are the VM's own, in bytes of RAM.
    fn private_pages(&self, which: Pages) -> rustix::io::Result<Vec<Range<u64>>> {
        self.in_ram(|region| self.pagemap.private(region, which))
    }

    /// What is found in each region, in bytes of RAM.
    fn in_ram(
        &self,
        find: impl Fn(&GuestRegionMmap) -> rustix::io::Result<Vec<Range<u64>>>,
    ) -> rustix::io::Result<Vec<Range<u64>>> {
        let mut found = Vec::new();
        let mut base = 0;
        for region in self.vm.memory().iter() {
            let runs = find(region)?;
            found.extend(runs.into_iter().map(|run| run.start + base..run.end + base));
            base += region.len();
        }
        Ok(found)
    }

    fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }
}
