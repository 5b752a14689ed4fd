//! The arguments and results of the requests about tickets, and of those that the VMs of a ticket
//! make together.

use serde::{Deserialize, Serialize};

/// The arguments of the request `rt` (request-ticket). The request `ticket` has [`TicketName`], the
/// request `lt` [`TicketsArgs`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketArgs {
    /// Most CPUs in all.
    pub max_cpus: u32,
    /// Fewest VMs; with fewer the request fails.
    pub min_vms: u32,
    /// CPUs of each VM, at least.
    pub min_cpus_per_vm: u32,
    /// How long to wait for resources, milliseconds.
    pub timeout_ms: u64,
    /// Chosen by the caller, 1 to 64 characters: the same request made again gives the same ticket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// A ticket, as `rt`, `ticket` and (in a list) `lt` return it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketView {
    /// The ticket's UUID.
    pub uuid: String,
    /// `granted`, `used`, `released`, `expired` (not used in time) or `fenced` (its host went
    /// away).
    pub status: String,
    /// CPUs of all its VMs.
    pub cpus: u32,
    /// How many VMs it is for.
    pub vms: u32,
    /// The fewest CPUs of each VM that the request asked for.
    pub min_cpus_per_vm: u32,
}

/// The arguments of the request `ticket`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketName {
    /// The ticket's UUID; None: the ticket that this clone was made under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// The arguments of the request `lt` (list-tickets).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TicketsArgs {
    /// Returns a [`TicketsPage`] from there on; empty: from the first ticket on. None: returns a
    /// list of all, or error 90 (EMSGSIZE) when that does not fit on a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// Some of a family's tickets, in the order in which they were granted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketsPage {
    /// Tickets that a program requested, at most 480. Tickets of clones that were requested by
    /// number are left out.
    pub tickets: Vec<TicketView>,
    /// [`TicketsArgs::from`] of the next page; None: this is the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Most bytes that a clone leaves to its parent.
pub const LEAVE_MAX_BYTES: u64 = 1 << 20;
/// Most bytes of them in one request or reply, before base64.
pub const PIECE_MAX_BYTES: usize = 32 << 10;

/// The arguments of the request `sync`: a barrier over the VM that cloned with a ticket and all
/// clones of it that live.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyncArgs {
    /// Whose; None: the ticket that this clone was made under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// How long to wait; None: for ever. Error 62 (ETIME) afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The `round` of the last `sync` of that ticket that was answered, 0 before the first; at most
    /// 2^53. If a later meeting has taken place already, the call is answered at once, so that a
    /// program can repeat a call whose answer was lost. None from a program: the last round that
    /// the agent gave to any program of this VM. None from an agent: waits for the next meeting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_round: Option<u64>,
}

/// What `sync` returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// Which meeting it was, from 1.
    pub round: u64,
    /// How many VMs met.
    pub arrived: u32,
}

/// The arguments of the request `leave-data`: a piece of what a clone leaves to its parent, in
/// order from offset 0 (which begins anew). Returns null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveData {
    /// Where it belongs: what was left so far.
    pub offset: u64,
    /// At most [`PIECE_MAX_BYTES`], in base64.
    pub data: String,
}

/// The arguments of the request `leave`: the clone's result, with what `leave-data` has brought.
/// The VM ends; an error says why not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaveArgs {
    /// The clone's result, as a process's exit code.
    #[serde(default)]
    pub status: i32,
    /// Whether the result is to be hidden from the parent.
    #[serde(default)]
    pub noreport: bool,
}

/// The arguments of the request `join`: waits until all clones of a ticket have ended. Returns a
/// list of [`JoinedClone`]s, by vmid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinArgs {
    /// The UUID of the ticket whose clones are waited for.
    pub ticket: String,
    /// How long to wait, milliseconds; None: without limit. Error 62 (ETIME) afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// How a clone ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedClone {
    /// The clone's vmid.
    pub vmid: u32,
    /// `joined`, `ended` (powered off, crashed, failed to start), `killed` or `lost` (its host went
    /// away).
    pub end: String,
    /// The clone's result, as it gave it with `leave`; 0 unless joined.
    pub status: i32,
    /// The length of what the clone left, bytes: [`JoinDataArgs`] asks for it.
    pub data_bytes: u64,
    /// Whether the clone joined, and without noreport.
    pub reported: bool,
}

/// The arguments of the request `join-data`: a piece of what a clone left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinDataArgs {
    /// The UUID of the ticket under which the clone was made.
    pub ticket: String,
    /// The clone's vmid.
    pub vmid: u32,
    /// Where the piece begins in what the clone left, bytes.
    pub offset: u64,
}

/// What `join-data` returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinData {
    /// At most [`PIECE_MAX_BYTES`], in base64; empty at the end.
    pub data: String,
    /// The length of all pieces together, bytes.
    pub bytes: u64,
}

/// The arguments of the request `kill`: either. Returns the list of vmids that have ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KillArgs {
    /// Clones of the family, at most 1,024.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vmids: Vec<u32>,
    /// All clones of this ticket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}
