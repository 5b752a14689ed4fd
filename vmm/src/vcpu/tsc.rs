//! Restores the TSC of a VM that starts from a generation. The TSC continues from its saved value.
//!
//! The TSC is set through its offset to the host's TSC. vCPUs that had the same offset get one new
//! offset in common. If the MSR's value were set instead, each vCPU would get another offset. Also,
//! before Linux 6.7 KVM takes a value within a second of the value it expects as an attempt to
//! synchronize vCPUs, and leaves the TSC unchanged. A clone's clocks would then stand still until
//! the TSC had caught up.
//!
//! KVM can read and set offsets since Linux 5.16. On an older kernel the MSR is set.

use crate::sys::kvm_state::{set_tsc_offset, tsc_offset};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Error, VcpuFd};
use patina_snapshot::facts::is_another_speed;
use std::sync::OnceLock;
use std::time::Instant;

/// The MSR.
pub const TSC: u32 = 0x10;

/// A vCPU's TSC when it was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscState {
    /// Its frequency, kHz. 0: KVM does not report it, because the host's TSC is not stable.
    pub(crate) khz: u32,
    pub(crate) value: u64,
    /// `value` minus the host's TSC, modulo 2^64.
    pub(crate) offset: u64,
}

patina_snapshot::layout!(TscState { khz: u32, value: u64, offset: u64 });

impl TscState {
    /// Reads the TSC of a vCPU. None if KVM does not report the offset.
    #[must_use]
    pub fn save(vcpu: &VcpuFd) -> Option<Self> {
        let offset = tsc_offset(vcpu).ok()?;
        Some(Self { khz: vcpu.get_tsc_khz().unwrap_or(0), value: read(vcpu).ok()?, offset })
    }

    /// Advances the TSC to the moment at which the VM's clock was read, when the host's TSC was
    /// `host`. So both continue from the same moment. Does nothing if that is more than ten seconds
    /// later, because then `host` is not from the TSC that the offset refers to.
    fn move_to(&mut self, host: u64) {
        let moved = host.wrapping_add(self.offset);
        if moved.wrapping_sub(self.value) < u64::from(self.khz) * 10_000 {
            self.value = moved;
        }
    }
}

/// The TSCs of all vCPUs of a VM that starts.
#[derive(Debug)]
pub struct TscStart {
    first: Option<TscState>,
    /// The offset for vCPUs that had the same offset as the first one, and the time at which their
    /// TSC had the first one's saved value.
    now: OnceLock<Result<(u64, Instant), Error>>,
}

impl TscStart {
    /// The TSCs of a VM whose first vCPU had this TSC, and whose clock was read when the host's TSC
    /// was `clock`.
    #[must_use]
    pub fn new(mut first: Option<TscState>, clock: Option<u64>) -> Self {
        if let (Some(first), Some(clock)) = (&mut first, clock) {
            first.move_to(clock);
        }
        Self { first, now: OnceLock::new() }
    }

    /// Sets a vCPU's TSC. Returns false if it cannot be set through its offset here, and the MSR
    /// must be set.
    ///
    /// # Errors
    /// KVM refuses: the host's TSC runs at another speed and cannot be made to look as fast as that
    /// one.
    pub fn set(&self, vcpu: &VcpuFd, saved: Option<TscState>) -> Result<bool, Error> {
        let (Some(first), Some(saved)) = (self.first, saved) else { return Ok(false) };
        if is_another_speed(saved.khz, vcpu.get_tsc_khz().unwrap_or(0)) {
            vcpu.set_tsc_khz(saved.khz)?;
        }
        let now = self.now.get_or_init(|| {
            let host = read(vcpu)?.wrapping_sub(tsc_offset(vcpu)?);
            Ok((first.value.wrapping_sub(host), Instant::now()))
        });
        let Ok((offset, _)) = now else { return Ok(false) };
        // If the guest has set the TSC of one vCPU, that vCPU keeps its difference from the first.
        let own = saved.offset.wrapping_sub(first.offset);
        set_tsc_offset(vcpu, offset.wrapping_add(own))?;
        Ok(true)
    }

    /// How long the TSCs have run since they had their values at the read of the VM's clock,
    /// nanoseconds.
    #[must_use]
    pub fn ago_ns(&self) -> u64 {
        let ago = self.now.get().and_then(|now| now.as_ref().ok()).map(|(_, at)| at.elapsed().as_nanos());
        ago.and_then(|ns| u64::try_from(ns).ok()).unwrap_or(0)
    }
}

fn read(vcpu: &VcpuFd) -> Result<u64, Error> {
    let entry = kvm_msr_entry { index: TSC, ..kvm_msr_entry::default() };
    let mut msrs = Msrs::from_entries(&[entry]).map_err(|_| Error::new(libc::ENOMEM))?;
    match (vcpu.get_msrs(&mut msrs)?, msrs.as_slice()) {
        (1, [entry]) => Ok(entry.data),
        _ => Err(Error::new(libc::EINVAL)),
    }
}

#[cfg(test)]
#[path = "tsc_test.rs"]
mod tests;
