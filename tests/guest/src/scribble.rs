//! Writes memory at full speed, and checks every page before it is written again. A page that
//! another machine wrote, or that went back in time, does not have the expected content.

use crate::sys::{end_asked, end_on_sigterm};
use std::{error::Error, hint::black_box};

const PAGE_WORDS: usize = 512;

/// What each word of a page has in a round, by a mix of both numbers.
fn word(page: usize, round: u64) -> u64 {
    (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round.wrapping_mul(0xd1b5_4a32_d192_ed03)
}

/// Writes `mib` of memory round after round until SIGTERM comes, then prints how many rounds there
/// were.
pub fn scribble(mib: u32) -> Result<(), Box<dyn Error>> {
    end_on_sigterm()?;
    let pages = mib as usize * 256;
    let mut memory = vec![0_u64; pages * PAGE_WORDS];
    let mut round = 0;
    for (page, words) in memory.chunks_exact_mut(PAGE_WORDS).enumerate() {
        words.fill(word(page, round));
    }
    eprintln!("scribbling");
    while !end_asked() {
        for (page, words) in memory.chunks_exact_mut(PAGE_WORDS).enumerate() {
            let expected = word(page, round);
            if let Some(at) = black_box(&*words).iter().position(|found| *found != expected) {
                return Err(format!("round {round}: word {at} of page {page} is not what was written").into());
            }
            words.fill(word(page, round + 1));
        }
        round += 1;
    }
    println!("rounds {round}");
    Ok(())
}
