//! Identifies a process uniquely, also across reboots of the host.

use serde::{Deserialize, Serialize};
use std::{fs, sync::OnceLock};

/// A process. A pid is used again; a pid with its start time and boot is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process's pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// The boot in which it ran.
    pub boot: String,
}

impl ProcessId {
    /// When it started, microseconds since boot, rounded down.
    #[must_use]
    pub fn started_us(&self) -> u64 {
        // `USER_HZ` of x86.
        self.start_ticks.saturating_mul(1_000_000 / 100)
    }
}

/// The number of this boot; empty: the kernel does not tell.
pub fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        id.map(|id| id.trim().to_owned()).unwrap_or_default()
    })
}
