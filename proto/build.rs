//! Compiles the .proto files with protox (pure Rust: no protoc on the machine) and keeps the
//! descriptor set for the reflection service.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

const PROTOS: [&str; 5] = [
    "patina/v1/host_facts.proto",
    "patina/v1/host_peer.proto",
    "patina/v1/host_scheduler.proto",
    "patina/v1/scheduler.proto",
    "patina/v1/vmmd.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let descriptors = protox::compile(PROTOS, ["."])?;
    fs::write(out.join("patina.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    Ok(())
}
