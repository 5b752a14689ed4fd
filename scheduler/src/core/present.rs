//! A host as it describes itself, and what runs there.

use super::ticket::HostId;
use patina_snapshot::facts::HostFacts;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc};
use uuid::Uuid;

/// Milliseconds since 1970. The shell sees to it that they do not go back.
pub type UnixMs = u64;

/// A host, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// The host's number, the same whenever it comes back.
    pub id: HostId,
    /// The host's name, for people.
    pub name: String,
    /// The address of the host's vmmd.
    pub address: String,
    /// The CPUs that the host really has.
    pub cpus: u32,
    /// The memory that the host really has, MiB.
    pub memory_mib: u64,
    /// Most clones at once; None: no limit of its own.
    pub max_vms: Option<u32>,
    /// CPUs that may be granted for each 100 real ones; None: as the core is set up.
    pub cpu_percent: Option<u32>,
    /// Memory that may be granted for each 100 MiB of the real one; None: as the core is set up.
    pub memory_percent: Option<u32>,
    /// What tells it from a copy; None: a daemon of an earlier release does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Where it receives what VMs of other hosts send to its own; empty: nowhere.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub overlay: String,
    /// What its VMs rely on; None: a daemon of an earlier release does not say, or nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Box<Facts>>,
    /// The range from which it gives families their networks.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
}

/// What a host has that its VMs rely on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What a VM that is made on the host needs of a host. Its CPUID has only what is compared.
    #[serde(flatten)]
    pub host: HostFacts,
    /// Whether VMs can run there while their memory arrives.
    pub lazy_memory: bool,
}

/// What a VM needs of a host.
pub type Needs = Arc<HostFacts>;

/// What a host says when it beats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beat {
    /// The families whose master lives there; None: the same as before.
    pub masters: Option<BTreeSet<Uuid>>,
    /// The memory that is really free there, MiB; None: it is not known.
    pub free_memory_mib: Option<u64>,
    /// The kernels and root file systems that are there; None: the same as before.
    pub images: Option<BTreeSet<Image>>,
}

/// A kernel or a root file system: BLAKE3 of its content.
pub type Image = [u8; 32];

/// What tells a host's daemon from a copy of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// New at each start of the daemon.
    pub instance: String,
    /// The boot of the machine's kernel.
    pub boot: String,
    /// The machine, the same after a reboot.
    pub machine: String,
    /// The daemon's state folder, the same after a reboot; a copy of the folder has another one.
    pub folder: String,
}

/// What a host has when it registers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// The clones that run there: the ledger follows it.
    pub running: Vec<Running>,
    /// Tickets whose use is under way there: of them, what does not run yet is not taken as ended.
    pub making: BTreeSet<Uuid>,
    /// Families whose master lives there; None: it does not say.
    pub masters: Option<BTreeSet<Uuid>>,
    /// The kernels and root file systems that are there; None: it does not say.
    pub images: Option<BTreeSet<Image>>,
}

/// A clone that runs on a host that registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The ticket under which it was made.
    pub ticket: Uuid,
    /// The clone's family.
    pub family: Uuid,
    /// The clone's vmid.
    pub vmid: u32,
    /// The clone's CPUs.
    pub vcpus: u32,
    /// The clone's memory, MiB.
    pub memory_mib: u32,
    /// The vmid of the VM that it was cloned from, if the host knows.
    pub parent_vmid: Option<u32>,
    /// The host of that VM, if this host says so.
    pub parent_host: Option<HostId>,
}
