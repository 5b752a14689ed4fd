//! The VMs of a family that live on this host, or are being made.

use std::collections::BTreeMap;

/// Vmids, each with how often it was taken: one that was given back may be taken again before all
/// is undone that it was taken for.
#[derive(Debug, Default)]
pub(in crate::vms::table) struct Living(BTreeMap<u32, u32>);

impl Living {
    pub(super) fn add(&mut self, vmids: impl IntoIterator<Item = u32>) {
        for vmid in vmids {
            *self.0.entry(vmid).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, vmid: u32) {
        if let Some(count) = self.0.get_mut(&vmid) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&vmid);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn vmids(&self) -> impl Iterator<Item = u32> {
        self.0.keys().copied()
    }
}
