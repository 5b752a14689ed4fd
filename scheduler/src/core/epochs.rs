//! Epochs: numbers that only increase, over all restarts of a scheduler and whatever its clock
//! shows.
//!
//! Blocks of epochs are reserved in the ledger, so that not every epoch has to be stored. A
//! scheduler that starts continues above all epochs that its predecessor may have issued.

/// How many are reserved at once.
const BLOCK: u64 = 1 << 16;

/// The counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Epochs {
    last: u64,
    reserved: u64,
}

impl Epochs {
    /// After a life whose ledger says that epochs up to `reserved` may have been given; none is
    /// below `least`.
    #[must_use]
    pub fn after(reserved: u64, least: u64) -> Self {
        Self { last: reserved.max(least), reserved }
    }

    /// As they were in this life, where only those up to `reserved` are in the ledger.
    #[must_use]
    pub fn stored(self, reserved: u64) -> Self {
        Self { reserved, ..self }
    }

    /// Up to where epochs may be given: to be in the ledger before anybody hears of one.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Nobody has had this one.
    pub(super) fn next(&mut self) -> u64 {
        self.last = self.last.saturating_add(1);
        if self.last > self.reserved {
            self.reserved = self.last.saturating_add(BLOCK);
        }
        self.last
    }

    /// This one was given.
    pub(super) fn given(&mut self, epoch: u64) {
        self.last = self.last.max(epoch);
    }
}
