//! What a ticket has on other hosts, and what is known of these.

use patina_proto::v1::HostInfo;
use patina_snapshot::manifest::ImageRef;
use std::collections::HashMap;
use tokio::task::JoinHandle;

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

/// What clones on other hosts need that does not depend on the generation.
#[derive(Debug)]
pub struct Others {
    /// Kernel and root file system: other hosts find them by their content.
    pub images: [ImageRef; 2],
    /// What the scheduler says of the hosts, by their ids, as soon as it has.
    pub infos: JoinHandle<HashMap<String, HostInfo>>,
}
