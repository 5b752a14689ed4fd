//! A pattern in memory that is written once and looked at later, by the same process in another
//! machine: what a page has tells which page it is, so a page of zeros, of another place or of
//! another time is seen.

use crate::sys::prefer_huge_pages;
use std::{error::Error, fs, hint::black_box};

const PAGE_WORDS: usize = 512;

/// What a word has, by the number of its page and its own.
fn word(page: usize, at: usize) -> u64 {
    let number = (page * PAGE_WORDS + at) as u64 + 1;
    (number ^ (number >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Fills `mib` of memory, says so in the fifo `filled`, and looks at every word when a word comes
/// from the fifo `look`.
///
/// # Errors
/// A word is another one; a fifo cannot be opened.
pub fn pattern(mib: u32, filled: &str, look: &str) -> Result<(), Box<dyn Error>> {
    let pages = mib as usize * 256;
    let mut memory = vec![0_u64; pages * PAGE_WORDS];
    prefer_huge_pages(&mut memory)?;
    for (page, words) in memory.chunks_exact_mut(PAGE_WORDS).enumerate() {
        for (at, place) in words.iter_mut().enumerate() {
            *place = word(page, at);
        }
    }
    fs::write(filled, "filled\n")?;
    fs::read(look)?;
    for (page, words) in memory.chunks_exact(PAGE_WORDS).enumerate() {
        let wrong = black_box(words).iter().enumerate().find(|(at, found)| **found != word(page, *at));
        if let Some((at, found)) = wrong {
            return Err(format!("word {at} of page {page} is {found:#x}").into());
        }
    }
    println!("{pages} pages right");
    Ok(())
}
