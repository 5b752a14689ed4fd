//! Patina's gRPC interfaces as Rust types.
//!
//! - [`v1`]: `patina.v1`, what operators say to `vmmd` (`patina/v1/vmmd.proto` documents each call).
//! - [`DESCRIPTORS`]: the compiled descriptor set, for gRPC reflection.
//!
//! What guests say is not here: see the `patina-abi` crate.

/// `patina.v1`, generated from `proto/patina/v1/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::too_many_lines, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("patina.v1");
}

/// The encoded `FileDescriptorSet` of every proto, for `tonic-reflection`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/patina.bin"));
