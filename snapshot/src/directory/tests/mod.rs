//! Tests with real directories.

mod demand;
mod kills;
mod mutations;
mod refusals;
mod reuse;
mod round_trip;
mod space;

use super::*;
use crate::manifest::{Description, ImageRef, RUN_BYTES};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{fs::File, os::unix::fs::FileExt as _, path::Path};
use uuid::Uuid;

const MEMORY_BYTES: u64 = 64 << 20;
const PAGE_BYTES: u64 = 4096;
/// A state's content is opaque.
const STATE: &[u8] = b"the state of a VM";

fn description() -> Description {
    let image = |name: &str| ImageRef { digest: blake3::hash(name.as_bytes()), path: name.into() };
    Description {
        uuid: Uuid::from_bytes([7; 16]),
        created_unix_ms: 1_795_800_000_000,
        name: "web".to_owned(),
        vcpus: 1,
        memory_mib: 64,
        cmdline: String::new(),
        kernel: image("/images/vmlinux"),
        rootfs: image("/images/root.erofs"),
        agent_abi: 3,
        prefault_list: Vec::new(),
    }
}

fn memfd(bytes: u64) -> File {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    file
}

/// A layer with these pages, each filled with a byte.
fn layer(pages: &[(u64, u8)]) -> File {
    let file = memfd(MEMORY_BYTES);
    for (page, byte) in pages {
        file.write_all_at(&[*byte; PAGE_BYTES as usize], page * PAGE_BYTES).unwrap();
    }
    file
}

fn state() -> File {
    let file = memfd(0);
    file.write_all_at(STATE, 0).unwrap();
    file
}

fn create_plain(place: &Path, layers: &[&File]) -> Result<Created, CreateError> {
    create(place, &description(), &state(), (layers, &[]), &mut |_| None, &unwatched)
}

/// The content of a layer, as its runs tell it.
fn content(layer: &LayerFile) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(layer.bytes()).unwrap()];
    for (run, bytes) in all.chunks_mut(usize::try_from(RUN_BYTES).unwrap()).enumerate() {
        layer.read_run(run as u64, bytes).unwrap();
    }
    all
}

fn content_of(file: &File) -> Vec<u8> {
    let mut all = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut all, 0).unwrap();
    all
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
