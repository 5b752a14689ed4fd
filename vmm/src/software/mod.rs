//! Finishes the instructions that software KVM's emulator lacks.
//!
//! Where KVM has no hardware virtualization it emulates the guest's kernel mode, and returns with an internal
//! error at an instruction it does not know. Those that a kernel really uses are few, and are done here: the vCPU's
//! registers are read, the instruction is carried out on them and on guest memory, and the vCPU goes on behind it.
//! Any other ends the VM with an error that names it. Nothing here runs on VT-x or AMD-V hosts.
//!
//! - [`cpu`]: one vCPU's registers, while an instruction is carried out.
//! - [`paging`]: guest-virtual addresses, and the page fault that an access may meet.
//! - [`instructions`]: what each instruction does.
//! - [`xsave`]: the XSAVE area: what XSAVE and XRSTOR move.

pub mod cpu;
pub mod instructions;
pub mod paging;
pub mod xsave;

use crate::memory::Memory;
use crate::sys::exit::InternalError;
use cpu::Cpu;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use kvm_ioctls::VcpuFd;

/// What comes of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done: go on behind it.
    Next,
    /// It is done and traps (int3): deliver the vector with the address behind it.
    Trap(u8),
    /// It faults: deliver the exception with its own address.
    Fault(Exception),
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// 6 #UD, 13 #GP, 14 #PF, 16 #MF …
    pub vector: u8,
    /// For the vectors that push one.
    pub error_code: Option<u32>,
    /// The address for a #PF.
    pub cr2: Option<u64>,
}

impl Exception {
    /// Invalid opcode.
    pub const UD: Self = Self { vector: 6, error_code: None, cr2: None };
    /// General protection, error code 0.
    pub const GP: Self = Self { vector: 13, error_code: Some(0), cr2: None };
    /// x87 floating point.
    pub const MF: Self = Self { vector: 16, error_code: None, cr2: None };
}

/// Why an instruction could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum SoftwareError {
    /// Nothing here, nor in KVM, knows it.
    #[error(
        "run a guest instruction: neither KVM nor the vmm knows `{text}` (bytes {bytes:02x?}) at guest address {rip:#x}, privilege level {cpl}; a guest kernel that does without it is needed here (see images/README.md)"
    )]
    Unknown {
        /// The instruction as an assembler writes it.
        text: String,
        /// The instruction's bytes.
        bytes: Vec<u8>,
        /// The instruction's guest-virtual address.
        rip: u64,
        /// The vCPU's privilege level; 0: kernel, 3: user.
        cpl: u8,
    },
    /// The error is not about an instruction.
    #[error("run the guest: KVM stopped with internal error {suberror} at guest address {rip:#x}")]
    Internal {
        /// KVM's number of the error.
        suberror: u32,
        /// The guest-virtual address of the vCPU's next instruction.
        rip: u64,
    },
    /// A call to KVM failed.
    #[error("finish a guest instruction: {call}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// Finishes the instruction that `vcpu` stopped at with `error`.
///
/// # Errors
/// It is not known, or KVM refuses a part of the vCPU's state.
pub fn finish(vcpu: &VcpuFd, memory: &Memory, error: &InternalError) -> Result<(), SoftwareError> {
    const EMULATION: u32 = 1;
    let mut cpu = Cpu::read(vcpu, memory)?;
    let rip = cpu.rip();
    if error.suberror != EMULATION {
        return Err(SoftwareError::Internal { suberror: error.suberror, rip });
    }
    // KVM tells what it had fetched; where that is nothing, or ends within the instruction, memory has the rest.
    let mut bytes = error.instruction.clone();
    let mut instruction = decode(&cpu, &bytes);
    if instruction.is_invalid() {
        bytes = cpu.fetch();
        instruction = decode(&cpu, &bytes);
    }
    bytes.truncate(instruction.len().max(1));
    match instructions::carry_out(&mut cpu, &instruction)? {
        Some(outcome) => cpu.finish(&instruction, outcome),
        None => Err(SoftwareError::Unknown { text: text(&instruction), bytes, rip, cpl: cpu.cpl() }),
    }
}

fn decode(cpu: &Cpu<'_>, bytes: &[u8]) -> Instruction {
    Decoder::with_ip(cpu.bitness(), bytes, cpu.rip(), DecoderOptions::NONE).decode()
}

fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(instruction, &mut text);
    text
}
