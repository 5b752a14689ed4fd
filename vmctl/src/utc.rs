//! Moments in the form that people write.

use std::time::{Duration, UNIX_EPOCH};

/// The last millisecond of the year 9999.
const LAST_MS: u64 = 253_402_300_799_999;

/// Milliseconds since 1970 as `2025-11-22T07:30:21.042Z`. What is later than the year 9999 is shown
/// as its end.
pub fn text(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_MS))).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(text(1_763_796_621_042), "2025-11-22T07:30:21.042Z");
        assert_eq!(text(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
        assert_eq!(text(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
        assert_eq!(text(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
