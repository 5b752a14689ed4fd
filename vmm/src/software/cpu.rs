//! One vCPU's registers while an instruction is executed on them.

use super::paging::{self, Access, Mode};
use super::{Exception, Outcome, SoftwareError};
use crate::memory::Memory;
use crate::sys::exit::INSTRUCTION_MAX_BYTES;
use iced_x86::{Instruction, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;
use patina_control::PAGE_BYTES;
use vm_memory::{Bytes, GuestAddress};

const EFER_LMA: u64 = 1 << 10;

/// A vCPU's general and system registers. They are read once, and at the end written back if they
/// changed.
pub struct Cpu<'a> {
    pub(super) vcpu: &'a VcpuFd,
    pub(super) memory: &'a Memory,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    sregs_changed: bool,
}

/// Names the call in an error.
pub(super) fn kvm(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> SoftwareError {
    move |source| SoftwareError::Kvm { call, source }
}

impl<'a> Cpu<'a> {
    /// Reads the registers.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn read(vcpu: &'a VcpuFd, memory: &'a Memory) -> Result<Self, SoftwareError> {
        Ok(Self {
            vcpu,
            memory,
            regs: vcpu.get_regs().map_err(kvm("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(kvm("KVM_GET_SREGS"))?,
            sregs_changed: false,
        })
    }

    /// The instruction pointer.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.regs.rip
    }

    /// The privilege level.
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.sregs.ss.dpl
    }

    /// 64, 32 or 16: the size of code.
    #[must_use]
    pub fn bitness(&self) -> u32 {
        match (self.sregs.efer & EFER_LMA != 0 && self.sregs.cs.l != 0, self.sregs.cs.db != 0) {
            (true, _) => 64,
            (false, true) => 32,
            (false, false) => 16,
        }
    }

    /// Up to 15 bytes of code at the instruction pointer, as far as they can be read.
    #[must_use]
    pub fn fetch(&self) -> Vec<u8> {
        let start = self.sregs.cs.base.wrapping_add(self.regs.rip);
        let mut bytes = vec![0; INSTRUCTION_MAX_BYTES];
        let in_page = (PAGE_BYTES - start % PAGE_BYTES) as usize;
        if self.read_memory(start, &mut bytes).is_err() {
            bytes.truncate(in_page.min(INSTRUCTION_MAX_BYTES));
            if self.read_memory(start, &mut bytes).is_err() {
                bytes.clear();
            }
        }
        bytes
    }

    /// EDX:EAX.
    #[must_use]
    pub fn edx_eax(&self) -> u64 {
        self.regs.rdx << 32 | self.regs.rax & 0xffff_ffff
    }

    /// Sets EDX:EAX; the upper halves become zero, as for every 32-bit result.
    pub fn set_edx_eax(&mut self, value: u64) {
        self.regs.rax = value & 0xffff_ffff;
        self.regs.rdx = value >> 32;
    }

    /// The general register that `register` is a part of.
    fn general(&mut self, register: Register) -> Option<&mut u64> {
        let regs = &mut self.regs;
        Some(match register.full_register() {
            Register::RAX => &mut regs.rax,
            Register::RCX => &mut regs.rcx,
            Register::RDX => &mut regs.rdx,
            Register::RBX => &mut regs.rbx,
            Register::RSP => &mut regs.rsp,
            Register::RBP => &mut regs.rbp,
            Register::RSI => &mut regs.rsi,
            Register::RDI => &mut regs.rdi,
            Register::R8 => &mut regs.r8,
            Register::R9 => &mut regs.r9,
            Register::R10 => &mut regs.r10,
            Register::R11 => &mut regs.r11,
            Register::R12 => &mut regs.r12,
            Register::R13 => &mut regs.r13,
            Register::R14 => &mut regs.r14,
            Register::R15 => &mut regs.r15,
            _ => return None,
        })
    }

    /// The value of a general register (16, 32 or 64 bits).
    pub fn get(&mut self, register: Register) -> Option<u64> {
        let bits = register.size() * 8;
        let value = *self.general(register)?;
        Some(if bits >= 64 { value } else { value & ((1 << bits) - 1) })
    }

    /// Sets a general register: 32 bits clear the upper half, 16 bits leave the rest.
    pub fn set(&mut self, register: Register, value: u64) -> Option<()> {
        let size = register.size();
        let full = self.general(register)?;
        *full = match size {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => *full & !0xffff | value & 0xffff,
            _ => return None,
        };
        Some(())
    }

    /// Base of FS or GS, to be changed.
    pub fn segment_base(&mut self, register: Register) -> Option<&mut u64> {
        self.sregs_changed = true;
        match register {
            Register::FS => Some(&mut self.sregs.fs.base),
            Register::GS => Some(&mut self.sregs.gs.base),
            _ => None,
        }
    }

    /// The linear address of a memory operand.
    pub fn address(&mut self, instruction: &Instruction, operand: u32) -> Option<u64> {
        let long = self.bitness() == 64;
        instruction.virtual_address(operand, 0, |register, _, _| match register {
            Register::FS => Some(self.sregs.fs.base),
            Register::GS => Some(self.sregs.gs.base),
            Register::ES if !long => Some(self.sregs.es.base),
            Register::CS if !long => Some(self.sregs.cs.base),
            Register::SS if !long => Some(self.sregs.ss.base),
            Register::DS if !long => Some(self.sregs.ds.base),
            Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
            general => self.get(general),
        })
    }

    fn mode(&self) -> Mode {
        Mode::of(&self.sregs, self.cpl() == 3, self.regs.rflags)
    }

    /// The parts of `length` bytes at linear address `start` that lie in one page each: (physical
    /// address, length).
    pub(super) fn pages(
        &self,
        start: u64,
        length: usize,
        access: Access,
    ) -> Result<Vec<(u64, usize)>, Exception> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < length {
            let at = start.wrapping_add(done as u64);
            let part = ((PAGE_BYTES - at % PAGE_BYTES) as usize).min(length - done);
            parts.push((paging::translate(self.memory, &self.mode(), at, access)?, part));
            done += part;
        }
        Ok(parts)
    }

    /// Reads guest memory at a linear address.
    ///
    /// # Errors
    /// The page fault that the guest would meet; #GP where there is no RAM.
    pub fn read_memory(&self, start: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        let mut done = 0;
        for (physical, part) in self.pages(start, bytes.len(), Access::Read)? {
            self.memory
                .read_slice(&mut bytes[done..done + part], GuestAddress(physical))
                .map_err(|_| Exception::GP)?;
            done += part;
        }
        Ok(())
    }

    /// Writes guest memory at a linear address. If a part of it faults, nothing is written.
    ///
    /// # Errors
    /// The page fault that the guest would meet; #GP where there is no RAM.
    pub fn write_memory(&self, start: u64, bytes: &[u8]) -> Result<(), Exception> {
        let mut done = 0;
        for (physical, part) in self.pages(start, bytes.len(), Access::Write)? {
            self.memory
                .write_slice(&bytes[done..done + part], GuestAddress(physical))
                .map_err(|_| Exception::GP)?;
            done += part;
        }
        Ok(())
    }

    /// Writes the registers back and delivers the outcome of `instruction`.
    pub(super) fn finish(mut self, instruction: &Instruction, outcome: Outcome) -> Result<(), SoftwareError> {
        let exception = match outcome {
            Outcome::Next => None,
            Outcome::Trap(vector) => Some(Exception { vector, error_code: None, cr2: None }),
            Outcome::Fault(exception) => Some(exception),
        };
        if !matches!(outcome, Outcome::Fault(_)) {
            self.regs.rip = instruction.next_ip();
        }
        if let Some(cr2) = exception.and_then(|exception| exception.cr2) {
            self.sregs.cr2 = cr2;
            self.sregs_changed = true;
        }
        if self.sregs_changed {
            self.vcpu.set_sregs(&self.sregs).map_err(kvm("KVM_SET_SREGS"))?;
        }
        self.vcpu.set_regs(&self.regs).map_err(kvm("KVM_SET_REGS"))?;
        match exception {
            Some(exception) => self.deliver(exception),
            None => Ok(()),
        }
    }

    fn deliver(&self, exception: Exception) -> Result<(), SoftwareError> {
        let mut events = self.vcpu.get_vcpu_events().map_err(kvm("KVM_GET_VCPU_EVENTS"))?;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = exception.vector;
        events.exception.has_error_code = u8::from(exception.error_code.is_some());
        events.exception.error_code = exception.error_code.unwrap_or(0);
        self.vcpu.set_vcpu_events(&events).map_err(kvm("KVM_SET_VCPU_EVENTS"))
    }
}
