//! Gets and sets a vCPU's XSAVE area, and compares and exchanges 16 bytes in guest memory.

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Size of KVM_GET_XSAVE's area, bytes.
pub const AREA_BYTES: usize = 4096;

/// The vCPU's extended state, standard format.
///
/// # Errors
/// KVM refuses.
pub fn get(vcpu: &VcpuFd) -> Result<Vec<u8>, kvm_ioctls::Error> {
    let area = vcpu.get_xsave()?;
    Ok(area.region.iter().flat_map(|word| word.to_le_bytes()).collect())
}

/// Sets the vCPU's extended state from an area of [`AREA_BYTES`].
///
/// # Errors
/// KVM refuses: the area names what the vCPU has not, or has another size.
pub fn set(vcpu: &VcpuFd, state: &[u8]) -> Result<(), kvm_ioctls::Error> {
    if state.len() != AREA_BYTES {
        return Err(kvm_ioctls::Error::new(libc::EINVAL));
    }
    let mut area = kvm_xsave::default();
    for (word, bytes) in area.region.iter_mut().zip(state.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    set_area(vcpu, &area)
}

/// Sets the vCPU's extended state.
///
/// # Errors
/// KVM refuses: the area names what the vCPU has not.
pub fn set_area(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 tells, which is more than `kvm_xsave` has
    // only for a process that asked for a dynamic feature (AMX) with arch_prctl; this one never
    // does.
    unsafe { vcpu.set_xsave(area) }
}

/// Compares the 16 bytes at `at` with `expected` and, if they are equal, replaces them with `new`.
/// Returns the old bytes. Guest kernels need this only before they have read their command line, on
/// one CPU, so a lock among the vmm's threads is enough. `None`: there is no RAM.
pub fn compare_exchange_16(
    memory: &GuestMemoryMmap,
    at: GuestAddress,
    expected: u128,
    new: u128,
) -> Option<u128> {
    static LOCK: Mutex<()> = Mutex::new(());
    let _guard = patina_daemon::lock(&LOCK);
    let mut bytes = [0; 16];
    memory.read_slice(&mut bytes, at).ok()?;
    let found = u128::from_le_bytes(bytes);
    if found == expected {
        memory.write_slice(&new.to_le_bytes(), at).ok()?;
    }
    Some(found)
}
