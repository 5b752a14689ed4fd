//! Which pages a snapshot leaves out because the guest's kernel has them on its lists of free ones.

use crate::{
    process::free_pages,
    vms::{host::Host, vm::Vm},
};
use patina_control::messages::Frozen;
use patina_daemon::chain;
use std::{ops::Range, time::Duration};

/// How long a vmm may look: the largest guest takes it seconds.
const PATIENCE: Duration = Duration::from_secs(10);

impl Host {
    /// The pages that are free in the generation that the VM was frozen into last. None if that is
    /// not known: then the snapshot has all pages.
    pub(in crate::vms) async fn free_pages(&self, vm: &Vm, frozen: Frozen) -> Vec<Range<u64>> {
        let record = &vm.record;
        if frozen.number == 0 || checks_free_pages(&record.cmdline) {
            return Vec::new();
        }
        let asked = free_pages::ask(&vm.dir, frozen.number, record.memory_mib, PATIENCE).await;
        asked.unwrap_or_else(|error| {
            tracing::info!(vm = record.name, error = %chain(&error), "its snapshot has free pages, too");
            Vec::new()
        })
    }
}

/// Whether a kernel with this command line may write a pattern into free pages and expect to find
/// it: `page_poison` does. A kernel takes `-` for `_`.
fn checks_free_pages(cmdline: &str) -> bool {
    cmdline.replace('-', "_").contains("page_poison")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_checks_its_free_pages_is_known_by_its_command_line() {
        for cmdline in ["quiet page_poison=1", "page-poison=on root=/dev/vda", r#""page_poison=1""#] {
            assert!(checks_free_pages(cmdline), "{cmdline}");
        }
        for cmdline in ["", "quiet init_on_free=1 init_on_alloc=1"] {
            assert!(!checks_free_pages(cmdline), "{cmdline}");
        }
    }
}
