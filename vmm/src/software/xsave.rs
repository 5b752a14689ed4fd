//! The XSAVE area in standard format (Intel SDM volume 1, 13.4), which XSAVE writes from a vCPU's
//! state and XRSTOR reads. KVM uses the same format, so components are copied unchanged.

/// Bytes of the legacy region and the header.
const LEGACY_BYTES: usize = 512;
const HEADER_BYTES: usize = 64;
/// XSTATE_BV and XCOMP_BV in the header.
const XSTATE_BV: usize = LEGACY_BYTES;
const XCOMP_BV: usize = LEGACY_BYTES + 8;
const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const MXCSR: std::ops::Range<usize> = 24..32; // with its mask
const X87_FIRST: std::ops::Range<usize> = 0..24;
const X87_REGISTERS: std::ops::Range<usize> = 32..160;
const XMM: std::ops::Range<usize> = 160..416;
/// Bits of MXCSR that may be set.
const MXCSR_VALID: u32 = 0xffff;

/// Where each component beyond the legacy ones lies: from CPUID leaf 0xd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// (bit, offset, length) of each component.
    pub components: Vec<(u32, usize, usize)>,
}

/// The manual forbids the operation: #GP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forbidden;

impl Layout {
    /// The layout of the components in `mask`, as `cpuid(0xd, bit)` tells: (length, offset).
    #[must_use]
    pub fn new(mask: u64, cpuid: impl Fn(u32) -> (u32, u32)) -> Self {
        let components = (2..63)
            .filter(|bit| mask & (1 << bit) != 0)
            .map(|bit| {
                let (length, offset) = cpuid(bit);
                (bit, offset as usize, length as usize)
            })
            .filter(|(_, offset, length)| *length > 0 && *offset >= LEGACY_BYTES + HEADER_BYTES)
            .collect();
        Self { components }
    }

    /// Length of an area that holds the components in `mask`, bytes.
    #[must_use]
    pub fn area_bytes(&self, mask: u64) -> usize {
        self.components
            .iter()
            .filter(|(bit, _, _)| mask & (1 << bit) != 0)
            .map(|(_, offset, length)| offset + length)
            .fold(LEGACY_BYTES + HEADER_BYTES, usize::max)
    }

    /// What XSAVE with `mask` does to `area`, for a vCPU whose state is `state`. Both are at least
    /// [`Layout::area_bytes`] long.
    pub fn save(&self, state: &[u8], area: &mut [u8], mask: u64) {
        let in_use = u64_at(state, XSTATE_BV);
        if mask & X87 != 0 {
            area[X87_FIRST].copy_from_slice(&state[X87_FIRST]);
            area[X87_REGISTERS].copy_from_slice(&state[X87_REGISTERS]);
        }
        if mask & (SSE | AVX) != 0 {
            area[MXCSR].copy_from_slice(&state[MXCSR]);
        }
        if mask & SSE != 0 {
            area[XMM].copy_from_slice(&state[XMM]);
        }
        for (_, range) in self.ranges(mask & in_use) {
            area[range.clone()].copy_from_slice(&state[range]);
        }
        let saved = u64_at(area, XSTATE_BV) & !mask | in_use & mask;
        area[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&saved.to_le_bytes());
    }

    /// What XRSTOR with `mask` does to a vCPU's `state`, from `area`; `enabled` is XCR0.
    ///
    /// # Errors
    /// The header names what is not enabled or the compacted format, or MXCSR has a reserved bit.
    pub fn restore(&self, state: &mut [u8], area: &[u8], mask: u64, enabled: u64) -> Result<(), Forbidden> {
        let present = u64_at(area, XSTATE_BV);
        let reserved = area[XCOMP_BV..XCOMP_BV + 16].iter().any(|byte| *byte != 0);
        if present & !enabled != 0 || reserved {
            return Err(Forbidden);
        }
        if mask & (SSE | AVX) != 0 {
            let mxcsr = u32::from_le_bytes([area[24], area[25], area[26], area[27]]);
            if mxcsr & !MXCSR_VALID != 0 {
                return Err(Forbidden);
            }
            state[24..28].copy_from_slice(&area[24..28]);
        }
        if mask & X87 != 0 {
            copy_or_clear(state, area, X87_FIRST, present & X87 != 0);
            copy_or_clear(state, area, X87_REGISTERS, present & X87 != 0);
            if present & X87 == 0 {
                state[..2].copy_from_slice(&[0x7f, 0x03]); // FCW as FINIT sets it
            }
        }
        if mask & SSE != 0 {
            copy_or_clear(state, area, XMM, present & SSE != 0);
        }
        for (bit, range) in self.ranges(mask) {
            copy_or_clear(state, area, range, present & (1 << bit) != 0);
        }
        // Initial values are written out, so that everything can be marked as present for KVM.
        let in_use = u64_at(state, XSTATE_BV) | mask;
        state[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&in_use.to_le_bytes());
        Ok(())
    }

    fn ranges(&self, mask: u64) -> impl Iterator<Item = (u32, std::ops::Range<usize>)> {
        self.components
            .iter()
            .filter(move |(bit, _, _)| mask & (1 << bit) != 0)
            .map(|(bit, offset, length)| (*bit, *offset..offset + length))
    }
}

fn copy_or_clear(to: &mut [u8], from: &[u8], range: std::ops::Range<usize>, copy: bool) {
    if copy {
        to[range.clone()].copy_from_slice(&from[range]);
    } else {
        to[range].fill(0);
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
#[path = "xsave_test.rs"]
mod tests;
