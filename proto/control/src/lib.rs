//! The protocol between `vmmd` and a `vmm` process. A vmm outlives its `vmmd`, so either may be
//! older than the other. [`VERSION`] has the rules for that.
//!
//! - [`config`]: the JSON document that a `vmm` reads from its `--config-fd`. It names file
//!   descriptors by number.
//! - [`messages`]: the lines on the control socket of a running `vmm`.
//! - [`kernel`]: the kernel formats that a vmm loads.
//! - [`end`]: how a VM ended. The vmm records it in a file, for a `vmmd` that was not running at
//!   that time.
//! - [`pager`]: what `vmmd`, a `vmm` and the host's `pager` send to each other.
//! - [`rights`]: descriptors that are sent with a line.
//! - [`memfd`]: sealed files in memory, which carry large data.
//! - [`sparse`]: pages of zeros, which files need not have.
//! - [`monotonic_ns`], [`PAGE_BYTES`]: the clock and the page size that both use.
//! - [`best_effort`]: for operations that may fail without harm.
//!
//! Both processes depend on this crate, so it has few dependencies: neither KVM crates nor an async
//! runtime.

mod clock;
pub mod config;
pub mod end;
pub mod kernel;
pub mod memfd;
pub mod messages;
pub mod pager;
pub mod rights;
pub mod sparse;

pub use clock::monotonic_ns;

/// The version of everything in this crate. A vmm sends its version in
/// [`messages::FromVmm::Hello`], and a `vmmd` in [`config::VmConfig::version`]. A peer that sends
/// none is older than these fields and has version 0.
///
/// **No new version is needed for** a new kind of message or answer that a peer may ignore or
/// refuse, or for a new field that may be missing. Both sides ignore unknown fields. They ignore
/// lines that they do not understand, log the first of them, and keep the connection. A vmm answers
/// an invalid first line with [`messages::Opened::Error`]. A `vmmd` reads an unknown kind of end as
/// [`end::EndKind::Other`] and keeps its reason.
///
/// **A new version is needed for** every change that an older peer would handle wrongly without
/// noticing.
///
/// | | what it does |
/// | --- | --- |
/// | a `vmmd` with an older vmm that runs | adapts: it asks for nothing that this version of the vmm does not have, and clones no VM whose vmm is older than [`CLONABLE_OLDEST`] |
/// | a `vmmd` with a newer vmm that runs | leaves it running, shows it with the problem, kills it when asked, does not clone it |
/// | a `vmmd` that has started a newer vmm for a clone | refuses the clone: its own program has been replaced by a newer one |
/// | a vmm that an older `vmmd` starts | runs: what the configuration does not have is as it was then |
/// | a vmm that a `vmmd` of version 0 starts | says no hello, which that `vmmd` would take for a fault: all take it for one of version 0 |
/// | a vmm that a newer `vmmd` starts | refuses the configuration and ends |
///
/// | version | what changed |
/// | --- | --- |
/// | 1 | a vmm and a `vmmd` say their versions |
/// | 2 | a generation's state is a container with versions (crate `patina-snapshot`); layers that are still being filled, in [`messages::Open::Start`]; [`messages::Open::Pager`] |
/// | 3 | [`config::VmConfig::cpu_baseline`]: an older vmm would offer its guest more |
pub const VERSION: u32 = 3;

/// The oldest version of a vmm whose generations a vmm of this version can start. A VM with an
/// older vmm runs on, and is not cloned. From version 2 on a state has versions of its own, so a
/// change of a state needs no new version here.
pub const CLONABLE_OLDEST: u32 = 2;

/// Size of a page of a guest's RAM, bytes.
pub const PAGE_BYTES: u64 = 4096;

/// Ignores a failure. The second argument says why a failure does no harm.
pub fn best_effort<T, E>(result: Result<T, E>, _why: &'static str) {
    drop(result);
}
