//! Reads the details of a KVM exit that kvm-ioctls leaves in `kvm_run`'s union.

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_MEMORY_FAULT, KVM_INTERNAL_ERROR_EMULATION};
use kvm_ioctls::VcpuFd;

/// Longest x86 instruction, bytes.
pub const INSTRUCTION_MAX_BYTES: usize = 15;

/// KVM's report of an internal error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalError {
    /// 1: KVM's emulator does not know the instruction.
    pub suberror: u32,
    /// The instruction's bytes (and what follows it), where KVM tells them.
    pub instruction: Vec<u8>,
}

/// The details of the internal error that `vcpu` has just returned with, if that is why it
/// returned.
#[must_use]
pub fn internal_error(vcpu: &mut VcpuFd) -> Option<InternalError> {
    /// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.
    const HAS_BYTES: u64 = 1;
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: the exit reason, written by the kernel, says that this member of the union is valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    if internal.suberror != KVM_INTERNAL_ERROR_EMULATION
        || internal.ndata == 0
        || internal.data[0] & HAS_BYTES == 0
    {
        return Some(InternalError { suberror: internal.suberror, instruction: Vec::new() });
    }
    // The layout of `emulation_failure`: flags, then one byte of length and 15 of instruction.
    let bytes: Vec<u8> = internal.data[1..3].iter().flat_map(|word| word.to_le_bytes()).collect();
    let length = usize::from(bytes[0]).min(INSTRUCTION_MAX_BYTES);
    Some(InternalError { suberror: internal.suberror, instruction: bytes[1..=length].to_vec() })
}

/// The access to guest RAM for which KVM_RUN has just failed: guest address and length in bytes.
/// KVM reports it since Linux 6.8.
#[must_use]
pub fn memory_fault(vcpu: &mut VcpuFd) -> Option<(u64, u64)> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != KVM_EXIT_MEMORY_FAULT {
        return None;
    }
    // SAFETY: the exit reason, written by the kernel, says that this member of the union is valid.
    let fault = unsafe { run.__bindgen_anon_1.memory_fault };
    Some((fault.gpa, fault.size))
}

/// Describes a failure to access the guest's RAM: guest address, and length in bytes or 0.
#[must_use]
pub fn describe_memory_fault(at: Option<(u64, u64)>) -> String {
    let place = at
        .map(|(gpa, size)| match size {
            0 => format!(" at guest address {gpa:#x}"),
            size => format!(" at guest address {gpa:#x} ({size} bytes)"),
        })
        .unwrap_or_default();
    format!(
        "KVM cannot reach the guest's RAM{place}: the host has no memory left for it, its memory is broken there, or the page could not be had from its snapshot; the host's kernel log and vmmd's log tell which"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_fault_names_the_guest_address_where_kvm_tells() {
        let told = describe_memory_fault(Some((0x1000, 4096)));
        assert!(told.starts_with("KVM cannot reach the guest's RAM at guest address 0x1000 (4096 bytes): "));
        assert!(describe_memory_fault(None).starts_with("KVM cannot reach the guest's RAM: the host has"));
    }
}
