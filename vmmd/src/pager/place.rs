//! The folder of the pager, `STATE/pager`: its socket and its log, and what a `vmmd` that starts
//! anew must know of its layers.

use super::{
    demand::Demand,
    error::PagerError,
    lender::Lender,
    parts::{DIGESTS_MAX_BYTES, Parts, Source},
    peers::{PeerSource, SavedPeer},
};
use crate::{process::filling::FileNumber, store::StoreError};
use patina_control::{
    best_effort, memfd,
    pager::{Id, read_sealed},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The log begins anew when it is as long as this, bytes.
const LOG_MAX_BYTES: u64 = 1024 * 1024;
/// Longest description of a layer, bytes.
const SAVED_MAX_BYTES: u64 = 64 * 1024;

/// See the module.
#[derive(Debug, Clone)]
pub struct Place(PathBuf);

/// What is written of a layer besides its digests.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// Its length, bytes.
    pub bytes: u64,
    /// The device of its memfd.
    pub device: u64,
    /// The inode of its memfd.
    pub inode: u64,
    /// Where its file is.
    pub path: Option<PathBuf>,
    /// Or which other host has it. Earlier releases know none.
    #[serde(default)]
    pub peer: Option<SavedPeer>,
}

impl Saved {
    /// Which file the layer's memfd is.
    #[must_use]
    pub fn number(&self) -> FileNumber {
        FileNumber { device: self.device, inode: self.inode }
    }
}

impl Place {
    /// That of a state folder. Nothing is made yet.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self(state.join("pager"))
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where the pager listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("pager.sock")
    }

    /// Makes the folder if there is none.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make(&self) -> Result<(), PagerError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        Ok(made.map_err(|source| StoreError::CreateDir { path: self.0.clone(), source })?)
    }

    /// Opens the log for appending.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_log(&self) -> Result<File, PagerError> {
        let path = self.0.join("pager.log");
        let open = || {
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            if file.metadata()?.len() > LOG_MAX_BYTES {
                file.set_len(0)?;
            }
            Ok(file)
        };
        open().map_err(|source| PagerError::Prepare { path: path.clone(), source })
    }

    fn description(&self, id: &Id) -> PathBuf {
        self.0.join(format!("{id}.json"))
    }

    fn digests(&self, id: &Id) -> PathBuf {
        self.0.join(format!("{id}.digests"))
    }

    /// Writes down what a later `vmmd` needs of a layer. A crash of the host ends all who use it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, parts: &Parts) -> Result<(), PagerError> {
        self.make()?;
        let write = |path: PathBuf, bytes: &[u8]| {
            // A lender's key may be in it.
            let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path);
            let written = file.and_then(|file| memfd::write_sparse(&file, bytes));
            written.map_err(|source| StoreError::Write { path, source })
        };
        let FileNumber { device, inode } = parts.number;
        let saved =
            Saved { bytes: parts.bytes, device, inode, path: parts.path.clone(), peer: parts.source.saved() };
        let digests = read_sealed(&parts.digests, DIGESTS_MAX_BYTES).map_err(PagerError::Memory)?;
        write(self.digests(&parts.id), &digests)?;
        // The description last: with it, all is there.
        let saved = serde_json::to_vec(&saved).map_err(PagerError::Parse)?;
        Ok(write(self.description(&parts.id), &saved)?)
    }

    /// Reads what is written of a layer. None: nothing is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn load(&self, id: &Id) -> Result<Option<Saved>, PagerError> {
        let path = self.description(id);
        match read(&path, SAVED_MAX_BYTES) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(PagerError::Parse),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Read { path, source }.into()),
        }
    }

    /// The parts of a layer that an earlier `vmmd` had, with its memfd. If its file is gone, or the
    /// host that has it, runs that are not in the memfd fail when they are needed. `peer_of` is the
    /// pager of such a host.
    ///
    /// # Errors
    /// What is written of it cannot be read.
    pub fn parts(
        &self,
        id: &Id,
        (saved, memfd): (Saved, File),
        peer_of: impl FnOnce(Id, Lender) -> Arc<PeerSource>,
    ) -> Result<Parts, PagerError> {
        let digests_path = self.digests(id);
        let digests = read(&digests_path, DIGESTS_MAX_BYTES);
        let digests = digests.map_err(|source| StoreError::Read { path: digests_path, source })?;
        let digests = memfd::sealed("patina-digests", &digests).map_err(PagerError::Memory)?;
        let opened = saved.path.as_ref().map(File::open);
        let source = match saved.peer {
            Some(SavedPeer { id, lender, number }) => Source::peer(peer_of(id, lender), number),
            None => Source::file(opened.and_then(Result::ok)),
        };
        let number = super::parts::number_of(&memfd).map_err(PagerError::Memory)?;
        let Saved { bytes, path, .. } = saved;
        let demand = Demand::load(path.as_deref(), bytes);
        Ok(Parts { id: id.clone(), bytes, memfd, number, digests, source, path, demand })
    }

    /// Removes what is written of a layer.
    pub fn forget(&self, id: &Id) {
        for path in [self.description(id), self.digests(id)] {
            best_effort(fs::remove_file(path), "the next vmmd finds that nobody uses it");
        }
    }

    /// Removes what is written of all layers but these.
    pub fn keep_only(&self, known: &[Id]) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let stem = name.to_str().and_then(|name| {
                name.strip_suffix(".json").or_else(|| name.strip_suffix(".digests")).map(str::to_owned)
            });
            let id = stem.and_then(|stem| Id::try_from(stem).ok());
            if let Some(id) = id.filter(|id| !known.contains(id)) {
                self.forget(&id);
            }
        }
    }
}

fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}
