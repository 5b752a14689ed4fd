//! What is new in an identity each time it is sent.

use super::session::Fresh;
use std::time::{SystemTime, UNIX_EPOCH};

/// The wall clock and randomness of this moment.
#[must_use]
pub fn fresh() -> Fresh {
    const SEED_BYTES: usize = 32;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut seed = [0u8; SEED_BYTES];
    // The kernel gives up to 256 bytes whole, once it has started. Less than all is sent as none, and no clone is ready with that.
    let given = rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    let seed = if given == SEED_BYTES {
        seed.iter().map(|byte| format!("{byte:02x}")).collect()
    } else {
        String::new()
    };
    Fresh { clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), seed }
}
