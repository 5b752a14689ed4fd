//! Which runs of a layer are present, with their digests.

use super::error::ManifestError;
use blake3::Hash;
use patina_control::config::MEMORY_MIB;

/// The unit in which memory is read and checked, bytes. RAM is a whole number of runs.
pub const RUN_BYTES: u64 = 64 * 1024;

/// Most runs that a layer can have.
const RUNS_MAX: u64 = (*MEMORY_MIB.end() as u64) * (1 << 20) / RUN_BYTES;

/// The runs of a layer. A run that is not present is all zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    count: u64,
    /// Bit `run % 64` of word `run / 64`: the run is present.
    words: Vec<u64>,
    /// For each word, how many runs are present before it.
    ranks: Vec<usize>,
    /// Of the present runs, ascending.
    digests: Vec<Hash>,
}

impl Runs {
    /// `count` runs, of which those in `present` are present, with their digests.
    ///
    /// # Errors
    /// `present` does not ascend, has a run twice, or has one beyond the last; or there are more
    /// runs than a VM can have.
    pub fn new(count: u64, present: &[(u64, Hash)]) -> Result<Self, ManifestError> {
        let wrong =
            |found: String, expected: String| ManifestError::Field { field: "layer", found, expected };
        if count > RUNS_MAX {
            return Err(wrong(format!("{count} runs"), format!("at most {RUNS_MAX}")));
        }
        let mut words = vec![0_u64; (count as usize).div_ceil(64)];
        let mut next = 0;
        for (run, _) in present {
            if !(next..count).contains(run) {
                return Err(wrong(format!("run {run}"), format!("one of {next} to {count}, ascending")));
            }
            next = run + 1;
            words[(run / 64) as usize] |= 1 << (run % 64);
        }
        Ok(Self::with(count, words, present.iter().map(|(_, digest)| *digest).collect()))
    }

    /// From what [`Self::bitmap`] gives, and the digests of the present runs. None: they do not fit
    /// together.
    pub(super) fn of_bitmap(count: u64, bitmap: &[u8], digests: Vec<Hash>) -> Option<Self> {
        if bitmap.len() != bitmap_bytes(count)? {
            return None;
        }
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let words: Vec<u64> = bitmap.chunks(8).map(word).collect();
        let beyond = count % 64;
        let has_stray = beyond > 0 && words.last().is_some_and(|word| word >> beyond != 0);
        let present: usize = words.iter().map(|word| word.count_ones() as usize).sum();
        (!has_stray && present == digests.len()).then(|| Self::with(count, words, digests))
    }

    fn with(count: u64, words: Vec<u64>, digests: Vec<Hash>) -> Self {
        let ranks = words.iter().scan(0, |before, word| {
            let rank = *before;
            *before += word.count_ones() as usize;
            Some(rank)
        });
        Self { count, ranks: ranks.collect(), words, digests }
    }

    /// A bit for each run, bit 0 of byte 0 for run 0, and zeros up to a whole byte.
    pub(super) fn bitmap(&self) -> Vec<u8> {
        let mut bitmap: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bitmap.truncate(bitmap_bytes(self.count).unwrap_or(bitmap.len()));
        bitmap
    }

    /// How many runs there are, present or not.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many runs are present.
    #[must_use]
    pub fn present(&self) -> u64 {
        self.digests.len() as u64
    }

    /// Whether the run is present. A run beyond the last is not.
    #[must_use]
    pub fn is_present(&self, run: u64) -> bool {
        self.digest(run).is_some()
    }

    /// The digest of a run's content. None: it is not present.
    #[must_use]
    pub fn digest(&self, run: u64) -> Option<&Hash> {
        let at = usize::try_from(run / 64).ok()?;
        let (word, bit) = (self.words.get(at)?, 1 << (run % 64));
        let before = (word & (bit - 1)).count_ones() as usize;
        if word & bit == 0 { None } else { self.digests.get(self.ranks[at] + before) }
    }

    /// The present runs, ascending, with their digests.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Hash)> {
        let of_word = |(at, word): (usize, &u64)| {
            let (first, word) = (at as u64 * 64, *word);
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
        };
        self.words.iter().enumerate().flat_map(of_word).zip(&self.digests)
    }
}

/// Bytes of a bitmap of so many runs.
pub(super) fn bitmap_bytes(count: u64) -> Option<usize> {
    usize::try_from(count.div_ceil(8)).ok()
}
