//! The numbers that a manifest is made of.

use super::error::ManifestError;

pub(super) const MAGIC: [u8; 8] = *b"PTNSNAP\0";
/// Magic, version, number of sections, length of the whole.
pub(super) const HEADER_BYTES: usize = 24;
/// Tag, flags, length.
pub(super) const SECTION_HEADER_BYTES: usize = 16;
/// A digest of what comes before.
pub(super) const TRAILER_BYTES: usize = 32;

/// What a reader must know to read the rest.
pub(super) const REQUIRED: u32 = 1;

pub(super) const VM: u32 = 1;
pub(super) const STATE: u32 = 2;
pub(super) const LAYERS: u32 = 3;
pub(super) const PREFAULT_LIST: u32 = 4;
/// The greatest tag of a section that this version knows.
pub(super) const TAG_LAST: u32 = PREFAULT_LIST;

/// Takes numbers from the front of some bytes.
pub(super) struct Reader<'a> {
    /// What the bytes are, for errors.
    part: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn of(part: &'static str, rest: &'a [u8]) -> Self {
        Self { part, rest }
    }

    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], ManifestError> {
        let cut = ManifestError::Cut { part: self.part };
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(cut)?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ManifestError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ManifestError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ManifestError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length or a number of things that follow: what does not fit in memory is not there.
    pub(super) fn length(&mut self) -> Result<usize, ManifestError> {
        usize::try_from(self.u64()?).map_err(|_| ManifestError::Cut { part: self.part })
    }

    pub(super) fn text(&mut self) -> Result<&'a [u8], ManifestError> {
        let length = self.array().map(u16::from_le_bytes)?;
        self.bytes(usize::from(length))
    }

    /// There is nothing more.
    pub(super) fn end(self) -> Result<(), ManifestError> {
        if self.rest.is_empty() { Ok(()) } else { Err(ManifestError::Extra { part: self.part }) }
    }
}

/// Appends numbers to bytes.
pub(super) trait Append {
    fn u32(&mut self, number: u32);
    fn u64(&mut self, number: u64);
    /// `text` has been checked: it is shorter than 64 KiB.
    fn text(&mut self, text: &[u8]);
}

impl Append for Vec<u8> {
    fn u32(&mut self, number: u32) {
        self.extend(number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.extend(text);
    }
}
