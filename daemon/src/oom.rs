//! The order in which the kernel's OOM killer ends processes: first clones, which can be created
//! again, then masters, then the daemons that manage all of them.

use std::{fs, io};

/// `/proc/PID/oom_score_adj` of `vmmd` and of the scheduler.
const DAEMON: i32 = -900;

/// Makes this process one of the last that the kernel's OOM killer takes. Programs that it starts
/// have that from it, and need a value of their own.
///
/// # Errors
/// No rights (CAP_SYS_RESOURCE).
pub fn protect() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", DAEMON.to_string())
}
