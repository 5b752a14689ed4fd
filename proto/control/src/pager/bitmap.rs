//! Which runs of a layer its VMs demanded, and how soon after their start.

use super::RUN_BYTES;

/// A run is in the first bucket that ends after the time from a VM's start to its demand,
/// milliseconds. What comes later is in one more bucket.
pub const BUCKETS_MS: [u64; 3] = [10, 100, 1000];
const BUCKETS: usize = BUCKETS_MS.len() + 1;

/// Bitmaps of a layer's runs, one for each bucket: [`BUCKETS_MS`], then later. A run is in at most
/// one bucket, the earliest. Encoded: the bitmaps one after the other, each of whole bytes; the bit
/// of run n is bit n % 8 of byte n / 8. Bits beyond the last run are zero.
///
/// The unit is a run, not a page: that is what is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemandBitmap {
    runs: usize,
    bits: Vec<u8>,
}

/// The bytes are no bitmap of a layer of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the bitmap of demanded runs has {found} bytes; {expected} are expected, without bits beyond the last run"
)]
pub struct DemandBitmapError {
    found: usize,
    expected: usize,
}

impl DemandBitmap {
    /// None demanded, for a layer of so many bytes.
    #[must_use]
    pub fn new(layer_bytes: u64) -> Self {
        let runs = layer_bytes.div_ceil(RUN_BYTES) as usize;
        Self { runs, bits: vec![0; BUCKETS * runs.div_ceil(8)] }
    }

    /// The bucket of a demand so many milliseconds after the VM's start.
    #[must_use]
    pub fn bucket(after_ms: u64) -> u8 {
        BUCKETS_MS.partition_point(|end| *end <= after_ms) as u8
    }

    /// Adds a run to a bucket. An earlier bucket that it is in keeps it, a later one gives it up.
    /// Whether that changed anything. Runs and buckets that do not exist are ignored.
    pub fn insert(&mut self, run: usize, bucket: u8) -> bool {
        if run >= self.runs || usize::from(bucket) >= BUCKETS {
            return false;
        }
        let bucket_bytes = self.runs.div_ceil(8);
        let (byte, bit) = (run / 8, 1_u8 << (run % 8));
        let mut cells = self.bits.iter_mut().skip(byte).step_by(bucket_bytes);
        let is_in_earlier = cells.by_ref().take(bucket.into()).any(|cell| *cell & bit != 0);
        let Some(own) = cells.next().filter(|own| !is_in_earlier && **own & bit == 0) else { return false };
        *own |= bit;
        cells.for_each(|later| *later &= !bit);
        true
    }

    /// Adds what another one has of the same layer. How many runs are new, or demanded earlier.
    pub fn merge(&mut self, other: &Self) -> usize {
        other.in_order().filter(|(bucket, run)| self.insert(*run, *bucket)).count()
    }

    /// How many runs were demanded.
    #[must_use]
    pub fn count(&self) -> usize {
        self.bits.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// The runs in the order in which to fetch them, each with its bucket: bucket by bucket, each
    /// in ascending order.
    pub fn in_order(&self) -> impl Iterator<Item = (u8, usize)> + '_ {
        let bucket_bytes = self.runs.div_ceil(8).max(1);
        (0..).zip(self.bits.chunks(bucket_bytes)).flat_map(move |(number, bucket)| {
            let set = |run: &usize| bucket.get(run / 8).is_some_and(|byte| byte & (1 << (run % 8)) != 0);
            (0..self.runs).filter(set).map(move |run| (number, run))
        })
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> &[u8] {
        &self.bits
    }

    /// Most bytes for a layer of so many bytes.
    #[must_use]
    pub fn encoded_bytes(layer_bytes: u64) -> u64 {
        BUCKETS as u64 * layer_bytes.div_ceil(RUN_BYTES).div_ceil(8)
    }

    /// Reads the bytes, for a layer of so many bytes.
    ///
    /// # Errors
    /// They are not of this length, or have bits beyond the last run.
    pub fn decode(bytes: &[u8], layer_bytes: u64) -> Result<Self, DemandBitmapError> {
        let mut read = Self::new(layer_bytes);
        let error = DemandBitmapError { found: bytes.len(), expected: read.bits.len() };
        if bytes.len() != read.bits.len() {
            return Err(error);
        }
        let bucket_bytes = read.runs.div_ceil(8).max(1);
        let unused = !0_u8 << (read.runs % 8);
        let is_clean = |bucket: &[u8]| bucket.last().is_none_or(|last| last & unused == 0);
        if !read.runs.is_multiple_of(8) && !bytes.chunks(bucket_bytes).all(is_clean) {
            return Err(error);
        }
        read.bits.copy_from_slice(bytes);
        Ok(read)
    }
}
