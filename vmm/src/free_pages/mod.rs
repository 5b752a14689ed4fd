//! The pages that are free in a frozen VM, as its kernel's own lists say. A snapshot leaves them
//! out.
//!
//! ```text
//!  the agent says where the VMCOREINFO note is ──▶ [`vmcoreinfo`]: where the lists are, and how
//!  page structures look ──▶ [`lists`]: zones ▶ orders ▶ blocks ──▶ ranges of RAM
//! ```
//! The lists are read from a generation ([`image`]), which never changes: nothing races with the
//! guest, which runs on meanwhile and does nothing for it. This is how crash dumps leave free pages
//! out. A page that was free at the instant of the pause has no content that anybody may rely on.
//! vCPUs stop between two instructions, and a kernel takes a page off its list, with its marks,
//! before it hands it out.
//!
//! All that is read is the guest's, and hostile: each read is checked, and all reads together are
//! bounded. A guest that lies loses pages of its own.

pub mod image;
pub mod lists;
pub mod vmcoreinfo;

use image::{Image, ReadError};
use lists::Lists;
use patina_abi::link::Vmcoreinfo;
use std::ops::Range;
use vmcoreinfo::{Kernel, NoteError};

/// Why it is not known which pages are free.
#[derive(Debug, thiserror::Error)]
pub enum FreePagesError {
    /// The note cannot be used.
    #[error("read the kernel's note")]
    Note(#[from] NoteError),
    /// Memory cannot be read.
    #[error("read the guest's memory")]
    Read(#[from] ReadError),
}

/// The free pages of a frozen VM, as ranges of bytes of RAM: ascending, and none touches another.
/// At most `most` ranges, the largest.
///
/// # Errors
/// It is not known which pages are free.
pub fn find(image: &Image<'_>, note: Vmcoreinfo, most: usize) -> Result<Vec<Range<u64>>, FreePagesError> {
    let mut text = vec![0; vmcoreinfo::note_bytes(note)?];
    image.read(note.address, &mut text)?;
    let kernel = Kernel::of_note(&text)?;
    let blocks = Lists::new(image, &kernel).blocks()?;
    let mut ranges = crate::ranges::union(blocks);
    if ranges.len() > most {
        ranges.sort_unstable_by_key(|range| std::cmp::Reverse(range.end - range.start));
        ranges.truncate(most);
        ranges.sort_unstable_by_key(|range| range.start);
    }
    Ok(ranges)
}

#[cfg(test)]
#[path = "free_pages_test.rs"]
mod tests;
