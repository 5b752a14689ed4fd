//! Kicks a vCPU's thread out of KVM_RUN.
//!
//! A signal alone is not enough: one that arrives just before KVM_RUN would be handled without
//! effect. So the handler sets `immediate_exit` in the thread's own run page, which KVM_RUN checks
//! (KVM API, 5: kvm_run).

use kvm_ioctls::VcpuFd;
use std::cell::Cell;
use std::io;
use std::os::unix::thread::{JoinHandleExt, RawPthread};
use std::ptr;
use std::thread::JoinHandle;

thread_local! {
    // Constant and without a destructor, so that a signal handler may read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_signal: libc::c_int) {
    let exit = IMMEDIATE_EXIT.get();
    if !exit.is_null() {
        // SAFETY: set by `with_kicks` on this very thread to a byte of a live run page, and reset
        // before that goes.
        unsafe { ptr::write_volatile(exit, 1) };
    }
}

/// Installs the signal handler of kicks, for all threads. Must be called before there is a
/// [`Target`]: without the handler a kick ends the process.
///
/// # Errors
/// The kernel refuses.
pub fn take_kicks() -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_kick as *const () as usize;
    // SAFETY: the handler is async-signal-safe: it reads a constant-initialised thread-local and
    // writes a byte.
    if unsafe { libc::sigaction(libc::SIGRTMIN(), &action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Runs `body`. Meanwhile, kicks of the calling thread reach the vCPU that `vcpu` finds in `owner`.
/// `body` must not replace that vCPU.
pub fn with_kicks<T, R>(
    owner: &mut T,
    vcpu: impl FnOnce(&mut T) -> &mut VcpuFd,
    body: impl FnOnce(&mut T) -> R,
) -> R {
    let _reset = Reset;
    IMMEDIATE_EXIT.set(&raw mut vcpu(owner).get_kvm_run().immediate_exit);
    body(owner)
}

/// Clears the pointer to the run page, also if the body panics.
struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

/// A vCPU's thread, as others see it.
#[derive(Debug)]
pub struct Target(JoinHandle<()>);

impl Target {
    /// For the thread behind `handle`, which is kept unjoined, so that its id stays its own.
    #[must_use]
    pub fn new(handle: JoinHandle<()>) -> Self {
        Self(handle)
    }

    /// Kicks the thread. A thread that does not run its vCPU yet checks the gate first.
    pub fn kick(&self) {
        let thread: RawPthread = self.0.as_pthread_t();
        // SAFETY: a pthread that has not been joined keeps a valid id, also after it has ended.
        unsafe { libc::pthread_kill(thread as libc::pthread_t, libc::SIGRTMIN()) };
    }
}
