//! A child process's system calls, by ptrace(2).
#![allow(unsafe_code, reason = "ptrace")]

use rustix::process::Pid;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Runs a command to its end and tells of each system call as it is entered, of all its threads.
#[allow(clippy::zombie_processes, reason = "wait reaps it")]
pub fn trace(command: &mut Command, mut entered: impl FnMut(Pid, u64)) {
    // SAFETY: the closure runs in the child before exec and makes one system call.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let child = command.spawn().unwrap();
    let main = Pid::from_child(&child);
    loop {
        let (thread, status) = wait();
        if libc::WIFSTOPPED(status) {
            let signal = libc::WSTOPSIG(status);
            if signal == libc::SIGTRAP | 0x80
                && let Some(call) = entered_syscall(thread)
            {
                entered(thread, call);
            }
            // Stops of ptrace's own are not passed on; a new thread begins with one.
            go_on(thread, if matches!(signal & 0x7f, libc::SIGTRAP | libc::SIGSTOP) { 0 } else { signal });
        } else if thread == main {
            return;
        }
    }
}

/// Waits for a child of this thread: other tests have children too.
fn wait() -> (Pid, i32) {
    let mut status = 0;
    // SAFETY: the kernel writes one integer.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    (Pid::from_raw(pid).expect("a child"), status)
}

/// Whether it worked; not with a process that has been killed in the meantime, of whose end `wait`
/// tells.
fn worked(result: libc::c_long) -> bool {
    let error = std::io::Error::last_os_error();
    assert!(result >= 0 || error.raw_os_error() == Some(libc::ESRCH), "{error}");
    result >= 0
}

/// The system call at whose entry the process stands.
fn entered_syscall(pid: Pid) -> Option<u64> {
    // SAFETY: the process is stopped and ours; the kernel fills at most the structure's size, whose
    // parts are integers; an entry's fields are valid when it says that it is one.
    unsafe {
        let mut info: libc::ptrace_syscall_info = std::mem::zeroed();
        let request = libc::PTRACE_GET_SYSCALL_INFO;
        let size = size_of::<libc::ptrace_syscall_info>();
        let is_there = worked(libc::ptrace(request, pid.as_raw_nonzero().get(), size, &raw mut info));
        (is_there && info.op == libc::PTRACE_SYSCALL_INFO_ENTRY).then_some(info.u.entry.nr)
    }
}

/// Lets the process run to its next system call.
fn go_on(pid: Pid, signal: i32) {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE;
    let options = libc::c_long::from(options);
    let pid = pid.as_raw_nonzero().get();
    // SAFETY: the process is stopped and ours; both calls take integers.
    unsafe {
        if worked(libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options)) {
            worked(libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, libc::c_long::from(signal)));
        }
    }
}
