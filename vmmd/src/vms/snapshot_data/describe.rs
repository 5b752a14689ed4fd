//! What a snapshot says of its VM.

use super::error::SnapshotError;
use crate::{clock::unix_ms, store::record::Record};
use patina_abi::ABI_SNAPSHOT;
use patina_control::messages::{Frozen, Prepare};
use patina_snapshot::manifest::{Description, ImageRef};
use uuid::Uuid;

/// How a VM is frozen that is to be kept. If its agent would not notice that the VM was restored,
/// the VM is not paused at all.
pub(in crate::vms) const PREPARE: Prepare = Prepare::Ask { hold: true, agent_abi_min: ABI_SNAPSHOT };

/// Whether the agent will notice that its VM was restored. Of vmms that do not heed [`PREPARE`].
pub(in crate::vms) fn check_agent(record: &Record, frozen: Frozen) -> Result<(), SnapshotError> {
    let name = || record.name.clone();
    match frozen.agent_abi {
        0 => Err(SnapshotError::OldVmm(name())),
        abi if abi < ABI_SNAPSHOT => Err(SnapshotError::OldAgent { name: name(), abi }),
        _ => Ok(()),
    }
}

/// What a snapshot says of the VM.
pub(in crate::vms) fn describe(
    record: &Record,
    [kernel, rootfs]: [ImageRef; 2],
    frozen: Frozen,
    prefault_list: Vec<u8>,
) -> Description {
    Description {
        uuid: Uuid::new_v4(),
        created_unix_ms: unix_ms(),
        name: record.name.clone(),
        vcpus: record.vcpus,
        memory_mib: record.memory_mib,
        cmdline: record.cmdline.clone(),
        kernel,
        rootfs,
        agent_abi: frozen.agent_abi,
        prefault_list,
    }
}
