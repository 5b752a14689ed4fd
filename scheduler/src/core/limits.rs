//! The limits on numbers, sizes and times.

/// Most VMs of a ticket.
pub const TICKET_VMS_MAX: u32 = 256;
/// Most tickets of a family that are granted or used.
pub const FAMILY_TICKETS_MAX: usize = 1024;
/// The greatest vmid: a family's network has no more addresses.
pub const VMID_MAX: u32 = 4092;
/// Most vmids that a host reserves at once.
pub const VMIDS_MAX: u32 = 64;
/// Most families with a counter of vmids.
pub const VMID_FAMILIES_MAX: usize = 16_384;
/// Most requests of a family that wait.
pub const FAMILY_WAITING_MAX: usize = 16_384;
/// Most calls of a family that wait at barriers and for joins.
pub const FAMILY_MEETING_MAX: usize = 16_384;
/// Most calls of a family that wait for the end of what they kill.
pub const FAMILY_KILLS_MAX: usize = 1024;
/// Most bytes that a clone leaves when it joins.
pub const JOIN_DATA_MAX_BYTES: u64 = 1 << 20;
/// Most bytes that all clones of a ticket leave.
pub const TICKET_DATA_MAX_BYTES: u64 = 256 << 20;
/// Most bytes that all clones of a family leave, of all its tickets.
pub const FAMILY_DATA_MAX_BYTES: u64 = 512 << 20;
/// Most bytes that all clones leave. No family has more of them than are free, so that there is
/// room for another one.
pub const DATA_MAX_BYTES: u64 = 4 << 30;
/// How long what a clone left is kept after its family has read it, milliseconds.
pub const READ_KEPT_MS: u64 = 600_000;
/// How often a request may be passed over by later ones that fit before what becomes free is kept
/// for it.
pub const PASSED_OVER_MAX: u32 = 16;
/// How long something is kept for it. Then others may pass it again, as often.
pub const KEPT_MAX_MS: u64 = 60_000;
/// How many clones a host is told again at each beat that they are to end.
pub const KILLS_A_BEAT_MAX: usize = 1024;
