//! A ticket in its stored form: JSON that people can read.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A host, the same whenever it comes back.
pub type HostId = Uuid;

/// How VMs are spread over hosts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// As few hosts as possible, the fullest first.
    #[default]
    Pack,
    /// The emptiest first, evenly.
    Spread,
}

/// A reservation of VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The ticket's number.
    pub id: Uuid,
    /// The family that has the ticket.
    pub family: Uuid,
    /// The state that the ticket is in.
    pub state: State,
    /// Fencing: greater after each grant and each fencing; never the same twice, in all tickets and
    /// hosts of a scheduler's life.
    pub epoch: u64,
    /// The caller's name for the request, if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// CPUs of each VM.
    pub vcpus: u32,
    /// Memory of each VM, MiB.
    pub memory_mib: u32,
    /// The fewest CPUs of each VM that the request asked for.
    pub min_cpus_per_vm: u32,
    /// How many VMs it has on each host. Never empty; no number is 0.
    pub places: BTreeMap<HostId, u32>,
    /// Whether it was granted for clones that were asked for by number.
    #[serde(default, rename = "loose")]
    pub immediate: bool,
    /// The vmid of the VM that cloned with it; None: it is not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_vmid: Option<u32>,
    /// The host on which that VM is. None: nobody has said it, as in the ledger of an earlier
    /// release, whose tickets were used where the VM was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_host: Option<HostId>,
    /// Whether that VM has ended: nobody waits for it any more.
    #[serde(default)]
    pub parent_ended: bool,
    /// If each of its hosts uses its own part: these parts. All hosts are among `places`. Empty:
    /// one host uses all of it, and what it had elsewhere is given back then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<HostId, Part>,
    /// Its clones, those that have ended included, by vmid: where.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub clones: BTreeMap<u32, HostId>,
    /// What became of its clones, by vmid: those that left a result, and those that have ended.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub results: BTreeMap<u32, Outcome>,
    /// Its clones that are to end and have not, or of which nobody knows whether they have, by
    /// vmid: why.
    #[serde(default, rename = "doomed", skip_serializing_if = "BTreeMap::is_empty")]
    pub kills_requested: BTreeMap<u32, String>,
    /// The last meeting of its VMs, if they have met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub met: Option<Met>,
    /// When it was granted, milliseconds since 1970.
    pub granted_unix_ms: u64,
    /// When it is taken back unless it is used, milliseconds since 1970.
    pub expires_unix_ms: u64,
    /// When it came to its end, milliseconds since 1970; None: it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_unix_ms: Option<u64>,
}

/// What one host has of a ticket whose hosts use it each for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Whether the host has used it.
    pub used: bool,
    /// The ticket's epoch when this part was granted last. What becomes of other parts changes the
    /// ticket's epoch, and is no reason to refuse this host.
    pub epoch: u64,
}

/// The state of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// VMs are reserved for it, and it is not used yet.
    Granted,
    /// Clones were made with it, or are with a part of it. Other parts may still be granted.
    Used,
    /// It was given back, or all its clones have ended.
    Released,
    /// It was not used in time.
    Expired,
    /// Its host was given up. It is used again if that comes back with clones of it.
    Fenced,
}

/// A meeting of a ticket's VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Met {
    /// The number of the meeting, from 1.
    pub round: u64,
    /// How many VMs met; 0: not known.
    pub vms: u32,
}

/// What became of a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended; None: it has left its result and is about to end.
    pub end: Option<VmEnd>,
    /// The result that the clone left.
    pub status: i32,
    /// The length of what it left, bytes.
    pub data_bytes: u64,
    /// Whether the VM that cloned is to see it.
    pub reported: bool,
    /// Whether what it left is kept.
    #[serde(default, skip_serializing_if = "Kept::is_kept")]
    pub kept: Kept,
}

/// What has become of what a clone left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It is kept, if there is anything.
    #[default]
    Yes,
    /// So, and its family read it first at this time.
    ReadAt(u64),
    /// It is not any more.
    Dropped,
}

impl Kept {
    fn is_kept(&self) -> bool {
        *self == Self::Yes
    }
}

impl Outcome {
    /// The bytes that are kept of it.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        if self.kept == Kept::Dropped { 0 } else { self.data_bytes }
    }

    /// Whether it left something that is not kept any more.
    #[must_use]
    pub fn is_dropped(&self) -> bool {
        self.data_bytes > 0 && self.kept == Kept::Dropped
    }
}

/// How a clone ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmEnd {
    /// It said so itself.
    Joined,
    /// Powered off, crashed, failed to start.
    Ended,
    /// By an operator or its family.
    Killed,
    /// Its host was given up, or came back without it.
    Lost,
}

impl Ticket {
    /// How many VMs it is for.
    #[must_use]
    pub fn vms(&self) -> u32 {
        self.places.values().fold(0, |sum, vms| sum.saturating_add(*vms))
    }

    /// Whether a VM is a clone of it that has not ended.
    #[must_use]
    pub fn is_live(&self, vmid: u32) -> bool {
        self.clones.contains_key(&vmid) && self.results.get(&vmid).is_none_or(|outcome| outcome.end.is_none())
    }

    /// Whether a VM is a clone of it that was given up, with its host or because that did not list
    /// it. It may run all the same.
    #[must_use]
    pub fn is_lost(&self, vmid: u32) -> bool {
        self.results.get(&vmid).is_some_and(|outcome| outcome.end == Some(VmEnd::Lost))
    }

    /// Whether it has clones that live, or may still be made, or may come back with their hosts.
    #[must_use]
    pub fn may_have_vms(&self) -> bool {
        self.state == State::Used || self.results.keys().any(|vmid| self.is_lost(*vmid))
    }

    /// Its clones that have not ended, and where they are.
    pub fn live(&self) -> impl Iterator<Item = (u32, HostId)> + '_ {
        self.clones.iter().filter(|(vmid, _)| self.is_live(**vmid)).map(|(vmid, host)| (*vmid, *host))
    }

    /// How often its VMs have met.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.met.map_or(0, |met| met.round)
    }

    /// Whether a host has a part that it has not used, of a ticket that others have used.
    #[must_use]
    pub fn is_to_come(&self, host: HostId) -> bool {
        self.state == State::Used && self.parts.get(&host).is_some_and(|part| !part.used)
    }

    /// The parts that are granted and not used, of a ticket that others have used: how many VMs
    /// where.
    pub fn to_come(&self) -> impl Iterator<Item = (HostId, u32)> + '_ {
        self.places.iter().filter(|(host, _)| self.is_to_come(**host)).map(|(host, vms)| (*host, *vms))
    }

    /// How many VMs these are.
    #[must_use]
    pub fn vms_to_come(&self) -> u32 {
        self.to_come().fold(0, |sum, (_, vms)| sum.saturating_add(vms))
    }

    /// Whether it is used, and none of its clones lives or may still be made.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.state == State::Used && self.live().next().is_none() && self.to_come().next().is_none()
    }

    /// How many VMs it holds on a host: until it is used there those that it was granted, then
    /// those that live.
    #[must_use]
    pub fn held(&self, host: HostId) -> u32 {
        match self.state {
            State::Granted => self.places.get(&host).copied().unwrap_or(0),
            State::Used if self.is_to_come(host) => self.places.get(&host).copied().unwrap_or(0),
            State::Used => {
                let here = self.live().filter(|(_, place)| *place == host).count();
                u32::try_from(here).unwrap_or(u32::MAX)
            }
            State::Released | State::Expired | State::Fenced => 0,
        }
    }

    /// Whether it came to its end.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !matches!(self.state, State::Granted | State::Used)
    }
}
