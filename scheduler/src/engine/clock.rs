//! The core's time: milliseconds since 1970 that never go back.

use crate::core::api::UnixMs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Longest sleep: whoever wakes for nothing looks again.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// Where the clock stood when it was made, and tokio's monotonic time since: what sets the host's
/// clock does not change leases, and a simulation that moves tokio's time moves this.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base_unix_ms: UnixMs,
    started: Instant,
}

impl Clock {
    /// The host's clock.
    #[must_use]
    pub fn system() -> Self {
        // A host whose clock stands before 1970 starts there.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(UnixMs::try_from(since.as_millis()).unwrap_or(UnixMs::MAX / 2))
    }

    /// A clock that shows `base_unix_ms` now.
    #[must_use]
    pub fn starting_at(base_unix_ms: UnixMs) -> Self {
        Self { base_unix_ms, started: Instant::now() }
    }

    /// A clock that is not behind `unix_ms`, the latest time in the ledger.
    #[must_use]
    pub fn not_before(self, unix_ms: UnixMs) -> Self {
        Self { base_unix_ms: self.base_unix_ms.max(unix_ms), ..self }
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> UnixMs {
        let passed = UnixMs::try_from(self.started.elapsed().as_millis()).unwrap_or(UnixMs::MAX);
        self.base_unix_ms.saturating_add(passed)
    }

    /// When it will show that, or some time before.
    #[must_use]
    pub fn instant(&self, unix_ms: UnixMs) -> Instant {
        let ahead = Duration::from_millis(unix_ms.saturating_sub(self.now()));
        Instant::now() + ahead.min(SLEEP_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_follows_tokios_time_and_the_ledgers() {
        let clock = Clock::starting_at(1_000).not_before(5_000).not_before(2_000);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(clock.now(), 5_250);
        assert_eq!(clock.instant(6_000) - Instant::now(), Duration::from_millis(750));
        assert_eq!(clock.instant(0), Instant::now());
        assert_eq!(clock.instant(UnixMs::MAX) - Instant::now(), SLEEP_MAX);
    }
}
