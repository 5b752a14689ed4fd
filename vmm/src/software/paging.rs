//! Translates guest-virtual addresses: the page walk (Intel SDM volume 3, 4.5), with the page fault
//! that an access may cause.

use super::Exception;
use crate::memory::Memory;
use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

/// The parts of a vCPU's state that a page walk looks at.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    cr3: u64,
    levels: Option<u32>,
    write_protect: bool,
    user: bool,
    /// SMAP is on and not lifted by RFLAGS.AC.
    smap: bool,
}

impl Mode {
    /// The mode of a vCPU with these system registers, at user level or not.
    #[must_use]
    pub fn of(sregs: &kvm_sregs, user: bool, rflags: u64) -> Self {
        const PG: u64 = 1 << 31;
        const WP: u64 = 1 << 16;
        const LA57: u64 = 1 << 12;
        const SMAP: u64 = 1 << 21;
        const AC: u64 = 1 << 18;
        let levels = if sregs.cr4 & LA57 != 0 { 5 } else { 4 };
        Self {
            cr3: sregs.cr3,
            levels: (sregs.cr0 & PG != 0).then_some(levels),
            write_protect: sregs.cr0 & WP != 0,
            user,
            smap: sregs.cr4 & SMAP != 0 && rflags & AC == 0,
        }
    }
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The guest-physical address behind linear address `at`, with the accessed and dirty bits set as
/// the CPU would.
///
/// # Errors
/// The #PF that the access causes; #GP if a page table is not in RAM.
pub fn translate(memory: &Memory, mode: &Mode, at: u64, access: Access) -> Result<u64, Exception> {
    let Some(levels) = mode.levels else {
        return Ok(at);
    };
    let write = access == Access::Write;
    let fault = |present: bool| Exception {
        vector: 14,
        error_code: Some(u32::from(present) | u32::from(write) << 1 | u32::from(mode.user) << 2),
        cr2: Some(at),
    };
    let mut table = mode.cr3 & ADDRESS;
    let (mut writable, mut user) = (true, true);
    for level in (1..=levels).rev() {
        let shift = 12 + 9 * (level - 1);
        let entry_at = GuestAddress(table + ((at >> shift) & 0x1ff) * 8);
        let entry: u64 = memory.read_obj(entry_at).map_err(|_| Exception::GP)?;
        if entry & PRESENT == 0 {
            return Err(fault(false));
        }
        writable &= entry & WRITABLE != 0;
        user &= entry & USER != 0;
        let leaf = level == 1 || (level <= 3 && entry & LARGE != 0);
        if leaf {
            let forbidden = (mode.user && !user)
                || (!mode.user && user && mode.smap)
                || (write && !writable && (mode.user || mode.write_protect));
            if forbidden {
                return Err(fault(true));
            }
        }
        let marks = ACCESSED | if leaf && write { DIRTY } else { 0 };
        if entry & marks != marks {
            memory.write_obj(entry | marks, entry_at).map_err(|_| Exception::GP)?;
        }
        if leaf {
            let within = (1u64 << shift) - 1;
            return Ok(entry & ADDRESS & !within | at & within);
        }
        table = entry & ADDRESS;
    }
    Err(fault(false))
}

#[cfg(test)]
#[path = "paging_test.rs"]
mod tests;
