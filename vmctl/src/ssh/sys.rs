//! What ssh is started with, and how it is told to end.
#![allow(unsafe_code, reason = "pre_exec is unsafe by signature, and signals have no safe wrapper")]

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::io;
use tokio::process::Command;

/// ssh ends with us, however we end. Ctrl-C and Ctrl-\ are for us alone, so that `vmctl exec` can
/// pass them on: ssh leaves signals ignored that are ignored when it starts, and takes them while
/// it asks for a password.
pub(super) fn prepare(command: &mut Command) {
    let of_the_child = || {
        set_parent_process_death_signal(Some(Signal::TERM)).map_err(io::Error::from)?;
        for number in [libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: it takes no memory of ours, and is safe between fork and exec.
            if unsafe { libc::signal(number, libc::SIG_IGN) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: it makes system calls only, and neither allocates nor locks.
    unsafe { command.pre_exec(of_the_child) };
}

/// Tells a process of ours to end that is not reaped yet.
pub(super) fn terminate(id: Option<u32>) {
    let pid = id.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended meanwhile.
        let _ended = kill_process(pid, Signal::TERM);
    }
}
