//! What a ticket has on another host.

/// What a ticket has on another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elsewhere {
    /// UUID of the host.
    pub host_id: String,
    /// Its name.
    pub host: String,
    /// How many VMs.
    pub vms: u32,
}

/// Clones that another host is to make.
#[derive(Debug)]
pub struct There {
    /// What the ticket has there.
    pub place: Elsewhere,
    /// Their vmids.
    pub vmids: Vec<u32>,
}
