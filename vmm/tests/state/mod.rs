//! What of a vCPU's state that only some kernels of users have gets into a clone: asked of this
//! host's KVM, without a `vmm` process.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_VCPUEVENT_VALID_TRIPLE_FAULT, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use libtest_mimic::{Failed, Trial};
use patina_snapshot::layout;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use vmm::machine::tune::tune;
use vmm::memory::{Memory, allocate};
use vmm::persist::Persist;
use vmm::sys::kvm_state;
use vmm::sys::slot::VmWithMemory;
use vmm::vcpu::persist::VcpuState;
use vmm::vcpu::tsc::TscStart;

const RAM_BYTES: u64 = 16 << 20;
/// Where the four page directory pointers lie.
const TABLE: u64 = 0x1000;
/// A page directory at that place, present.
const FIRST: u64 = 0x2001;
const OTHER: u64 = 0x3001;

/// A VM with one vCPU.
struct One {
    vcpu: VcpuFd,
    memory: Memory,
    _vm: VmWithMemory,
}

impl One {
    fn new() -> Result<Self, Failed> {
        let kvm = Kvm::new()?;
        let vm = kvm.create_vm()?;
        vm.create_irq_chip()?;
        tune(&vm);
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        let memory = allocate(RAM_BYTES)?.1;
        Ok(Self { vcpu, memory: Arc::clone(&memory), _vm: VmWithMemory::new(vm, memory)? })
    }

    fn set_pointer(&self, pointer: u64) -> Result<(), Failed> {
        Ok(self.memory.write_obj(pointer, GuestAddress(TABLE))?)
    }

    /// Pages in 32-bit PAE mode, with the page directory pointers that memory has now: the CPU
    /// keeps them from then on.
    fn enter_pae(&self) -> Result<(), Failed> {
        let (code, data) = (segment(0xb), segment(3));
        let mut sregs = self.vcpu.get_sregs()?;
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
        // PE, ET, PG; PAE; no long mode.
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, TABLE, 0x20, 0);
        Ok(self.vcpu.set_sregs(&sregs)?)
    }

    fn save(&self) -> Result<VcpuState, Failed> {
        // Through bytes, as a clone gets it.
        let state = layout::to_bytes(&VcpuState::save((&self.vcpu, 0, &[]))?);
        Ok(layout::from_bytes(&state)?)
    }

    fn restore(&self, state: &VcpuState) -> Result<(), Failed> {
        state.restore((&self.vcpu, 0, &TscStart::new(state.tsc(), None)))?;
        Ok(())
    }
}

/// All 4 GiB, of 32 bits.
fn segment(type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

type Test = fn() -> Result<(), Failed>;
type Can = fn() -> Result<bool, Failed>;

/// The tests, ignored where this machine has no KVM, or one that lacks what they are about.
pub fn trials(missing: Option<&String>) -> Vec<Trial> {
    let tests: [(&str, Test); 2] = named![
        page_directory_pointers_that_memory_has_no_more_are_cloned,
        a_triple_fault_on_its_way_ends_the_clone_too,
    ];
    let needs: [(Can, &str); 2] =
        [(tells_pointers, "paging of 32 bits"), (takes_triple_faults, "triple faults on their way")];
    let trial = |((name, test), (can, what)): ((&str, Test), (Can, &str))| {
        let lacks = || (!can().unwrap_or(true)).then(|| format!("this KVM has no {what}"));
        match missing.cloned().or_else(lacks) {
            None => Trial::test(name, test),
            Some(reason) => Trial::test(format!("{name} [{reason}]"), test).with_ignored_flag(true),
        }
    };
    tests.into_iter().zip(needs).map(trial).collect()
}

/// Since Linux 5.14. Software KVM turns paging off where a CPU is not in long mode.
fn tells_pointers() -> Result<bool, Failed> {
    const PAGING: u64 = 1 << 31;
    let one = One::new()?;
    one.set_pointer(FIRST)?;
    one.enter_pae()?;
    let pages = one.vcpu.get_sregs()?.cr0 & PAGING != 0;
    Ok(pages && Kvm::new()?.check_extension_raw(kvm_bindings::KVM_CAP_SREGS2.into()) > 0)
}

/// Since Linux 6.0.
fn takes_triple_faults() -> Result<bool, Failed> {
    Ok(Kvm::new()?.check_extension_raw(kvm_bindings::KVM_CAP_X86_TRIPLE_FAULT_EVENT.into()) > 0)
}

fn page_directory_pointers_that_memory_has_no_more_are_cloned() -> Result<(), Failed> {
    let parent = One::new()?;
    parent.set_pointer(FIRST)?;
    parent.enter_pae()?;
    // A kernel may write there what is to count from its next load of CR3 on.
    parent.set_pointer(OTHER)?;
    let kept = kvm_state::pdptrs(&parent.vcpu);
    if kept != Some([FIRST, 0, 0, 0]) {
        return Err(format!("the parent's: {kept:x?}").into());
    }
    let clone = One::new()?;
    clone.set_pointer(OTHER)?;
    clone.restore(&parent.save()?)?;
    let cloned = kvm_state::pdptrs(&clone.vcpu);
    if cloned != kept {
        return Err(format!("the clone's: {cloned:x?}, the parent's {kept:x?}").into());
    }
    // One that does not page so has none, and is cloned as well.
    let (plain, clone) = (One::new()?, One::new()?);
    clone.restore(&plain.save()?)?;
    match kvm_state::pdptrs(&clone.vcpu) {
        None => Ok(()),
        some => Err(format!("of a CPU that does not page: {some:x?}").into()),
    }
}

fn a_triple_fault_on_its_way_ends_the_clone_too() -> Result<(), Failed> {
    let parent = One::new()?;
    let mut events = parent.vcpu.get_vcpu_events()?;
    events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    events.triple_fault.pending = 1;
    parent.vcpu.set_vcpu_events(&events)?;
    let mut clone = One::new()?;
    clone.restore(&parent.save()?)?;
    // Without the fault it would run `jmp` to itself in real mode, and never come back: the timer
    // of the test's harness is for that.
    clone.memory.write_slice(&[0xf4], GuestAddress(0))?;
    match clone.vcpu.run()? {
        VcpuExit::Shutdown => Ok(()),
        other => Err(format!("the clone did not end: {other:?}").into()),
    }
}
