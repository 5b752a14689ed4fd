//! The VMM of Patina: runs one VM in one process, with synchronous threads.
//!
//! Follow a VM from its start: [`process`] reads the configuration ([`patina_control`]) and takes its descriptors over;
//! [`machine`] puts RAM ([`memory`]), kernel ([`boot`]), [`devices`] and CPUs ([`vcpu`], with the [`bus`] that their I/O goes over) together; each vCPU then runs on a thread
//! of its own, all devices on one, and the main thread talks with `vmmd` and the guest's agent ([`control`]).
//!
//! Before the first guest instruction the process gives its rights away ([`jail`]).
//! [`persist`] says how each part gets into a generation and out of it.
//! [`software`] finishes instructions where KVM has no hardware virtualization; [`sys`] is the edge to the kernel.

pub mod boot;
pub mod bus;
pub mod control;
pub mod devices;
pub mod jail;
mod lock;
pub mod machine;
pub mod memory;
pub mod note;
pub mod persist;
pub mod process;
mod ranges;
pub mod software;
pub mod sys;
pub mod vcpu;

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
