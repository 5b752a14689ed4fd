//! `/dev/kvm` from an inherited descriptor.

use kvm_ioctls::Kvm;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// Uses `fd`, an open `/dev/kvm`.
#[must_use]
pub fn open(fd: OwnedFd) -> Kvm {
    // SAFETY: ownership of the open descriptor goes to the Kvm object. That it is /dev/kvm is not a
    // matter of memory safety: KVM's ioctls fail on any other file.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}
