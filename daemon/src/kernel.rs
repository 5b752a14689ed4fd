//! The release of the kernel that runs, on which depends what it can do.

use std::{fs, io};

/// The first release that notes which pages are written, and serves private mappings of shared
/// memory lazily at the same time: userfaultfd with asynchronous write protection, and
/// PAGEMAP_SCAN.
pub const NOTES_WRITES: (u32, u32) = (6, 7);

/// The release, such as `6.18.44-cloud`.
///
/// # Errors
/// /proc is not mounted.
pub fn release() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|release| release.trim_end().to_owned())
}

/// The first two numbers of a release such as `6.10.0-rc1`. None: it does not begin with them.
#[must_use]
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

/// Whether a kernel of this release is of [`NOTES_WRITES`] or later.
#[must_use]
pub fn notes_writes(release: &str) -> bool {
    version(release) >= Some(NOTES_WRITES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_its_first_two_numbers() {
        assert_eq!(version("6.18.44-cloud"), Some((6, 18)));
        assert_eq!(version("6.9.0-rc1"), Some((6, 9)));
        assert_eq!(version("7.0"), Some((7, 0)));
        assert_eq!(["", "linux", "6"].map(version), [None; 3]);
    }

    #[test]
    fn kernels_that_note_writes_are_told_from_older_ones() {
        let new = ["6.7.0", "6.12.9-amd64", "6.18.44", "7.0-rc1", "10.0-rc1"];
        assert!(new.into_iter().all(notes_writes));
        assert!(!["6.6.99-1-amd64", "5.15.0-1", "5.14.0", "", "x"].into_iter().any(notes_writes));
    }
}
