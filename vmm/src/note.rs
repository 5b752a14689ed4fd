//! Log lines of the vmm on standard error, which is the VM's log.
//!
//! A hostile guest can cause any number of lines (for example, if it opens and breaks its link
//! again and again). So a process writes at most [`NOTES_MAX`] lines.

use std::sync::atomic::{AtomicU32, Ordering};

/// Most lines of one process, besides the one that reports its end.
pub const NOTES_MAX: u32 = 1000;

static SAID: AtomicU32 = AtomicU32::new(0);

/// Writes one line.
pub fn note(line: &str) {
    if let Some(line) = admit(&SAID, line) {
        patina_daemon::say!("vmm: {line}");
    }
}

fn admit<'a>(said: &AtomicU32, line: &'a str) -> Option<&'a str> {
    // Saturates, so that the count does not wrap.
    let before = said
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_add(1))
        .unwrap_or(NOTES_MAX + 1);
    match before {
        NOTES_MAX => Some("too many lines: the rest is left out"),
        count => (count < NOTES_MAX).then_some(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_ends_with_one_last_word() {
        let said = AtomicU32::new(0);
        let lines: Vec<_> = (0..2 * NOTES_MAX).filter_map(|_| admit(&said, "x")).collect();
        assert_eq!(lines.len() as u32, NOTES_MAX + 1);
        assert!(lines.last().expect("a line").starts_with("too many lines"));
    }
}
