//! What hosts and families name in their calls.

use super::ticket::HostId;
use uuid::Uuid;

/// A ticket and who names it: a family that is given must be the ticket's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// The ticket's number.
    pub id: Uuid,
    /// The family of the caller; None: an operator calls.
    pub family: Option<Uuid>,
}

/// A host's call to make clones with a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The ticket that is used.
    pub ticket: Named,
    /// The ticket's epoch as the caller knows it; None: any epoch.
    pub epoch: Option<u64>,
    /// The host that makes the clones.
    pub host: HostId,
    /// The epoch of the host's registration; None: any epoch.
    pub host_epoch: Option<u64>,
    /// The vmid of the VM that is cloned.
    pub parent_vmid: u32,
    /// The host on which that VM is.
    pub parent_host: HostId,
    /// The clones' vmids: at least one, at most as many as the ticket has VMs on this host. What it
    /// has there beyond them is given back.
    pub vmids: Vec<u32>,
    /// Whether what the ticket has on other hosts is for those; else it is given back.
    pub keep_others: bool,
}

/// A host wants vmids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmidDemand {
    /// The family that gets clones.
    pub family: Uuid,
    /// The host that asks.
    pub host: HostId,
    /// The epoch of the host's registration; None: any epoch.
    pub host_epoch: Option<u64>,
    /// How many.
    pub count: u32,
    /// The same number of the same host gets the same vmids; None: each request is a new one.
    pub request: Option<String>,
    /// None below this.
    pub at_least: u32,
}
