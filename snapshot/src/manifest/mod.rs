//! The manifest of a snapshot, format version [`VERSION`]: what VM it is of, and the digest of the
//! state and of each run of the memory.
//!
//! A manifest is checked whole before any of it is used. All numbers are little-endian. Digests are
//! BLAKE3, 32 bytes. A text is a u16, its length in bytes, and its bytes.
//!
//! ```text
//! header     magic "PTNSNAP\0", u32 version, u32 number of sections, u64 bytes of the manifest
//! sections   ascending by tag, each tag at most once:
//!            u32 tag, u32 flags (1: required, 0: optional), u64 bytes, then so many bytes
//! trailer    digest of all bytes before it
//! ```
//!
//! | tag | section | content |
//! | --- | --- | --- |
//! | 1 | VM, required | snapshot UUID (16 bytes), u64 creation time (Unix, ms), u32 RAM (MiB), u32 agent's ABI, u8 vCPUs; texts: name, command line; kernel and root file system: digest, and a text with the path |
//! | 2 | state, required | u64 bytes, digest |
//! | 3 | layers, required | u32 number of layers, then for each: its id (32 bytes), u64 bytes, u64 number of present runs, a bitmap of the runs (bit 0 of byte 0 is run 0), a digest for each present run |
//! | 4 | prefault list, optional | see `patina_control::messages::Open::PrefaultList` |
//!
//! A reader refuses another version, and a required section that it does not know. It keeps an
//! optional section that it does not know. A section's layout never changes: a new layout gets a
//! new tag. Each manifest has exactly one encoding.

mod decode;
mod encode;
mod error;
mod runs;
mod wire;

pub use decode::is_manifest;
pub use error::ManifestError;
pub use runs::{RUN_BYTES, Runs};

use blake3::Hash;
use patina_control::{
    config::{CMDLINE_MAX_BYTES, LAYERS_MAX, MEMORY_MIB, VCPUS},
    messages::{PREFAULT_LIST_MAX_BYTES, STATE_MAX_BYTES},
};
use std::{fmt, fs::File, io, path::PathBuf, sync::Arc};
use uuid::Uuid;

/// The format's version.
pub const VERSION: u32 = 1;
/// Longest name of a VM, bytes.
pub const NAME_MAX_BYTES: usize = 255;
/// Longest path of an image, bytes.
pub const PATH_MAX_BYTES: usize = 4096;
/// Most sections that this version does not know.
pub const OPTIONAL_MAX: usize = 64;
/// Most bytes in sections that this version does not know, all together.
pub const OPTIONAL_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Longest manifest, bytes: 64 GiB of RAM in 16 layers that have all of it, and 128 MiB for all
/// else, which is less than 70 MiB.
pub const MANIFEST_MAX_BYTES: u64 = 16 * (1 << 20) * 33 + (128 << 20);

/// The content of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What is known of the VM besides its state and memory.
    pub description: Description,
    /// The file with the state.
    pub state: StateRef,
    /// The layers of the RAM, in the order of the generation's layer numbers.
    pub layers: Vec<Arc<Layer>>,
    /// Optional sections that this version does not know, ascending by tag.
    pub optional: Vec<Section>,
}

/// What is known of a VM besides its state and memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The snapshot's own UUID.
    pub uuid: Uuid,
    /// When it was made: Unix time, milliseconds.
    pub created_unix_ms: u64,
    /// The VM's name: 1 to [`NAME_MAX_BYTES`] bytes, no control characters.
    pub name: String,
    /// See [`VCPUS`].
    pub vcpus: u8,
    /// See [`MEMORY_MIB`].
    pub memory_mib: u32,
    /// What was added to the kernel's command line: at most [`CMDLINE_MAX_BYTES`].
    pub cmdline: String,
    /// The kernel that the VM was booted with.
    pub kernel: ImageRef,
    /// The VM's root file system.
    pub rootfs: ImageRef,
    /// The ABI version of the agent. 0: the VM has had no agent.
    pub agent_abi: u32,
    /// The family's prefault list, as [`patina_control::messages::Open::PrefaultList`] gives it.
    /// Empty: none.
    pub prefault_list: Vec<u8>,
}

/// A kernel or a root file system, by its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// See [`image_digest`].
    pub digest: Hash,
    /// Where it was when the snapshot was made: a hint, at most [`PATH_MAX_BYTES`].
    pub path: PathBuf,
}

/// The file with the state of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateRef {
    /// Its length, bytes: 1 to [`STATE_MAX_BYTES`].
    pub bytes: u64,
    /// The digest of its content.
    pub digest: Hash,
}

/// A section that this version does not know and need not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// What it is: a number that no known section has.
    pub tag: u32,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// What a layer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    id: LayerId,
    runs: Runs,
}

/// Names a layer by its content: a digest over its length and the digests of its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerId(Hash);

impl Layer {
    /// A layer with these runs.
    #[must_use]
    pub fn new(runs: Runs) -> Self {
        Self { id: LayerId::of(&runs), runs }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Its length, bytes: that of the RAM.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.runs.count() * RUN_BYTES
    }

    /// Its runs.
    #[must_use]
    pub fn runs(&self) -> &Runs {
        &self.runs
    }
}

impl LayerId {
    fn of(runs: &Runs) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("Patina snapshot 2026: layer id, version 1");
        hasher.update(&(runs.count() * RUN_BYTES).to_le_bytes());
        hasher.update(&runs.bitmap());
        for (_, digest) in runs.iter() {
            hasher.update(digest.as_bytes());
        }
        Self(hasher.finalize())
    }

    /// As it stands in a manifest.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for LayerId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0.to_hex())
    }
}

/// The digest of a kernel's or root file system's content, whatever the file's position is.
///
/// # Errors
/// The file cannot be read.
pub fn image_digest(file: &File) -> io::Result<Hash> {
    use std::os::unix::fs::FileExt as _;
    let (mut hasher, mut start) = (blake3::Hasher::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read_at(&mut buffer, start) {
            Ok(0) => return Ok(hasher.finalize()),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                start += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Description {
    /// The length of the RAM, bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }

    /// Whether a manifest can hold it.
    ///
    /// # Errors
    /// A field is out of its limits.
    pub fn check(&self) -> Result<(), ManifestError> {
        let length = |field, bytes: usize, least: usize, most: usize| {
            let expected = || format!("{least} to {most} bytes");
            let found = || format!("{bytes} bytes");
            within(field, (least..=most).contains(&bytes), found, expected)
        };
        let path = |image: &ImageRef| image.path.as_os_str().len();
        length("name", self.name.len(), 1, NAME_MAX_BYTES)?;
        let printable = !self.name.contains(char::is_control);
        let found = || format!("{:?}", self.name);
        within("name", printable, found, || "no control characters".to_owned())?;
        length("command line", self.cmdline.len(), 0, CMDLINE_MAX_BYTES)?;
        length("path of the kernel", path(&self.kernel), 0, PATH_MAX_BYTES)?;
        length("path of the root file system", path(&self.rootfs), 0, PATH_MAX_BYTES)?;
        let most = usize::try_from(PREFAULT_LIST_MAX_BYTES).unwrap_or(usize::MAX);
        length("prefault list", self.prefault_list.len(), 0, most)?;
        let found = || self.vcpus.to_string();
        within("number of vCPUs", VCPUS.contains(&self.vcpus), found, || format!("{VCPUS:?}"))?;
        let found = || format!("{} MiB", self.memory_mib);
        within("RAM", MEMORY_MIB.contains(&self.memory_mib), found, || format!("{MEMORY_MIB:?} MiB"))
    }
}

impl Manifest {
    /// Whether its parts are within their limits and fit together.
    fn check(&self) -> Result<(), ManifestError> {
        self.description.check()?;
        let found = || format!("{} bytes", self.state.bytes);
        let is_right = (1..=STATE_MAX_BYTES).contains(&self.state.bytes);
        within("state", is_right, found, || format!("1 to {STATE_MAX_BYTES} bytes"))?;
        let found = || self.layers.len().to_string();
        let is_right = (1..=LAYERS_MAX).contains(&self.layers.len());
        within("number of layers", is_right, found, || format!("1 to {LAYERS_MAX}"))?;
        let bytes = self.description.memory_bytes();
        for layer in &self.layers {
            let found = || format!("{} bytes", layer.bytes());
            within("layer", layer.bytes() == bytes, found, || format!("{bytes} bytes, as the RAM has"))?;
        }
        let found = || self.optional.len().to_string();
        let is_right = self.optional.len() <= OPTIONAL_MAX;
        within("number of unknown sections", is_right, found, || format!("at most {OPTIONAL_MAX}"))?;
        let bytes: usize = self.optional.iter().map(|section| section.bytes.len()).sum();
        let is_right = bytes <= OPTIONAL_MAX_BYTES;
        let found = || format!("{bytes} bytes");
        within("unknown sections", is_right, found, || format!("at most {OPTIONAL_MAX_BYTES} bytes"))?;
        Ok(())
    }
}

fn within(
    field: &'static str,
    is_right: bool,
    found: impl FnOnce() -> String,
    expected: impl FnOnce() -> String,
) -> Result<(), ManifestError> {
    if is_right { Ok(()) } else { Err(ManifestError::Field { field, found: found(), expected: expected() }) }
}

#[cfg(test)]
#[path = "manifest_test.rs"]
mod manifest_test;
