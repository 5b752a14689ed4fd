//! Finishes the instructions that software KVM's emulator lacks.
//!
//! Without hardware virtualization, KVM emulates the guest's kernel mode. At an instruction that it
//! does not know it returns with an internal error. A kernel uses few such instructions, and they
//! are executed here: the vmm reads the vCPU's registers, executes the instruction on them and on
//! guest memory, and resumes the vCPU behind it. Any other instruction ends the VM with an error
//! that names it. Nothing here runs on VT-x or AMD-V hosts.
//!
//! - [`cpu`]: one vCPU's registers while an instruction is executed.
//! - [`paging`]: translates guest-virtual addresses, with page faults.
//! - [`instructions`]: executes each instruction.
//! - [`xsave`]: the XSAVE area that XSAVE writes and XRSTOR reads.

pub mod cpu;
pub mod instructions;
pub mod paging;
pub mod xsave;

use crate::memory::Memory;
use crate::sys::exit::InternalError;
use cpu::Cpu;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};
use kvm_ioctls::VcpuFd;

/// The outcome of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done: continue behind it.
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
    /// Neither KVM nor the vmm knows the instruction.
    #[error(
        "run a guest instruction: neither KVM nor the vmm knows `{text}` (bytes {bytes:02x?}) at guest address {rip:#x}, privilege level {cpl}; use a guest kernel without this instruction (see images/README.md)"
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
    // KVM reports the bytes that it had fetched. If they are incomplete, the rest is read from
    // memory.
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
