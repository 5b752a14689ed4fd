//! The TSC of a VM that starts from a generation: it goes on where it stood.
//!
//! It is set by its offset to the host's, one for all vCPUs that had one. Set by its value, as an MSR, it would be another
//! offset on each vCPU; and before Linux 6.7 KVM takes a value that is within a second of what it expects as an attempt to
//! set all vCPUs alike, and leaves the TSC where it is: a clone's clocks would stand still until it has caught up.
//!
//! KVM tells and takes offsets since Linux 5.16. Where it does not, the MSR is set.

use crate::sys::kvm_state::{set_tsc_offset, tsc_offset};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Error, VcpuFd};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;
use std::time::Instant;

/// The MSR.
pub const TSC: u32 = 0x10;

/// A vCPU's TSC when it was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscState {
    /// How fast it runs; 0: KVM does not tell, as the host's is not stable.
    khz: u32,
    value: u64,
    /// `value` is this and the host's TSC, modulo 2^64.
    offset: u64,
}

impl TscState {
    /// Looks at a vCPU; None where KVM does not tell the offset.
    #[must_use]
    pub fn save(vcpu: &VcpuFd) -> Option<Self> {
        let offset = tsc_offset(vcpu).ok()?;
        Some(Self { khz: vcpu.get_tsc_khz().unwrap_or(0), value: read(vcpu).ok()?, offset })
    }

    /// Moves it on to the moment at which the host's TSC stood at `host`: when the VM's clock was read. So both go on from
    /// the same moment. No later than ten seconds: a host TSC that is not what the offset is about would be.
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
    /// The offset of a vCPU that had the first one's, and when its TSC stood at the first one's value.
    now: OnceLock<Result<(u64, Instant), Error>>,
}

impl TscStart {
    /// Of a VM whose first vCPU had this TSC, and whose clock was read when the host's TSC stood at `clock`.
    #[must_use]
    pub fn new(mut first: Option<TscState>, clock: Option<u64>) -> Self {
        if let (Some(first), Some(clock)) = (&mut first, clock) {
            first.move_to(clock);
        }
        Self { first, now: OnceLock::new() }
    }

    /// Sets a vCPU's TSC; false: it cannot be set by its offset here, so the MSR is to be set.
    ///
    /// # Errors
    /// KVM refuses: the host's TSC runs at another speed and cannot be made to look as fast as that one.
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
        // A guest that has set the TSC of one vCPU has another offset there.
        let own = saved.offset.wrapping_sub(first.offset);
        set_tsc_offset(vcpu, offset.wrapping_add(own))?;
        Ok(true)
    }

    /// How long ago the TSCs stood where they were when the VM's clock was read, nanoseconds.
    #[must_use]
    pub fn ago_ns(&self) -> u64 {
        let ago = self.now.get().and_then(|now| now.as_ref().ok()).map(|(_, at)| at.elapsed().as_nanos());
        ago.and_then(|ns| u64::try_from(ns).ok()).unwrap_or(0)
    }
}

/// More than 250 millionths apart, which is what clocks are corrected by: within that it is one host, measured twice.
fn is_another_speed(saved_khz: u32, khz: u32) -> bool {
    saved_khz != 0 && khz != 0 && u64::from(saved_khz.abs_diff(khz)) * 1_000_000 > u64::from(khz) * 250
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
