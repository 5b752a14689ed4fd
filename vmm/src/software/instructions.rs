//! Executes each instruction.

use super::cpu::{Cpu, kvm};
use super::paging::Access;
use super::xsave::Layout;
use super::{Exception, Outcome, SoftwareError};
use crate::sys::{host_cpu, xstate};
use iced_x86::{Instruction, Mnemonic, OpKind};
use vm_memory::GuestAddress;

const RFLAGS_ZF: u64 = 1 << 6;
const RFLAGS_ARITHMETIC: u64 = 0x8d5;
const RFLAGS_AC: u64 = 1 << 18;
const BREAKPOINT: u8 = 3;

/// Executes `instruction` on `cpu`. `None`: it is not known here.
///
/// # Errors
/// KVM refuses a part of the state.
pub fn carry_out(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<Option<Outcome>, SoftwareError> {
    use Mnemonic as M;
    let outcome = match instruction.mnemonic() {
        M::Int3 => Outcome::Trap(BREAKPOINT),
        M::Ud0 | M::Ud1 | M::Ud2 => Outcome::Fault(Exception::UD),
        M::Wait => wait(cpu)?,
        M::Clac | M::Stac if cpu.cpl() != 0 => Outcome::Fault(Exception::UD),
        M::Clac => set_flag(cpu, RFLAGS_AC, false),
        M::Stac => set_flag(cpu, RFLAGS_AC, true),
        M::Clflushopt | M::Clwb | M::Cldemote | M::Serialize => Outcome::Next, // caches are the host's business
        M::Xgetbv => xgetbv(cpu)?,
        M::Xsetbv => xsetbv(cpu)?,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => return xsave(cpu, instruction).map(Some),
        M::Xrstor | M::Xrstor64 => return xrstor(cpu, instruction).map(Some),
        M::Popcnt => return Ok(faulting(popcnt(cpu, instruction))),
        M::Cmpxchg16b => return Ok(faulting(cmpxchg16b(cpu, instruction))),
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => return Ok(segment_base(cpu, instruction)),
        _ => return Ok(None),
    };
    Ok(Some(outcome))
}

/// A fault is an outcome like any other; `None`, an operand that is not known here, stays.
fn faulting(result: Result<Option<Outcome>, Exception>) -> Option<Outcome> {
    result.unwrap_or_else(|exception| Some(Outcome::Fault(exception)))
}

fn set_flag(cpu: &mut Cpu<'_>, flag: u64, on: bool) -> Outcome {
    cpu.regs.rflags = cpu.regs.rflags & !flag | if on { flag } else { 0 };
    Outcome::Next
}

/// FWAIT: an x87 exception that is pending is delivered now.
fn wait(cpu: &Cpu<'_>) -> Result<Outcome, SoftwareError> {
    const ERROR_SUMMARY: u16 = 1 << 7;
    let fpu = cpu.vcpu.get_fpu().map_err(kvm("KVM_GET_FPU"))?;
    Ok(if fpu.fsw & ERROR_SUMMARY != 0 { Outcome::Fault(Exception::MF) } else { Outcome::Next })
}

fn xcr0(cpu: &Cpu<'_>) -> Result<u64, SoftwareError> {
    let xcrs = cpu.vcpu.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?;
    Ok(xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value))
}

fn xgetbv(cpu: &mut Cpu<'_>) -> Result<Outcome, SoftwareError> {
    let value = match cpu.regs.rcx as u32 {
        // 1 asks which components are not in their initial state: all may be.
        0 | 1 => xcr0(cpu)?,
        _ => return Ok(Outcome::Fault(Exception::GP)),
    };
    cpu.set_edx_eax(value);
    Ok(Outcome::Next)
}

fn xsetbv(cpu: &mut Cpu<'_>) -> Result<Outcome, SoftwareError> {
    let mut xcrs = cpu.vcpu.get_xcrs().map_err(kvm("KVM_GET_XCRS"))?;
    if cpu.cpl() != 0 || cpu.regs.rcx as u32 != 0 {
        return Ok(Outcome::Fault(Exception::GP));
    }
    xcrs.nr_xcrs = 1;
    xcrs.xcrs[0].xcr = 0;
    xcrs.xcrs[0].value = cpu.edx_eax();
    // KVM knows which values are allowed: its refusal is the guest's #GP.
    Ok(match cpu.vcpu.set_xcrs(&xcrs) {
        Ok(()) => Outcome::Next,
        Err(_) => Outcome::Fault(Exception::GP),
    })
}

/// What XSAVE and XRSTOR work with.
struct XsaveOperands {
    /// XCR0.
    enabled: u64,
    /// The components that are asked for and enabled.
    mask: u64,
    layout: Layout,
    /// Linear address of the area.
    area: u64,
}

impl XsaveOperands {
    /// `None`: the area is not aligned, a #GP.
    fn of(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<Option<Self>, SoftwareError> {
        const ALIGNMENT: u64 = 64;
        const XSTATE_LEAF: u32 = 0xd;
        let enabled = xcr0(cpu)?;
        let layout = Layout::new(enabled, |bit| {
            let leaf = host_cpu::cpuid(XSTATE_LEAF, bit);
            (leaf.eax, leaf.ebx)
        });
        let area = cpu.address(instruction, 0).filter(|area| area % ALIGNMENT == 0);
        Ok(area.map(|area| Self { enabled, mask: cpu.edx_eax() & enabled, layout, area }))
    }
}

fn xsave(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<Outcome, SoftwareError> {
    let Some(operands) = XsaveOperands::of(cpu, instruction)? else {
        return Ok(Outcome::Fault(Exception::GP));
    };
    let state = xstate::get(cpu.vcpu).map_err(kvm("KVM_GET_XSAVE"))?;
    let mut area = vec![0; operands.layout.area_bytes(operands.mask)];
    // Read first: what the mask leaves out keeps its value.
    let moved = cpu.read_memory(operands.area, &mut area).and_then(|()| {
        operands.layout.save(&state, &mut area, operands.mask);
        cpu.write_memory(operands.area, &area)
    });
    Ok(moved.map_or_else(Outcome::Fault, |()| Outcome::Next))
}

fn xrstor(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<Outcome, SoftwareError> {
    let Some(operands) = XsaveOperands::of(cpu, instruction)? else {
        return Ok(Outcome::Fault(Exception::GP));
    };
    let mut area = vec![0; operands.layout.area_bytes(operands.mask)];
    if let Err(exception) = cpu.read_memory(operands.area, &mut area) {
        return Ok(Outcome::Fault(exception));
    }
    let mut state = xstate::get(cpu.vcpu).map_err(kvm("KVM_GET_XSAVE"))?;
    if operands.layout.restore(&mut state, &area, operands.mask, operands.enabled).is_err() {
        return Ok(Outcome::Fault(Exception::GP));
    }
    xstate::set(cpu.vcpu, &state).map_err(kvm("KVM_SET_XSAVE"))?;
    Ok(Outcome::Next)
}

/// Reads a register or memory operand.
fn operand(cpu: &mut Cpu<'_>, instruction: &Instruction, index: u32) -> Result<Option<u64>, Exception> {
    match instruction.op_kind(index) {
        OpKind::Register => Ok(cpu.get(instruction.op_register(index))),
        OpKind::Memory => {
            let Some(at) = cpu.address(instruction, index) else { return Ok(None) };
            let mut bytes = [0; 8];
            let size = instruction.memory_size().size().min(8);
            cpu.read_memory(at, &mut bytes[..size])?;
            Ok(Some(u64::from_le_bytes(bytes)))
        }
        _ => Ok(None),
    }
}

fn popcnt(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<Option<Outcome>, Exception> {
    let Some(value) = operand(cpu, instruction, 1)? else { return Ok(None) };
    if cpu.set(instruction.op0_register(), u64::from(value.count_ones())).is_none() {
        return Ok(None);
    }
    cpu.regs.rflags &= !RFLAGS_ARITHMETIC;
    Ok(Some(set_flag(cpu, RFLAGS_ZF, value == 0)))
}

/// Atomic towards other vCPUs as far as guest memory allows: both halves are exchanged under one
/// host lock.
fn cmpxchg16b(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Result<Option<Outcome>, Exception> {
    const ALIGNMENT: u64 = 16;
    let Some(at) = cpu.address(instruction, 0) else { return Ok(None) };
    if at % ALIGNMENT != 0 {
        return Err(Exception::GP);
    }
    let physical = cpu.pages(at, 16, Access::Write)?[0].0;
    let expected = u128::from(cpu.regs.rdx) << 64 | u128::from(cpu.regs.rax);
    let new = u128::from(cpu.regs.rcx) << 64 | u128::from(cpu.regs.rbx);
    let found = xstate::compare_exchange_16(cpu.memory, GuestAddress(physical), expected, new)
        .ok_or(Exception::GP)?;
    if found != expected {
        cpu.regs.rax = found as u64;
        cpu.regs.rdx = (found >> 64) as u64;
    }
    Ok(Some(set_flag(cpu, RFLAGS_ZF, found == expected)))
}

fn segment_base(cpu: &mut Cpu<'_>, instruction: &Instruction) -> Option<Outcome> {
    use iced_x86::Register;
    let segment = match instruction.mnemonic() {
        Mnemonic::Rdfsbase | Mnemonic::Wrfsbase => Register::FS,
        _ => Register::GS,
    };
    let register = instruction.op0_register();
    if matches!(instruction.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Rdgsbase) {
        let base = *cpu.segment_base(segment)?;
        cpu.set(register, base)?;
    } else {
        let base = cpu.get(register)?;
        *cpu.segment_base(segment)? = base;
    }
    Some(Outcome::Next)
}
