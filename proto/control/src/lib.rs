//! What `vmmd` and a `vmm` process say to each other. A vmm outlives its `vmmd`, so either may be older than the other.
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

/// Size of a page of a guest's RAM, bytes.
pub const PAGE_BYTES: u64 = 4096;

/// Goes on although this may have failed, and says why that does no harm.
pub fn best_effort<T, E>(result: Result<T, E>, _why: &'static str) {
    drop(result);
}
