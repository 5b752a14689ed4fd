//! The parts of an identity that are new each time it is sent: the time and randomness.

use super::session::Fresh;
use std::time::{SystemTime, UNIX_EPOCH};

/// The current wall clock and new randomness.
#[must_use]
pub fn fresh() -> Fresh {
    const SEED_BYTES: usize = 32;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut seed = [0u8; SEED_BYTES];
    // Once it has started, the kernel returns up to 256 bytes whole. If it returns less, the seed
    // is sent empty, and no clone becomes ready with an empty seed.
    let given = rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    let seed = if given == SEED_BYTES {
        seed.iter().map(|byte| format!("{byte:02x}")).collect()
    } else {
        String::new()
    };
    Fresh { clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), seed }
}
