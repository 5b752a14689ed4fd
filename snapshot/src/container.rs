//! The state of a VM without its memory: sections with versions and checksums.
//!
//! Who writes the state may be of another release or on another host than who reads it. So a reader
//! refuses what it does not understand, before it uses any of it.
//!
//! All numbers are little-endian. The sections follow each other without gaps:
//! ```text
//!  magic    8 bytes   "\x7fPATINA\n"
//!  format   u32       1; changes if anything in these two tables does
//!  length   u32       bytes of the container, from the magic on
//!  sections u32       how many follow, 1 to 256
//! ```
//! Each section:
//! ```text
//!  checksum u32       CRC-32 (IEEE 802.3) of all that follows in the section
//!  tag      4 bytes   what it is
//!  index    u16       which of several with that tag, from 0
//!  version  u16       of the layout of its content
//!  flags    u32       1: who does not know the tag must refuse the container, not skip the section
//!  length   u32       bytes of the content
//!  content            see `layout`
//! ```
//! The first section is [`FACTS`]: what the VM needs of a host. [`read_facts`] reads it alone.
//!
//! # The checksum
//! It finds damage, and where the damage is. CRC-32 finds every change of up to 32 neighbouring
//! bits, so in particular each changed byte, and takes a tenth of the time of BLAKE3 for sections
//! of this size. No checksum without a key finds forgery: a reader checks all that it decodes, and
//! a snapshot's manifest has a BLAKE3 digest of the whole state.

mod error;

pub use error::ContainerError;

use crate::facts::HostFacts;
use crate::layout::{self, Encoder, Layout};
use patina_control::messages::STATE_MAX_BYTES;
use std::fmt;

/// How a container begins.
pub const MAGIC: [u8; 8] = *b"\x7fPATINA\n";
/// The version of the framing. What a section contains has versions of its own.
pub const FORMAT: u32 = 1;
/// Most sections of one container.
pub const SECTIONS_MAX: usize = 256;
/// The section with the [`HostFacts`].
pub const FACTS: Kind = Kind { tag: Tag(*b"HOST"), version: 1, is_required: true };

const HEADER_BYTES: usize = 20;
const SECTION_BYTES: usize = 20;
/// In the header of the container: where its length and the number of its sections are.
const LENGTH_AT: usize = 12;
const COUNT_AT: usize = 16;
/// In the header of a section: what the checksum covers begins here.
const COVERED_AT: usize = 4;
/// In the header of a section: where its length is.
const SECTION_LENGTH_AT: usize = 16;
const REQUIRED: u32 = 1;

/// Four characters that say what a section is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag(pub [u8; 4]);

impl fmt::Display for Tag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.trim_ascii_end().escape_ascii())
    }
}

/// A kind of section that this release writes and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// What it is.
    pub tag: Tag,
    /// The version of the layout of its content.
    pub version: u16,
    /// Whether a release that does not know it must refuse the container.
    pub is_required: bool,
}

/// Writes a container.
#[derive(Debug)]
pub struct Writer {
    to: Encoder,
    sections: usize,
}

impl Writer {
    /// A container whose VM needs such a host.
    #[must_use]
    pub fn new(facts: &HostFacts) -> Self {
        let mut to = Encoder(Vec::with_capacity(32 * 1024));
        to.put(&MAGIC);
        FORMAT.encode(&mut to);
        // The length and the number of sections.
        to.put(&[0; HEADER_BYTES - LENGTH_AT]);
        let mut writer = Self { to, sections: 0 };
        writer.section(&FACTS, 0, facts);
        writer
    }

    /// Appends a section. `index` tells several of a kind apart.
    pub fn section(&mut self, kind: &Kind, index: u16, content: &impl Layout) {
        let begin = self.to.0.len();
        let flags = if kind.is_required { REQUIRED } else { 0 };
        self.to.put(&[0; COVERED_AT]);
        self.to.put(&kind.tag.0);
        index.encode(&mut self.to);
        kind.version.encode(&mut self.to);
        flags.encode(&mut self.to);
        0_u32.encode(&mut self.to);
        content.encode(&mut self.to);
        let length = self.to.0.len() - begin - SECTION_BYTES;
        self.set(begin + SECTION_LENGTH_AT, length);
        let covered = self.to.0.get(begin + COVERED_AT..).unwrap_or_default();
        let checksum = crc32fast::hash(covered);
        self.set_u32(begin, checksum);
        self.sections += 1;
    }

    /// The finished container.
    ///
    /// # Errors
    /// It is too long, or has too many sections.
    pub fn finish(mut self) -> Result<Vec<u8>, ContainerError> {
        if self.sections > SECTIONS_MAX {
            return Err(ContainerError::Count { found: self.sections });
        }
        let found = self.to.0.len();
        check_size(found)?;
        self.set(LENGTH_AT, found);
        self.set(COUNT_AT, self.sections);
        Ok(self.to.0)
    }

    /// Fills in a number. [`Self::finish`] refuses lengths that do not fit.
    fn set(&mut self, at: usize, number: usize) {
        self.set_u32(at, u32::try_from(number).unwrap_or(u32::MAX));
    }

    fn set_u32(&mut self, at: usize, number: u32) {
        if let Some(place) = self.to.0.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
            *place = number.to_le_bytes();
        }
    }
}

/// One section of a container.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// What it is.
    pub tag: Tag,
    /// Which of several with that tag.
    pub index: u16,
    /// The version of its layout.
    pub version: u16,
    /// Whether the state cannot be used without it.
    pub is_required: bool,
    /// What it contains, as it was written.
    pub content: &'a [u8],
}

/// A container whose framing and checksums are checked.
#[derive(Debug)]
pub struct Container<'a> {
    facts: HostFacts,
    sections: Vec<Section<'a>>,
}

impl<'a> Container<'a> {
    /// Reads a whole state.
    ///
    /// # Errors
    /// It is not one of this format, or is damaged.
    pub fn read(bytes: &'a [u8]) -> Result<Self, ContainerError> {
        let (header, mut left) = read_header(bytes)?;
        check_size(bytes.len())?;
        if header.bytes != bytes.len() {
            return Err(ContainerError::Length { found: bytes.len(), expected: header.bytes });
        }
        if !(1..=SECTIONS_MAX).contains(&header.sections) {
            return Err(ContainerError::Count { found: header.sections });
        }
        let mut sections: Vec<Section<'a>> = Vec::with_capacity(header.sections);
        for _ in 0..header.sections {
            let (section, behind) = read_section(left, bytes.len() - left.len())?;
            let is_same = |other: &Section<'_>| (other.tag, other.index) == (section.tag, section.index);
            if sections.iter().any(is_same) {
                return Err(ContainerError::Twice { tag: section.tag, index: section.index });
            }
            sections.push(section);
            left = behind;
        }
        if !left.is_empty() {
            return Err(ContainerError::Trailing { more: left.len() });
        }
        let facts = facts_of(sections.first())?;
        Ok(Self { facts, sections })
    }

    /// What the VM needs of a host.
    #[must_use]
    pub fn facts(&self) -> &HostFacts {
        &self.facts
    }

    /// All sections, in the order in which they were written. The first has the facts.
    #[must_use]
    pub fn sections(&self) -> &[Section<'a>] {
        &self.sections
    }

    /// Checks that the reader knows all sections that it must know, in their versions.
    ///
    /// # Errors
    /// [`ContainerError::Unknown`] or [`ContainerError::Version`].
    pub fn refuse_foreign(&self, known: &[Kind]) -> Result<(), ContainerError> {
        // The version of the facts was compared when they were decoded.
        for &Section { tag, version: found, .. } in
            self.sections.iter().filter(|section| section.is_required && section.tag != FACTS.tag)
        {
            match known.iter().find(|kind| kind.tag == tag) {
                None => return Err(ContainerError::Unknown { tag }),
                Some(kind) if kind.version != found => {
                    return Err(ContainerError::Version { tag, found, known: kind.version });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Decodes the only section of a kind.
    ///
    /// # Errors
    /// It is missing, there are more of them, or it is not of the kind's version and layout.
    pub fn one<T: Layout>(&self, kind: &Kind) -> Result<T, ContainerError> {
        let [one] = self.array(kind)?;
        Ok(one)
    }

    /// Decodes the sections of a kind, of which there are `N`.
    ///
    /// # Errors
    /// As those of [`Self::all`].
    pub fn array<T: Layout, const N: usize>(&self, kind: &Kind) -> Result<[T; N], ContainerError> {
        let count = u16::try_from(N).unwrap_or(u16::MAX);
        let missing = |_| ContainerError::Missing { tag: kind.tag, index: count };
        self.all(kind, count)?.try_into().map_err(missing)
    }

    /// Decodes the sections of a kind, of which there are `count`, in the order of their indices.
    ///
    /// # Errors
    /// One is missing, there are more, or one is not of the kind's version and layout.
    pub fn all<T: Layout>(&self, kind: &Kind, count: u16) -> Result<Vec<T>, ContainerError> {
        let is_more = |section: &&Section<'_>| section.tag == kind.tag && section.index >= count;
        if let Some(&Section { tag, index, .. }) = self.sections.iter().find(is_more) {
            return Err(ContainerError::More { tag, index, count });
        }
        // Ends at the first that is missing.
        (0..count).map(|index| self.get(kind, index)).collect()
    }

    fn get<T: Layout>(&self, kind: &Kind, index: u16) -> Result<T, ContainerError> {
        let mut sections = self.sections.iter();
        let found = sections.find(|section| (section.tag, section.index) == (kind.tag, index));
        decode(found.ok_or(ContainerError::Missing { tag: kind.tag, index })?, kind)
    }
}

/// Reads what the VM needs of a host from the beginning of a state. 16 KiB suffice. The rest of the
/// state is neither read nor checked.
///
/// # Errors
/// The state is not one of this format, or its beginning is damaged.
pub fn read_facts(beginning: &[u8]) -> Result<HostFacts, ContainerError> {
    let (_, left) = read_header(beginning)?;
    let (section, _) = read_section(left, HEADER_BYTES)?;
    facts_of(Some(&section))
}

struct Header {
    bytes: usize,
    sections: usize,
}

fn read_header(bytes: &[u8]) -> Result<(Header, &[u8]), ContainerError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(ContainerError::Magic);
    }
    let Some((header, left)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(ContainerError::Length { found: bytes.len(), expected: HEADER_BYTES });
    };
    let mut fields = layout::Decoder::new(&header[MAGIC.len()..]);
    let mut next = || u32::decode(&mut fields).unwrap_or_default();
    let (found, length, sections) = (next(), next(), next());
    if found != FORMAT {
        return Err(ContainerError::Format { found });
    }
    let number = |number| usize::try_from(number).unwrap_or(usize::MAX);
    Ok((Header { bytes: number(length), sections: number(sections) }, left))
}

/// Reads the section at the beginning of `left`, which is byte `at` of the container.
fn read_section(left: &[u8], at: usize) -> Result<(Section<'_>, &[u8]), ContainerError> {
    let cut = ContainerError::Cut { at };
    let Some((header, behind)) = left.split_first_chunk::<SECTION_BYTES>() else { return Err(cut) };
    let mut fields = layout::Decoder::new(header);
    let fields = SectionHeader::decode(&mut fields).map_err(|_| cut.clone())?;
    let length = usize::try_from(fields.length).unwrap_or(usize::MAX);
    let Some((content, behind)) = behind.split_at_checked(length) else { return Err(cut) };
    let found = crc32fast::hash(left.get(COVERED_AT..SECTION_BYTES + length).unwrap_or_default());
    if found != fields.checksum {
        return Err(ContainerError::Checksum { at, found, expected: fields.checksum });
    }
    let tag = Tag(fields.tag);
    if fields.flags & !REQUIRED != 0 {
        return Err(ContainerError::Flags { tag, flags: fields.flags });
    }
    let is_required = fields.flags & REQUIRED != 0;
    Ok((Section { tag, index: fields.index, version: fields.version, is_required, content }, behind))
}

struct SectionHeader {
    checksum: u32,
    tag: [u8; 4],
    index: u16,
    version: u16,
    flags: u32,
    length: u32,
}

crate::layout!(SectionHeader {
    checksum: u32,
    tag: [u8; 4],
    index: u16,
    version: u16,
    flags: u32,
    length: u32,
});

fn facts_of(first: Option<&Section<'_>>) -> Result<HostFacts, ContainerError> {
    let facts = first.filter(|section| (section.tag, section.index) == (FACTS.tag, 0));
    decode(facts.ok_or(ContainerError::Missing { tag: FACTS.tag, index: 0 })?, &FACTS)
}

fn decode<T: Layout>(section: &Section<'_>, kind: &Kind) -> Result<T, ContainerError> {
    let Section { tag, index, version: found, .. } = *section;
    if found != kind.version {
        return Err(ContainerError::Version { tag, found, known: kind.version });
    }
    layout::from_bytes(section.content).map_err(|source| ContainerError::Content { tag, index, source })
}

fn check_size(found: usize) -> Result<(), ContainerError> {
    let fits = u64::try_from(found).is_ok_and(|bytes| bytes <= STATE_MAX_BYTES);
    if fits { Ok(()) } else { Err(ContainerError::TooLong { found }) }
}

#[cfg(test)]
#[path = "container_test.rs"]
mod tests;
