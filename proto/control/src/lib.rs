//! What `vmmd` and a `vmm` process say to each other. A vmm outlives its `vmmd`, so either may be older than the other.
//! [`VERSION`] says what holds then.
//!
//! - [`config`]: the JSON document that a `vmm` reads from its `--config-fd`; file descriptors by number.
//! - [`messages`]: the lines on its control socket while it runs.
//! - [`kernel`]: which kernels a vmm loads.
//! - [`end`]: how a VM ended, left in a file for a `vmmd` that was not there to see it.
//! - [`rights`]: descriptors that come with a line.
//! - [`memfd`]: sealed files in memory, in which the two pass what is large.
//! - [`monotonic_ns`], [`PAGE_BYTES`]: the clock and the pages that both count by. [`best_effort`]: for what may fail without harm.
//!
//! Both depend on this crate, so it depends on little: no KVM, and nothing that runs tasks.

mod clock;
pub mod config;
pub mod end;
pub mod kernel;
pub mod memfd;
pub mod messages;
pub mod rights;

pub use clock::monotonic_ns;

/// The version of everything in this crate. A vmm tells its own with [`messages::FromVmm::Hello`], and a `vmmd` its own with
/// [`config::VmConfig::version`]. A peer that tells none is older than versions, and has version 0.
///
/// **What needs no new version:** a new kind of message or answer that a peer may ignore or refuse, and a new field that may be
/// missing. Both sides ignore fields that they do not know. They ignore lines that they do not understand, tell so in their log,
/// and keep the connection. A vmm answers a first line that it does not understand with [`messages::Opened::Error`]. A kind of
/// end that a `vmmd` does not know is [`end::EndKind::Other`]; its reason in words is kept.
///
/// **What needs a new version:** all that an older peer would do wrongly without noticing.
///
/// | | what it does |
/// | --- | --- |
/// | a `vmmd` with an older vmm that runs | adapts: it asks for nothing that this version of the vmm does not have |
/// | a `vmmd` with a newer vmm that runs | leaves it running, shows it with the problem, kills it when asked, does not clone it |
/// | a `vmmd` that has started a newer vmm for a clone | refuses the clone: its own program has been replaced by a newer one |
/// | a vmm that an older `vmmd` starts | runs: what the configuration does not have is as it was then |
/// | a vmm that a `vmmd` of version 0 starts | says no hello, which that `vmmd` would take for a fault: all take it for one of version 0 |
/// | a vmm that a newer `vmmd` starts | refuses the configuration and ends |
pub const VERSION: u32 = 1;

/// Size of a page of a guest's RAM, bytes.
pub const PAGE_BYTES: u64 = 4096;

/// Goes on although this may have failed, and says why that does no harm.
pub fn best_effort<T, E>(result: Result<T, E>, _why: &'static str) {
    drop(result);
}
