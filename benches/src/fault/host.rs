//! A real pager, with a layer and the processes' parts that `vmmd` and vmms have.

use super::sys::View;
use patina_control::pager::{
    FromPager, Id, Mapping, PagerToVm, RUN_BYTES, ToPager, VERSION, VmToPager, layer_memfd,
};
use patina_control::{memfd, rights};
use serde::{Serialize, de::DeserializeOwned};
use std::error::Error;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use userfaultfd::{FeatureFlags, RegisterMode, Uffd, UffdBuilder};

/// A connection with lines.
#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Peer {
    fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), Box<dyn Error>> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        Ok(rights::send(&self.stream, &line, descriptors)?)
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Box<dyn Error>> {
        loop {
            if let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line)?);
            }
            let mut chunk = [0; 4096];
            match rights::receive(&self.stream, &mut chunk)? {
                (0, _) => return Err("the pager has closed its socket".into()),
                (length, _) => self.input.extend(&chunk[..length]),
            }
        }
    }
}

/// A layer: its file, and its memory, which is empty.
#[derive(Debug)]
pub struct Layer {
    pub file: File,
    pub memfd: File,
    digests: File,
    pub bytes: usize,
}

impl Layer {
    /// So many runs without a page of zeros, in a file in `folder` that the page cache has.
    pub fn new(folder: &Path, runs: usize) -> Result<Self, Box<dyn Error>> {
        let mut file = tempfile::tempfile_in(folder)?;
        let mut digests = Vec::new();
        let mut run = vec![0; RUN_BYTES as usize];
        for number in 0..runs {
            for (at, word) in run.chunks_mut(8).enumerate() {
                word.copy_from_slice(
                    &(((number * 8192 + at) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes(),
                );
            }
            file.write_all(&run)?;
            digests.extend(blake3::hash(&run).as_bytes());
        }
        let bytes = runs * RUN_BYTES as usize;
        let memfd = layer_memfd("bench", bytes as u64)?;
        Ok(Self { file, memfd, digests: memfd::sealed("digests", &digests)?, bytes })
    }

    /// The same file with memory that is empty again.
    pub fn again(&self) -> Result<Self, Box<dyn Error>> {
        let memfd = layer_memfd("bench", self.bytes as u64)?;
        Ok(Self {
            file: self.file.try_clone()?,
            memfd,
            digests: self.digests.try_clone()?,
            bytes: self.bytes,
        })
    }
}

/// A pager. It ends when dropped.
#[derive(Debug)]
pub struct Pager {
    child: Child,
    peer: Peer,
}

impl Drop for Pager {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const LAYER: &str = "layer";

fn id(name: &str) -> Result<Id, Box<dyn Error>> {
    Ok(Id::try_from(name.to_owned())?)
}

impl Pager {
    /// Starts `pager` of `bin_dir` with one layer.
    pub fn start(bin_dir: &Path, layer: &Layer) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("pager.sock");
        let listener = UnixListener::bind(&path)?;
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty())?;
        let child = Command::new(bin_dir.join("pager"))
            .args(["--control-fd", &listener.as_raw_fd().to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .spawn()?;
        let peer = Peer { stream: UnixStream::connect(&path)?, input: Vec::new() };
        let mut pager = Self { child, peer };
        let hello: FromPager = pager.peer.receive()?;
        let add = ToPager::AddLayer {
            layer: id(LAYER)?,
            bytes: layer.bytes as u64,
            has_demand: false,
            fill: false,
            source: None,
        };
        pager.peer.send(&add, &[layer.memfd.as_fd(), layer.digests.as_fd(), layer.file.as_fd()])?;
        match pager.peer.receive()? {
            FromPager::Layer(_) => Ok(pager),
            other => Err(format!("the pager says {hello:?}, then {other:?}").into()),
        }
    }

    /// A VM that it serves, with all of the layer.
    pub fn attach(&mut self, name: &str, layer: &Layer) -> Result<Vm, Box<dyn Error>> {
        let (ours, theirs) = UnixStream::pair()?;
        let (vm, layers) = (id(name)?, vec![id(LAYER)?]);
        self.peer.send(&ToPager::AttachVm { vm, layers, age_ms: 0, is_again: false }, &[theirs.as_fd()])?;
        let (view, userfaultfd) = lazy_view(layer)?;
        let mut peer = Peer { stream: ours, input: Vec::new() };
        let (address, bytes) = (view.address() as u64, view.bytes as u64);
        let mappings = Mapping::encode(&[Mapping { address, bytes, offset: 0, layer: 0 }]);
        let mappings = memfd::sealed("mappings", &mappings)?;
        let attach = VmToPager::Attach { version: VERSION, tracks_writes: false };
        peer.send(&attach, &[userfaultfd.as_fd(), mappings.as_fd()])?;
        match peer.receive()? {
            PagerToVm::Attached => Ok(Vm { view, _kept: (userfaultfd, peer) }),
            other => Err(format!("the pager says {other:?}").into()),
        }
    }
}

/// A VM's memory.
#[derive(Debug)]
pub struct Vm {
    pub view: View,
    _kept: (Uffd, Peer),
}

/// A private view of a layer with a userfaultfd, as a clone has.
pub fn lazy_view(layer: &Layer) -> Result<(View, Uffd), Box<dyn Error>> {
    use patina_jail::userfaultfd::{UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM};
    let read_only = File::open(format!("/proc/self/fd/{}", layer.memfd.as_raw_fd()))?;
    let view = View::private(&read_only, layer.bytes)?;
    let features = FeatureFlags::from_bits_retain(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM);
    let userfaultfd = UffdBuilder::new()
        .close_on_exec(true)
        .non_blocking(true)
        .user_mode_only(false)
        .require_features(features)
        .create()
        .map_err(|error| io::Error::other(format!("make a userfaultfd: {error}")))?;
    let modes = RegisterMode::MISSING | RegisterMode::MINOR;
    userfaultfd.register_with_mode(view.address(), view.bytes, modes)?;
    Ok((view, userfaultfd))
}
