//! Keeps an idle guest idle: switches off periodic work of the kernel, which would cost CPU time in
//! every clone.

use crate::console::say;
use rustix::fs::{Mode, OFlags};
use std::ffi::CStr;

/// Settings of the kernel, with what they stop.
const SETTINGS: [(&CStr, &[u8]); 2] = [
    // kcompactd looks for fragmented memory twice a second.
    (c"/proc/sys/vm/compaction_proactiveness", b"0"),
    // Statistics of pages are gathered every second; once a day does.
    (c"/proc/sys/vm/stat_interval", b"86400"),
];

/// Sets them; a kernel that lacks one has not the work either.
pub fn set_up() {
    for (path, value) in SETTINGS {
        let written = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(&file, value));
        match written {
            Ok(_) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => say(&format!("write {}: {error}", path.to_string_lossy())),
        }
    }
}
