//! Where the bytes of a layer come from, and what they must be.

use patina_control::best_effort;
use patina_control::pager::{Id, RUN_BYTES};
use rustix::io::{IoSliceMut, ReadWriteFlags, preadv2};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much more readily than others a background thread gives its CPU up.
const NICE: i32 = 10;

/// Why a run cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The source ends before the run does.
    #[error("the layer's file is too short")]
    Truncated,
    /// The source fails.
    #[error("read the layer's file")]
    Read(#[source] io::Error),
    /// The source has other bytes than it should.
    #[error("the layer's file has other bytes than its digest says")]
    Digest,
    /// There is no memory for the run.
    #[error("write the run to the layer's memory")]
    Memory(#[source] io::Error),
    /// The source did not answer in time.
    #[error("the layer's file does not answer")]
    Stalled,
    /// Too many demands wait.
    #[error("too many demands wait")]
    Crowded,
    /// The host that has the layer is not connected.
    #[error("there is no connection to the host that has the layer")]
    Away,
    /// The host that has the layer does not answer.
    #[error("the host that has the layer does not answer")]
    Silent,
    /// The host that has the layer cannot read the run.
    #[error("the host that has the layer cannot read the run")]
    Refused,
}

/// Why a run is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A VM waits for it.
    Demand,
    /// It is fetched ahead.
    Ahead,
}

impl Class {
    /// Gives this thread the priority that is right for such runs.
    pub(crate) fn make_thread_as_urgent(self) {
        if self == Self::Ahead {
            best_effort(
                rustix::process::setpriority_process(None, NICE),
                "it would take CPU from guests, not more",
            );
        }
    }
}

/// What is done with a run that was asked for: its bytes, or why it cannot be had.
pub type Done = Box<dyn FnOnce(Result<&[u8], RunError>) + Send>;

/// A layer's bytes. Its bytes are taken for nothing before they match their digest, so an
/// implementation need not check them. It is one that is read, and blocks, or one that is asked,
/// and does not.
pub trait PageSource: Send + Sync {
    /// Reads a run into `buffer`, which has the run's length. May block. Not called where
    /// [`Self::request`] takes all requests.
    ///
    /// # Errors
    /// See [`RunError`].
    fn read(&self, _run: usize, _buffer: &mut [u8]) -> Result<(), RunError> {
        Err(RunError::Refused)
    }

    /// As [`Self::read`], if that takes no longer than a copy. If not: None.
    fn read_now(&self, _run: usize, _buffer: &mut [u8]) -> Option<Result<(), RunError>> {
        None
    }

    /// Asks for a run of so many bytes, without waiting for it: `done` is called when it is there,
    /// most often by another thread. Returns `done` if this source is read and cannot be asked.
    fn request(&self, _run: usize, _bytes: usize, _class: Class, done: Done) -> Option<Done> {
        Some(done)
    }

    /// The other host's pager, if it is one.
    fn peer(&self) -> Option<&Id> {
        None
    }

    /// The layer is read elsewhere from now on: gives up what it was asked for, each with
    /// [`RunError::Away`] or [`RunError::Silent`].
    fn let_go(&self) {}

    /// Whether it makes sense to ask now for more that nobody waits for.
    fn has_room(&self) -> bool {
        true
    }
}

/// A layer's file in a snapshot directory.
#[derive(Debug)]
pub struct Directory(File);

impl Directory {
    /// The file is opened for reading.
    #[must_use]
    pub const fn new(file: File) -> Self {
        Self(file)
    }
}

const fn start(run: usize) -> u64 {
    run as u64 * RUN_BYTES
}

impl PageSource for Directory {
    fn read(&self, run: usize, buffer: &mut [u8]) -> Result<(), RunError> {
        self.0.read_exact_at(buffer, start(run)).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => RunError::Truncated,
            _ => RunError::Read(error),
        })
    }

    fn read_now(&self, run: usize, buffer: &mut [u8]) -> Option<Result<(), RunError>> {
        let length = buffer.len();
        // Fails where the page cache does not have all of it, or the file system cannot tell.
        match preadv2(&self.0, &mut [IoSliceMut::new(buffer)], start(run), ReadWriteFlags::NOWAIT) {
            Ok(read) if read == length => Some(Ok(())),
            _ => None,
        }
    }
}

/// The digests of a layer's runs.
#[derive(Debug)]
pub struct Digests(Vec<u8>);

/// The digests do not fit the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the list of digests has {found} bytes; {expected} are expected")]
pub struct DigestsError {
    found: usize,
    expected: usize,
}

impl Digests {
    /// Reads 32 bytes for each run, for a layer of so many bytes.
    ///
    /// # Errors
    /// It is not of this length.
    pub fn decode(bytes: Vec<u8>, layer_bytes: u64) -> Result<Self, DigestsError> {
        let expected = layer_bytes.div_ceil(RUN_BYTES) as usize * size_of::<[u8; 32]>();
        if bytes.len() != expected {
            return Err(DigestsError { found: bytes.len(), expected });
        }
        Ok(Self(bytes))
    }

    fn get(&self, run: usize) -> Option<&[u8; 32]> {
        self.0.as_chunks().0.get(run)
    }

    /// Whether the run is known to be zero.
    #[must_use]
    pub fn is_zero(&self, run: usize) -> bool {
        self.get(run).is_none_or(|digest| *digest == [0; 32])
    }

    /// Whether these are the run's bytes.
    #[must_use]
    pub fn matches(&self, run: usize, bytes: &[u8]) -> bool {
        self.get(run).is_some_and(|digest| *digest == *blake3::hash(bytes).as_bytes())
    }
}
