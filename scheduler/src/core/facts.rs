//! What decides whether VMs of one host fit another.

use patina_snapshot::facts::HostFacts;
use serde::{Deserialize, Serialize};

/// What a host has that its VMs rely on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// What a VM that is made on the host needs of a host. Its CPUID has only what is compared.
    #[serde(flatten)]
    pub host: HostFacts,
    /// Whether VMs can run there while their memory arrives.
    pub lazy_memory: bool,
}
