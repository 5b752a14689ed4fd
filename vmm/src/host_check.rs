//! Checks whether the kernel finds written pages as a freeze needs it: `vmm --check-host`, which
//! `vmmd` runs once when it starts. Some kernels report wrong ranges (PAGEMAP_SCAN, before the
//! fixes of 2026). A clone would miss pages that its parent has written.

use crate::machine::host;
use crate::memory::layers::{Layers, LayersError, new_layer};
use crate::memory::{MemoryError, reserve};
use crate::ranges::union;
use crate::sys::pagemap::{Pagemap, Pages};
use crate::sys::userfault::Userfault;
use crate::vcpu::{cpuid, kind, offer};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;
use patina_control::PAGE_BYTES;
use patina_control::config::{HostCheck, KVM_KIND_VARIABLE};
use patina_snapshot::facts::HostFacts;
use patina_snapshot::layout;
use rustix::io::Errno;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

/// Three page tables, of which the one in the middle stays empty at first.
const PAGES: u64 = 3 * 512;
/// Pages that the layer has; the others are holes.
const LAYER_PAGES: Range<u64> = 0..40;

/// Why the check failed.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("make memory for the check")]
    Memory(#[from] MemoryError),
    #[error("make memory for the check")]
    Layers(#[from] LayersError),
    #[error("fill memory for the check")]
    Fill(#[source] std::io::Error),
    #[error("write to the memory of the check")]
    Write(#[from] vm_memory::GuestMemoryError),
    #[error("ask the kernel for written pages")]
    Ask(#[from] Errno),
    #[error("{step}: the kernel reports the pages {found:?}; written were {written:?}")]
    Wrong { step: &'static str, found: Vec<Range<u64>>, written: Vec<Range<u64>> },
}

/// Checks the kernel.
#[must_use]
pub fn check() -> HostCheck {
    let fault = Userfault::open().and_then(|userfault| check_with(&userfault).err());
    HostCheck {
        pagemap_fault: fault.map(|fault| patina_daemon::chain(&fault)),
        facts: facts().map(|facts| layout::to_bytes(&facts)),
    }
}

/// What a VM that is made on this host needs of a host. None: KVM cannot be asked.
fn facts() -> Option<HostFacts> {
    let told = std::env::var(KVM_KIND_VARIABLE).ok();
    let told = told.and_then(|kind| serde_json::from_value(kind.into()).ok());
    let kind = told.unwrap_or_else(kind::detect);
    let kvm = Kvm::new().ok()?;
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).ok()?;
    let supported = offer::offered(kind, supported, None).ok()?;
    let vm = kvm.create_vm().ok()?;
    let vcpu = vm.create_vcpu(0).ok();
    Some(host::gather(&kvm, kind, &cpuid::for_vcpu(&supported, 0, 1), vcpu.as_ref()))
}

/// As a VM's memory: pages are read and written, before tracking and between searches of both
/// kinds.
fn check_with(userfault: &Userfault) -> Result<(), Fault> {
    let bytes = PAGES * PAGE_BYTES;
    let memory = reserve(bytes)?;
    let layer = new_layer(bytes)?;
    for page in LAYER_PAGES {
        layer.write_all_at(&[1], page * PAGE_BYTES).map_err(Fault::Fill)?;
    }
    Layers::whole(layer, bytes).map_over(&memory)?;
    let pagemap = Pagemap::open()?;
    let Some(region) = memory.iter().next() else { return Ok(()) };
    let write = |page: u64| memory.write_obj(7u8, GuestAddress(page * PAGE_BYTES));
    let read = |page: u64| memory.read_obj::<u8>(GuestAddress(page * PAGE_BYTES)).map(drop);
    let expect = |step, pages: Pages, written: &[u64]| {
        let found = pagemap.private(region, pages)?;
        let written = union(written.iter().map(|page| page * PAGE_BYTES..(page + 1) * PAGE_BYTES).collect());
        if found == written { Ok(()) } else { Err(Fault::Wrong { step, found, written }) }
    };
    // Pages of the layer, holes, and neighbours of both kinds.
    [1, 2, 39, 40, 41, 1100].into_iter().try_for_each(write)?;
    [0, 3, 38, 42, 200, 1101, 1535].into_iter().try_for_each(read)?;
    expect("before tracking", Pages::All, &[1, 2, 39, 40, 41, 1100])?;
    userfault.track(region)?;
    expect("at the first search", Pages::Written, &[1, 2, 39, 40, 41, 1100])?;
    expect("at a second search", Pages::Written, &[])?;
    // Among them pages that were read only, pages that were written before, and a new page table.
    [0, 2, 200, 600, 1101, 1535].into_iter().try_for_each(write)?;
    [5, 601, 1102].into_iter().try_for_each(read)?;
    expect("after writes", Pages::Written, &[0, 2, 200, 600, 1101, 1535])?;
    [5, 600, 700].into_iter().try_for_each(write)?;
    [6, 701].into_iter().try_for_each(read)?;
    expect("at rest", Pages::WrittenAtRest, &[5, 600, 700])?;
    expect("at rest again", Pages::WrittenAtRest, &[])?;
    [6, 7, 701, 1000].into_iter().try_for_each(write)?;
    expect("after a search at rest", Pages::Written, &[6, 7, 701, 1000])?;
    // Every other page of a table: more ranges than one answer of the kernel holds.
    let scattered: Vec<u64> = (0..PAGES).step_by(2).collect();
    scattered.iter().copied().try_for_each(write)?;
    expect("with many ranges", Pages::WrittenAtRest, &scattered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root and Linux 6.7"]
    fn this_kernel_passes() {
        let userfault = Userfault::open().expect("Linux 6.7 or later, and the right to make a userfaultfd");
        assert_eq!(check_with(&userfault).map_err(|fault| patina_daemon::chain(&fault)), Ok(()));
    }
}
