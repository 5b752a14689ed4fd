//! Values of daemons' options.

use std::time::Duration;

/// Most that is granted of a CPU or of memory, times what there is.
const OVERCOMMIT_MAX: f64 = 1024.0;

/// Most of a size, MiB.
const SIZE_MAX_MIB: u64 = 1 << 40;

/// Why a text is not a time or a factor.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ValueError {
    /// The text is no time.
    #[error("write a time as 500ms, 10s, 5m or 2h, not {0:?}")]
    Time(String),
    /// The time is too short or too long.
    #[error("{given:?} is not between {least:?} and {most:?}")]
    Range {
        /// The time that was given.
        given: Duration,
        /// The shortest time that is allowed.
        least: Duration,
        /// The longest time that is allowed.
        most: Duration,
    },
    /// The text is no size.
    #[error("write a size as MiB, or as 512M or 8G, at most {SIZE_MAX_MIB}M, not {0:?}")]
    Size(String),
    /// The text is no factor, or one out of its range.
    #[error("write a factor between 0.01 and {OVERCOMMIT_MAX}, for example 1.5, not {0:?}")]
    Factor(String),
}

/// Longest text of a time: `30days 23h 59m 59s` is shorter.
const TIME_MAX_BYTES: usize = 20;

/// Reads a time between two bounds: `500ms`, `10s`, `5m`, `1h 30m`, `7days`; a bare number is
/// seconds.
///
/// # Errors
/// It is no time, or out of bounds.
pub fn time(text: &str, least: Duration, most: Duration) -> Result<Duration, ValueError> {
    let wrong = || ValueError::Time(text.to_owned());
    let given = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A longer text can name so many seconds that humantime panics as it adds a part of one.
        Err(_) if text.len() > TIME_MAX_BYTES => return Err(wrong()),
        Err(_) => humantime::parse_duration(text).map_err(|_| wrong())?,
    };
    if (least..=most).contains(&given) { Ok(given) } else { Err(ValueError::Range { given, least, most }) }
}

/// Reads how long a ticket may stay unused: `600s`, `10m`, `1h`.
///
/// # Errors
/// It is no time, or out of bounds.
pub fn ttl(text: &str) -> Result<Duration, ValueError> {
    time(text, Duration::from_millis(100), Duration::from_secs(30 * 24 * 3600))
}

/// Reads how long something is kept: `12h`, `30days`.
///
/// # Errors
/// It is no time, or out of bounds.
pub fn age(text: &str) -> Result<Duration, ValueError> {
    time(text, Duration::from_secs(1), Duration::from_secs(100 * 365 * 24 * 3600))
}

/// Reads a size: `512`, `512M`, `8G`; MiB.
///
/// # Errors
/// It is no size.
pub fn mebibytes(text: &str) -> Result<u64, ValueError> {
    let wrong = || ValueError::Size(text.to_owned());
    let (digits, factor) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    // `parse` would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|mib| *mib <= SIZE_MAX_MIB).ok_or_else(wrong)
}

/// Reads how many times what there is may be granted: `1.5`.
///
/// # Errors
/// It is no number, or out of bounds.
pub fn factor(text: &str) -> Result<f64, ValueError> {
    let wrong = || ValueError::Factor(text.to_owned());
    let factor: f64 = text.parse().map_err(|_| wrong())?;
    if (0.01..=OVERCOMMIT_MAX).contains(&factor) { Ok(factor) } else { Err(wrong()) }
}

/// A duration as the scheduler counts it.
#[must_use]
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A [`factor`] as the scheduler counts it.
#[must_use]
pub fn percent(factor: f64) -> u32 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0.01 and OVERCOMMIT_MAX"
    )]
    let percent = (factor * 100.0).round() as u32;
    percent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        for (text, ms) in [("100ms", 100), ("3", 3000), ("3s", 3000), ("2m", 120_000), ("1h 30m", 5_400_000)]
        {
            assert_eq!(milliseconds(ttl(text).unwrap()), ms);
        }
        let too_much = ["18446744073709551615h", "18446744073709551615s 1000ms"];
        for text in ["", "s", "-1s", "1 parsec", "1h-", "0x10"].into_iter().chain(too_much) {
            assert_eq!(ttl(text), Err(ValueError::Time(text.into())));
        }
        assert!(matches!(ttl("99ms"), Err(ValueError::Range { .. })));
        assert!(ttl("30days").is_ok() && ttl("721h").is_err() && ttl("5M").is_err(), "not five months");
    }

    #[test]
    fn factors_have_bounds_and_are_counted_in_percent() {
        assert_eq!(["0.01", "1.5", "1024"].map(|text| percent(factor(text).unwrap())), [1, 150, 102_400]);
        for text in ["0", "-1", "nan", "inf", "1025", "x"] {
            assert_eq!(factor(text), Err(ValueError::Factor(text.into())));
        }
    }
}
