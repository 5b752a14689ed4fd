//! The guest ABI, version [`ABI`]. It has three protocols, each in a module:
//!
//! ```text
//!  program in the guest ──unix socket, JSON lines──▶ gc-agent      [`local`]
//!  gc-agent ──vsock, guest to host, JSON lines──▶ vmm              [`link`]
//!  vmm/vmmd ──vsock, host to guest, binary frames──▶ gc-agent      [`exec`]
//! ```
//!
//! Each side treats the other as hostile. Lines and frames have a greatest length, and invalid data
//! ends only the connection. The crate has no I/O, only types, limits and codecs:
//!
//! - [`codes`]: the error codes of calls.
//! - [`args`]: a call's arguments, which are passed on unparsed.
//! - [`lines`]: splits received bytes into lines.

pub mod args;
pub mod codes;
pub mod exec;
pub mod lines;
pub mod link;
pub mod local;

/// The version of everything in this crate. The agent says its own with [`link::FromAgent::Hello`].
///
/// Guest images are usually older than their hosts, and a clone has its parent's agent. So a host
/// serves agents of every version from [`ABI_OLDEST`] on.
///
/// **No new version is needed for** a new kind of message that a peer may ignore, a new verb, or a
/// new field that may be missing. Both sides ignore unknown fields and unknown kinds of lines, and
/// keep the link. The host refuses an unknown verb, and an unknown argument of a verb, with 22
/// (EINVAL).
///
/// **Version 3 is an exception for kinds of lines.** Earlier releases with version 3 break the link
/// at an unknown kind; later releases with version 3 ignore it. The version does not tell them
/// apart. So the first new kind of [`link::FromAgent`] or [`link::FromHost`] needs version 4, and
/// is sent only to peers of version 4 or later. From version 4 on all peers ignore unknown kinds.
///
/// **A new version is needed for** every change that an older peer would handle wrongly without
/// noticing. [`ABI_OLDEST`] is raised when hosts no longer support what older agents need.
///
/// **Version 4:** an agent knows from vmid and family that its VM is another one than before. An
/// agent of version 3 looks at the vmid alone. It would keep the old identity in the master of a
/// family that is restored from a snapshot, so its VM cannot be kept in a snapshot.
///
/// | agent | what the host does |
/// | --- | --- |
/// | older than [`ABI_OLDEST`] | refuses it: the image must be built anew |
/// | [`ABI_OLDEST`] to [`ABI`] | serves it, and asks for nothing that its version does not have |
/// | newer than [`ABI`] | refuses it: the host must be updated, or the image must be an older one |
pub const ABI: u32 = 4;
/// The oldest agent that a host serves. Agents before version 3 wait for the host to break the link
/// of a clone.
pub const ABI_OLDEST: u32 = 3;
/// The oldest agent that notices that its VM was restored from a snapshot.
pub const ABI_SNAPSHOT: u32 = 4;

/// The guest's vsock address, the same in every VM: a vsock is private to its VM, so clones need no
/// new one.
pub const GUEST_CID: u32 = 3;
/// The host's vsock address (fixed by the virtio specification).
pub const HOST_CID: u32 = 2;
/// Where the host listens for the agent's link ([`link`]).
pub const LINK_PORT: u32 = 1024;
/// The ports from which an agent connects to [`LINK_PORT`], if they are free. A kernel binds them
/// for no program without CAP_NET_BIND_SERVICE. Agents connected from any port before they said
/// [`link::Vmcoreinfo`].
pub const AGENT_PORTS: std::ops::Range<u32> = 512..1024;
/// Where the agent listens for exec sessions ([`exec`]).
pub const EXEC_PORT: u32 = 1025;

/// Longest JSON line on the link, on the local socket and between a VM's vmm and `vmmd`, newline
/// included.
pub const LINE_MAX_BYTES: usize = 64 * 1024;
/// Most bytes of a call's verb and arguments together, as they stand in its line. A longer call is
/// refused with error 90 (EMSGSIZE) by the first that sees it: so a call that one component passes
/// on fits the next one's line.
pub const CALL_MAX_BYTES: usize = LINE_MAX_BYTES - AROUND_MAX_BYTES;
/// Most bytes of the message of an error, before it is written as JSON, where each may become
/// [`ESCAPE_MAX_BYTES`].
pub const MESSAGE_MAX_BYTES: usize = 8 * 1024;
/// Most bytes of whatever stands around a call, an answer or an error's message on any line: kind,
/// number, code and names.
pub const AROUND_MAX_BYTES: usize = 1024;
/// Most bytes that JSON makes of one.
pub const ESCAPE_MAX_BYTES: usize = "\\u0000".len();

const _: () = assert!(ABI_OLDEST <= ABI && ABI_SNAPSHOT <= ABI);
const _: () = assert!(CALL_MAX_BYTES + AROUND_MAX_BYTES <= LINE_MAX_BYTES);
const _: () = assert!(MESSAGE_MAX_BYTES * ESCAPE_MAX_BYTES + AROUND_MAX_BYTES <= LINE_MAX_BYTES);
