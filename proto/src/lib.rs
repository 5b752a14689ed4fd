//! Patina's gRPC interfaces as Rust types.
//!
//! - [`v1`]: `patina.v1`. The .proto files in `proto/patina/v1` describe each call and field:
//!   - `vmmd.proto`: the service `Vmmd`, with which operators control the VMs of one host.
//!   - `scheduler.proto`: the service `Scheduler`, with which operators and hosts use tickets.
//!   - `host_scheduler.proto`: the service `HostScheduler`, which only hosts call: they register
//!     and use tickets for the clones that they make.
//!   - `host_peer.proto`: the service `HostPeer`, which the vmmds of other hosts call: they make
//!     clones of their VMs here, and read layers.
//! - [`DESCRIPTORS`]: the compiled descriptor set, for gRPC reflection.
//!
//! What guests say is in the crate `patina-abi`, and what a vmm and its `vmmd` say to each other is
//! in `patina-control`.

/// `patina.v1`, generated from `proto/patina/v1/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::too_many_lines, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("patina.v1");
}

/// The encoded `FileDescriptorSet` of every proto, for `tonic-reflection`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/patina.bin"));
