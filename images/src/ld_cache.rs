//! The guest's `/etc/ld.so.cache`.
//!
//! Without it the dynamic linker looks for each library in half a dozen directories. Each failed
//! `openat` takes a third of a millisecond if the guest's kernel mode is emulated. `ldconfig -r`
//! would need root, so the cache is written here, in glibc's format "1.1" (elf/dl-cache.h): a
//! header, entries sorted for binary search, and strings.

use std::cmp::Ordering;
use std::path::Path;

use crate::files::{self, FileError};

/// Debian's directory of shared libraries, the only one that the guest has.
const LIBRARY_DIRECTORY: &str = "/usr/lib/x86_64-linux-gnu";

const MAGIC: &[u8; 20] = b"glibc-ld.so.cache1.1";
const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;
/// FLAG_ELF_LIBC6 | FLAG_X8664_LIB64.
const ENTRY_FLAGS: u32 = 0x0303;
const LITTLE_ENDIAN: u8 = 2;

/// Writes the cache for the libraries of `tree`.
pub fn write(tree: &Path) -> Result<(), FileError> {
    let mut names: Vec<String> = Vec::new();
    let directory = files::in_tree(tree, LIBRARY_DIRECTORY);
    if directory.is_dir() {
        let paths = files::entries(&directory)?;
        let names_found = paths.iter().filter(|path| path.is_file()).filter_map(|path| path.file_name());
        names = names_found.map(|name| name.to_string_lossy().into_owned()).collect();
    }
    names.retain(|name| is_library(name));
    files::write(&files::in_tree(tree, "/etc/ld.so.cache"), &encode(names), 0o644)
}

fn is_library(name: &str) -> bool {
    (name.starts_with("lib") || name.starts_with("ld-")) && (name.ends_with(".so") || name.contains(".so."))
}

fn encode(mut names: Vec<String>) -> Vec<u8> {
    names.sort_by(|a, b| compare(b, a));
    let strings_at = HEADER_BYTES + names.len() * ENTRY_BYTES;
    let mut entries = Vec::new();
    let mut strings = Vec::new();
    for name in &names {
        // A path ends in its file name, so one string serves as value and, further in, as key.
        let value = strings_at + strings.len();
        let key = value + LIBRARY_DIRECTORY.len() + 1;
        strings.extend_from_slice(format!("{LIBRARY_DIRECTORY}/{name}\0").as_bytes());
        for field in [ENTRY_FLAGS, key as u32, value as u32, 0, 0, 0] {
            entries.extend_from_slice(&field.to_le_bytes());
        }
    }
    let mut cache = MAGIC.to_vec();
    cache.extend_from_slice(&(names.len() as u32).to_le_bytes());
    cache.extend_from_slice(&(strings.len() as u32).to_le_bytes());
    cache.push(LITTLE_ENDIAN);
    cache.resize(HEADER_BYTES, 0);
    cache.extend_from_slice(&entries);
    cache.extend_from_slice(&strings);
    cache
}

/// The order of glibc's `_dl_cache_libcmp`: byte by byte, but runs of digits by their value, and a
/// digit after any other byte.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        match (a.first(), b.first()) {
            (None, None) => return Ordering::Equal,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, rest_a) = number(a);
                let (y, rest_b) = number(b);
                if x != y {
                    return x.cmp(&y);
                }
                (a, b) = (rest_a, rest_b);
            }
            (Some(x), _) if x.is_ascii_digit() => return Ordering::Greater,
            (_, Some(y)) if y.is_ascii_digit() => return Ordering::Less,
            (x, y) if x != y => return x.cmp(&y),
            _ => (a, b) = (&a[1..], &b[1..]),
        }
    }
}

fn number(text: &[u8]) -> (u64, &[u8]) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value =
        text[..digits].iter().fold(0u64, |value, digit| value.wrapping_mul(10) + u64::from(digit - b'0'));
    (value, &text[digits..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_as_glibc_sorts_them() {
        let mut names = vec!["libz.so.1", "libc.so.6", "libdb-5.3.so", "libc.so.10", "libdb.so", "libc.so"];
        names.sort_by(|a, b| compare(b, a));
        assert_eq!(names, ["libz.so.1", "libdb.so", "libdb-5.3.so", "libc.so.10", "libc.so.6", "libc.so"]);
    }

    /// glibc's own reader is the judge: `ldconfig -p -C FILE` prints what it finds in a cache.
    #[test]
    fn ldconfig_reads_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path();
        for name in ["libz.so.1", "libc.so.6", "ld-linux-x86-64.so.2", "notes.txt"] {
            files::write(&files::in_tree(tree, &format!("{LIBRARY_DIRECTORY}/{name}")), b"", 0o644).unwrap();
        }
        write(tree).unwrap();
        let mut ldconfig = std::process::Command::new("/sbin/ldconfig");
        ldconfig.arg("-p").arg("-C").arg(tree.join("etc/ld.so.cache"));
        let listed = crate::run::output(ldconfig).unwrap();
        assert!(listed.starts_with("3 libs found"), "{listed}");
        assert!(
            listed.contains("libc.so.6 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libc.so.6"),
            "{listed}"
        );
    }
}
