//! How often a pager is started: one that ends at once must not be started without end.

use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Most starts within [`WITHIN`].
pub const STARTS_MAX: usize = 20;
/// See [`STARTS_MAX`].
pub const WITHIN: Duration = Duration::from_secs(10);

/// The starts so far.
#[derive(Debug, Default)]
pub struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Counts a start now. If it is one too many: when the next one may be.
    pub fn begin(&mut self, now: Instant) -> Result<(), Instant> {
        while self.0.front().is_some_and(|start| now.duration_since(*start) >= WITHIN) {
            self.0.pop_front();
        }
        match self.0.front() {
            Some(first) if self.0.len() >= STARTS_MAX => Err(*first + WITHIN),
            _ => {
                self.0.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_bounded_in_any_ten_seconds() {
        let (mut restarts, begin) = (Restarts::default(), Instant::now());
        let step = Duration::from_millis(10);
        for number in 0..STARTS_MAX {
            assert_eq!(restarts.begin(begin + step * number as u32), Ok(()), "the first are not put off");
        }
        assert_eq!(restarts.begin(begin + Duration::from_secs(1)), Err(begin + WITHIN));
        assert_eq!(restarts.begin(begin + WITHIN), Ok(()), "the first one is long ago");
        assert_eq!(restarts.begin(begin + WITHIN), Err(begin + WITHIN + step));
    }
}
