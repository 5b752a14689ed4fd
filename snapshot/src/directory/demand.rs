//! What VMs demanded of a layer, kept beside the layer's file: advice on what to read first.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | magic `PTNDEMND` |
//! | 4 | version, 1 |
//! | 4 | number of buckets, 4 |
//! | 32 | the layer's id |
//! | 8 | the layer's length, bytes |
//! | 0 to 524,288 | the bitmaps: see [`DemandBitmap`] |
//! | 32 | digest (BLAKE3) of all bytes before it |
//!
//! Numbers are little-endian. The file may be missing, and whoever finds it damaged works without
//! it. It is replaced as a whole, so that a snapshot that shares it with another one keeps its own.

use super::{error::FileError, folder::Folder, names};
use blake3::Hash;
use patina_control::{
    best_effort,
    pager::{BUCKETS_MS, DemandBitmap, DemandBitmapError, LAYER_MAX_BYTES},
};
use rustix::{
    fs::{FileType, renameat},
    io::Errno,
};
use std::{
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

const MAGIC: &[u8; 8] = b"PTNDEMND";
const VERSION: u32 = 1;
const BUCKETS: u32 = BUCKETS_MS.len() as u32 + 1;
const DIGEST_BYTES: usize = 32;
/// Bytes before the bitmaps.
const HEADER_BYTES: usize = 56;

/// What was demanded of a layer cannot be read or kept. VMs start without it.
#[derive(Debug, thiserror::Error)]
pub enum DemandError {
    /// The path is none of a layer in a snapshot.
    #[error("{0} is no file of a layer in a snapshot")]
    NotALayer(PathBuf),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is no regular file.
    #[error("{0} is not a regular file")]
    NotAFile(PathBuf),
    /// The file has another length.
    #[error("{path} has {found} bytes instead of {expected}")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length, bytes.
        found: u64,
        /// The length for a layer like this, bytes.
        expected: u64,
    },
    /// The digest does not match.
    #[error("{0} is damaged: its digest does not match")]
    Digest(PathBuf),
    /// It is of another format, or of another layer.
    #[error("{0} is of another version, or of another layer")]
    Alien(PathBuf),
    /// The bitmaps are invalid.
    #[error("{path}")]
    Bitmap {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: DemandBitmapError,
    },
}

/// Where the file of a layer is, and what it is called.
struct Place<'a> {
    directory: &'a Path,
    layer: &'a std::ffi::OsStr,
    id: Hash,
}

impl<'a> Place<'a> {
    fn of(layer: &'a Path) -> Result<Self, DemandError> {
        let of = || {
            let name = layer.file_name()?;
            let id = Hash::from_hex(names::id_of_layer(name)?).ok()?;
            Some(Self { directory: layer.parent()?, layer: name, id })
        };
        of().ok_or_else(|| DemandError::NotALayer(layer.to_owned()))
    }

    fn name(&self) -> String {
        names::demand(self.id.to_hex())
    }

    fn header(&self, layer_bytes: u64) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend(BUCKETS.to_le_bytes());
        header.extend(self.id.as_bytes());
        header.extend(layer_bytes.to_le_bytes());
        debug_assert_eq!(header.len(), HEADER_BYTES);
        header
    }
}

/// Reads what VMs demanded of the layer whose file is at `layer`. None: nothing is kept.
///
/// # Errors
/// What is kept cannot be used. Work without it.
pub fn load_demand(layer: &Path, layer_bytes: u64) -> Result<Option<DemandBitmap>, DemandError> {
    let place = Place::of(layer)?;
    let folder = Folder::open(place.directory).map_err(FileError::at("open", place.directory))?;
    let path = place.directory.join(place.name());
    let file = match folder.file(&place.name()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Err(DemandError::NotAFile(path)),
        Err(error) => return Err(FileError::at("open", &path)(error).into()),
    };
    let stat = file.metadata().map_err(FileError::at("look at", &path))?;
    if !stat.is_file() {
        return Err(DemandError::NotAFile(path));
    }
    let bitmap_bytes = DemandBitmap::encoded_bytes(layer_bytes.min(LAYER_MAX_BYTES));
    let (found, expected) = (stat.len(), (HEADER_BYTES + DIGEST_BYTES) as u64 + bitmap_bytes);
    if found != expected {
        return Err(DemandError::Size { path, found, expected });
    }
    let mut bytes = vec![0; usize::try_from(expected).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, 0).map_err(FileError::at("read", &path))?;
    let (content, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
    if blake3::hash(content).as_bytes() != digest {
        return Err(DemandError::Digest(path));
    }
    let (header, bitmap) = content.split_at(HEADER_BYTES);
    if header != place.header(layer_bytes) {
        return Err(DemandError::Alien(path));
    }
    let bitmap = DemandBitmap::decode(bitmap, layer_bytes);
    bitmap.map(Some).map_err(|source| DemandError::Bitmap { path, source })
}

/// Keeps what VMs demanded of the layer whose file is at `layer`, instead of what is kept already.
/// Another process may remove the snapshot meanwhile.
///
/// # Errors
/// The snapshot is gone, or it or the disk cannot be written to. What was kept stays.
pub fn save_demand(layer: &Path, layer_bytes: u64, demand: &DemandBitmap) -> Result<(), DemandError> {
    let place = Place::of(layer)?;
    let folder = Folder::open(place.directory).map_err(FileError::at("open", place.directory))?;
    if folder.kind_of(place.layer).map_err(FileError::at("look at", layer))? != Some(FileType::RegularFile) {
        return Err(DemandError::NotALayer(layer.to_owned()));
    }
    let mut bytes = place.header(layer_bytes);
    bytes.extend(demand.encode());
    bytes.extend(blake3::hash(&bytes).as_bytes());
    let path = place.directory.join(names::DEMAND_UNFINISHED);
    best_effort(folder.remove_file(names::DEMAND_UNFINISHED), "only a process that was killed leaves one");
    let mut file = folder.make_file(names::DEMAND_UNFINISHED).map_err(FileError::at("make", &path))?;
    let written = file.write_all(&bytes).and_then(|()| file.sync_data());
    let named = written.map_err(FileError::at("write", &path)).and_then(|()| {
        let renamed = renameat(&folder, names::DEMAND_UNFINISHED, &folder, place.name());
        renamed.map_err(FileError::at("rename", &path))
    });
    if named.is_err() {
        best_effort(folder.remove_file(names::DEMAND_UNFINISHED), "it goes with the snapshot");
    }
    Ok(named?)
}
