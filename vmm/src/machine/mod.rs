//! One whole VM: memory, kernel, devices and vCPUs. The operations below work on [`Machine`].
//!
//! - [`build`]: makes a VM from a configuration. [`card`]: who the VM is, on its network.
//! - [`wiring`]: connects devices to KVM (ioeventfd, irqfd).
//! - [`connections`]: passes connections of the control socket to the guest's vsock and console.
//! - [`orders`]: carries out the operations that `vmmd` requests.
//! - [`generation`]: the image that a freeze makes and a clone starts from.
//! - [`lazy`]: memory that arrives while the VM runs. [`pager_link`]: the connection to the pager.
//! - [`origin`]: the first state of a VM: a loaded kernel, or warm (waiting for a generation).
//! - [`state`]: writes the state of a VM as a container, and reads it. [`host`]: the facts of this
//!   host.
//! - [`start`]: starts a warm VM from a generation.
//! - [`freeze`]: freezes the VM into a generation and resumes it.
//! - `standstill`: the order in which the parts of a VM stop and resume.
//! - `merging`: merges the layers of RAM for the next generation.
//! - [`prefault`]: copies pages in bulk before the guest writes them.
//! - `tune`: switches off features of KVM that these VMs do not need.
//! - [`persist`]: saves and restores the state that KVM keeps of a VM.

pub mod build;
pub mod card;
pub mod connections;
pub mod freeze;
pub mod freeze_error;
pub mod generation;
pub mod host;
pub mod lazy;
mod merging;
pub mod orders;
pub mod origin;
pub mod pager_link;
pub mod persist;
pub mod prefault;
mod standstill;
pub mod start;
pub mod state;
pub mod tune;
pub mod wiring;

use crate::bus::Bus;
use crate::devices::event_loop::DeviceLoop;
use crate::devices::virtio::net::CardOwner;
use crate::note::note;
use crate::sys::pagemap::{Pagemap, Pages};
use crate::sys::slot::VmWithMemory;
use crate::sys::userfault::Userfault;
use crate::vcpu::gate::Vcpus;
use crate::vcpu::run::Runner;
use generation::{LastFrozen, Ram};
use merging::Merging;
use pager_link::PagerLink;
use patina_snapshot::facts::HostFacts;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// How long the end of a VM waits for a device.
const FINISH_PATIENCE: Duration = Duration::from_millis(500);

/// The parts of a VM that freeze, start and prefault work on.
pub struct Machine {
    bus: Arc<Bus>,
    devices: DeviceLoop,
    vcpus: Vcpus<Runner>,
    vm: VmWithMemory,
    ram: Ram,
    frozen: LastFrozen,
    pagemap: Pagemap,
    /// Tracks writes, and makes accesses wait for the pager. Absent if the kernel cannot track
    /// writes.
    userfault: Option<Arc<Userfault>>,
    /// Present if writes are tracked, so that every page that is not in [`Machine::ram`]'s layers
    /// yet can be found. The value is the number of page faults at the last search
    /// ([`faults::count`](crate::sys::faults::count)).
    tracked_since: Option<u64>,
    /// The pager that accesses to some of RAM wait for.
    pager: PagerLink,
    memory_mib: u32,
    /// A merge in progress, which gives the next generation fewer layers.
    merging: Option<Merging>,
    /// What the VM needs of a host, as far as it does not change. Of a warm VM: what this host has.
    facts: HostFacts,
    /// The MSRs that make up a vCPU's state.
    msrs: Arc<[u32]>,
    /// Ranges of RAM that are still to be prefaulted.
    to_prefault: Vec<Range<u64>>,
    /// Ranges of RAM that the VM wrote between its start and ready.
    prefault_list: Vec<Range<u64>>,
    wants_prefault_list: bool,
    /// The network card of a spare vmm, until it is known who its VM is.
    card: Option<CardOwner>,
    /// Whether writes are tracked in RAM that is still mapped shared.
    tracks_shared: bool,
}

impl Machine {
    /// Stops the devices: nothing more comes from them.
    pub fn finish(&mut self) {
        if let Err(error) = self.devices.stop(FINISH_PATIENCE) {
            note(&patina_daemon::chain(&error));
        }
    }

    /// The pages of a private view that are the VM's own, in bytes of RAM.
    fn private_pages(&self, which: Pages) -> rustix::io::Result<Vec<Range<u64>>> {
        self.in_ram(|region| self.pagemap.private(region, which))
    }

    /// What `find` returns for each region, as ranges of bytes of RAM.
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
