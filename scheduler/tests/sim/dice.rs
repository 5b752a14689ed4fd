//! Numbers that look random, the same for the same seed.

#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, of: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ of.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    /// From the first up to the last.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.roll(last - first + 1)
    }

    /// In so many of 100 cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }

    pub fn ms(&mut self, first: u64, last: u64) -> std::time::Duration {
        std::time::Duration::from_millis(self.between(first, last))
    }

    pub fn uuid(&mut self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes(
            (u128::from(self.roll(u64::MAX)) << 64 | u128::from(self.roll(u64::MAX))).to_be_bytes(),
        )
        .into_uuid()
    }
}
