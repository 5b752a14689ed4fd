//! The memory of a VM that arrives from another host, seen from outside: what has arrived, and how
//! long an access waits for what has not.

use super::{RemoteError, sys::touch};
use patina_control::pager::RUN_BYTES;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::Instant,
};

const LAYER: &str = "/memfd:patina-layer";
const BLOCK: u64 = 512;

/// A part of a layer in a VM's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: u64,
    end: u64,
    /// Where in the layer it begins.
    offset: u64,
    inode: u64,
}

/// A process's vmm, and the layers in its memory.
#[derive(Debug)]
pub struct Memory {
    pid: u32,
    parts: Vec<Part>,
    layers: HashMap<u64, File>,
}

fn failed(what: String) -> impl Fn(io::Error) -> RemoteError {
    move |source| RemoteError::Memory { what: what.clone(), source }
}

/// A line of /proc/PID/maps: START-END MODE OFFSET DEVICE INODE PATH.
fn part_of(line: &str) -> Option<Part> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let mode = words.next()?;
    let offset = words.next()?;
    let inode = words.nth(1)?.parse().ok()?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let is_layer = mode.ends_with('p') && words.next()?.starts_with(LAYER);
    is_layer.then_some(Part { start: hex(start)?, end: hex(end)?, offset: hex(offset)?, inode })
}

impl Memory {
    /// That of the vmm `pid`.
    pub fn of(pid: u32) -> Result<Self, RemoteError> {
        let path = |file: &str| format!("/proc/{pid}/{file}");
        let maps = fs::read_to_string(path("maps")).map_err(failed(path("maps")))?;
        let parts: Vec<_> = maps.lines().filter_map(part_of).collect();
        let mut layers = HashMap::new();
        for Part { start, end, inode, .. } in &parts {
            let file = path(&format!("map_files/{start:x}-{end:x}"));
            layers.insert(*inode, File::open(&file).map_err(failed(file))?);
        }
        Ok(Self { pid, parts, layers })
    }

    /// Reads a byte of up to `most` runs of which nothing has arrived, the last ones first: what is
    /// fetched ahead comes from the other side. How long each took, microseconds.
    pub fn faults(&self, most: usize) -> Result<Vec<f64>, RemoteError> {
        let mut took_us = Vec::new();
        for part in self.parts.iter().rev() {
            let Some(layer) = self.layers.get(&part.inode) else { continue };
            let first = part.offset.div_ceil(RUN_BYTES);
            let last = (part.offset + part.end - part.start) / RUN_BYTES;
            for run in (first..last).rev() {
                if took_us.len() == most {
                    return Ok(took_us);
                }
                if has_arrived(layer, run)? {
                    continue;
                }
                let address = part.start + run * RUN_BYTES - part.offset;
                let begun = Instant::now();
                touch(self.pid, address).map_err(failed("a VM's memory".into()))?;
                let us = begun.elapsed().as_secs_f64() * 1e6;
                // A run of zeros is known without asking anybody.
                if has_arrived(layer, run)? {
                    took_us.push(us);
                }
            }
        }
        Ok(took_us)
    }
}

/// Whether a page of a run is there.
fn has_arrived(layer: &File, run: u64) -> Result<bool, RemoteError> {
    let start = run * RUN_BYTES;
    match seek(layer, SeekFrom::Data(start)) {
        Ok(found) => Ok(found < start + RUN_BYTES),
        Err(Errno::NXIO) => Ok(false),
        Err(error) => Err(failed("a layer".into())(error.into())),
    }
}

/// How much of the layers behind these descriptors has arrived, bytes.
pub fn arrived(layers: &[PathBuf]) -> u64 {
    // Of each layer there may be several, and it may go at any time.
    let found = layers.iter().filter_map(|path| fs::metadata(path).ok());
    let bytes: HashMap<u64, u64> = found.map(|found| (found.ino(), found.blocks() * BLOCK)).collect();
    bytes.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn parts_of_layers_are_found_among_mappings() {
        let line = "7f00-8f00 rw-p 00001000 00:01 77 /memfd:patina-layer (deleted)";
        assert_eq!(part_of(line), Some(Part { start: 0x7f00, end: 0x8f00, offset: 0x1000, inode: 77 }));
        for other in [
            "7f00-8f00 rw-s 00001000 00:01 77 /memfd:patina-layer (deleted)",
            "7f00-8f00 rw-p 00001000 00:01 77 /memfd:other (deleted)",
            "7f00-8f00 rw-p 00000000 00:00 0",
        ] {
            assert_eq!(part_of(other), None, "{other}");
        }
    }

    #[test]
    fn a_run_has_arrived_when_a_page_of_it_is_there() {
        let layer = File::from(memfd_create("l", MemfdFlags::CLOEXEC).unwrap());
        layer.set_len(4 * RUN_BYTES).unwrap();
        layer.write_all_at(&[1], 2 * RUN_BYTES + 4096).unwrap();
        let there: Vec<_> = (0..4).map(|run| has_arrived(&layer, run).unwrap()).collect();
        assert_eq!(there, [false, false, true, false]);
    }
}
