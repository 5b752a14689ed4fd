//! Gets a thread out of a read that should not have blocked.
//!
//! A VM's userfaultfd is non-blocking when it comes. But its vmm has a duplicate, and can make it
//! blocking at any time. A thread that reads it then would wait until the VM has a fault, and
//! serve nobody else meanwhile.

use std::io;
use std::ptr;

/// A thread that can be interrupted.
#[derive(Debug, Clone, Copy)]
pub struct Thread(libc::pid_t);

extern "C" fn on_interrupt(_signal: libc::c_int) {}

/// Installs the handler of the signal, for all threads: system calls end with EINTR.
///
/// # Errors
/// The kernel refuses.
pub fn prepare() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid: no flags, so that no call is restarted; an empty
    // mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_interrupt as *const () as usize;
    // SAFETY: the handler does nothing.
    if unsafe { libc::sigaction(libc::SIGRTMIN(), &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Thread {
    /// The calling thread.
    #[must_use]
    pub fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get())
    }

    /// Interrupts its system call, if it makes one that waits. [`prepare`] was called before.
    pub fn interrupt(self) {
        let process = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: takes numbers. A thread that has ended is not found, which is as good.
        unsafe { libc::syscall(libc::SYS_tgkill, process, self.0, libc::SIGRTMIN()) };
    }
}
