//! The loop of a vCPU's thread.

use super::gate::{self, Gate};
use crate::bus::{Bus, Stop};
use crate::control::mailbox::{Event, Mailbox};
use crate::memory::Memory;
use crate::note::note;
use crate::software;
use crate::sys::exit;
use crate::sys::kick::with_kicks;
use crate::sys::slice;
use kvm_ioctls::{VcpuExit, VcpuFd};
use patina_control::best_effort;
use patina_control::config::KvmKind;
use patina_control::end::{End, EndKind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// The time slice of a vCPU of software KVM. The guest's timer follows the host's clock, and an
/// emulated tick takes a millisecond or two. With many VMs on few CPUs slices are short, and ticks
/// would leave little time for the guest's own work.
const SLICE: Duration = Duration::from_millis(100);

/// A job for a paused vCPU.
pub type Job = gate::Job<Runner>;

/// What a vCPU's thread works with.
pub struct Runner {
    /// The vCPU.
    pub vcpu: VcpuFd,
    /// Its number, for messages.
    pub index: u8,
    /// The devices that its I/O reaches.
    pub bus: Arc<Bus>,
    /// The guest's RAM.
    pub memory: Memory,
    /// Which kind of KVM runs it.
    pub kind: KvmKind,
    /// Receives the end of the VM.
    pub mailbox: Mailbox,
    /// Where it is paused.
    pub gate: Arc<Gate>,
    /// Whether it has run at all.
    pub has_run: bool,
    /// Called once, just before the vCPU enters the guest.
    pub before_entry: Option<Box<dyn FnOnce() + Send>>,
}

/// Why KVM_RUN returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunOutcome {
    /// The guest's request was handled.
    Handled,
    /// The thread was kicked.
    Interrupted,
}

impl Runner {
    /// Runs the vCPU until the VM ends, and reports the end. `jobs` has the jobs for its pauses.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let end = with_kicks(&mut self, |runner| &mut runner.vcpu, |runner| runner.run_until_end(jobs));
        self.gate.leave();
        self.mailbox.send(Event::End(end));
    }

    /// Sets the time slice, at the first entry. Until then the thread has little to do, and many
    /// such threads may wait for a CPU.
    fn set_time_slice(&self) {
        if self.kind == KvmKind::Software
            && let Err(error) = slice::set(SLICE)
        {
            note(&format!("run vCPU {}: set its time slice: {error}", self.index));
        }
    }

    fn run_until_end(&mut self, jobs: &Receiver<Job>) -> End {
        let gate = Arc::clone(&self.gate);
        if gate.is_shut() {
            self.warm_up();
        }
        loop {
            // In this order, a kick that comes after the check of the gate is not cleared, and ends
            // KVM_RUN at once.
            self.vcpu.set_kvm_immediate_exit(0);
            if gate.is_shut() {
                if self.has_run
                    && let Err(end) = self.finish_io()
                {
                    return end;
                }
                gate.wait(self, jobs);
                continue;
            }
            if let Some(tell) = self.before_entry.take() {
                tell();
            }
            if !std::mem::replace(&mut self.has_run, true) {
                self.set_time_slice();
            }
            if let Err(end) = self.step() {
                return end;
            }
        }
    }

    /// Enters KVM once without entering the guest, in a VM that waits for a generation. KVM then
    /// allocates the pages that it needs and, since Linux 6.13, makes a thread for the VM. The
    /// result does not matter.
    fn warm_up(&mut self) {
        self.vcpu.set_kvm_immediate_exit(1);
        best_effort(self.vcpu.run(), "the result does not matter");
    }

    /// Finishes an instruction that left KVM for its I/O. KVM finishes it when it is entered again.
    /// With `immediate_exit` KVM does nothing else, except further I/O of the same instruction.
    /// This is bounded: KVM checks `immediate_exit` after 1,024 pieces of a string instruction.
    fn finish_io(&mut self) -> Result<(), End> {
        self.vcpu.set_kvm_immediate_exit(1);
        let finished = loop {
            match self.step() {
                Ok(RunOutcome::Handled) => {}
                Ok(RunOutcome::Interrupted) => break Ok(()),
                Err(end) => break Err(end),
            }
        };
        self.vcpu.set_kvm_immediate_exit(0);
        finished
    }

    fn step(&mut self) -> Result<RunOutcome, End> {
        let index = self.index;
        let failed =
            |what: String| Err(End { kind: EndKind::VmmError, reason: format!("run vCPU {index}: {what}") });
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                self.bus.port_write(port, data).map_err(Stop::into_end)?;
            }
            Ok(VcpuExit::IoIn(port, data)) => self.bus.port_read(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => {
                refuse_ram(&self.memory, address, index)?;
                self.bus.mmio_read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                refuse_ram(&self.memory, address, index)?;
                self.bus.mmio_write(address, data);
            }
            Ok(VcpuExit::Shutdown) => {
                return Err(End {
                    kind: EndKind::TripleFaulted,
                    reason: format!("the guest's CPU {index} had a triple fault"),
                });
            }
            Ok(VcpuExit::InternalError) => self.internal_error()?,
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return failed(format!(
                    "KVM could not enter the guest: hardware reason {reason:#x} on host CPU {cpu}"
                ));
            }
            Ok(VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::Intr) => return Ok(RunOutcome::Interrupted),
            Ok(other) => {
                let what = format!("KVM returned with an unknown exit: {other:?}");
                return failed(what);
            }
            // A signal, or an AP that has not been started yet.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(RunOutcome::Interrupted);
            }
            // EHWPOISON: KVM has found that memory is lost, and this thread gets SIGBUS.
            Err(error) if matches!(error.errno(), libc::EFAULT | libc::EHWPOISON) => {
                let at = exit::memory_fault(&mut self.vcpu);
                return failed(exit::describe_memory_fault(at));
            }
            Err(error) => return failed(format!("KVM_RUN: {error}")),
        }
        Ok(RunOutcome::Handled)
    }

    fn internal_error(&mut self) -> Result<(), End> {
        let index = self.index;
        let failed = |reason: String| End { kind: EndKind::VmmError, reason };
        let Some(error) = exit::internal_error(&mut self.vcpu) else {
            return Err(failed(format!("run vCPU {index}: KVM reported an internal error without details")));
        };
        if self.kind != KvmKind::Software {
            let bytes = &error.instruction;
            let at = self.vcpu.get_regs().map_or(0, |regs| regs.rip);
            return Err(failed(format!(
                "run vCPU {index}: KVM internal error {} at guest address {at:#x}, instruction bytes {bytes:02x?}",
                error.suberror
            )));
        }
        software::finish(&self.vcpu, &self.memory, &error)
            .map_err(|error| failed(patina_daemon::chain(&error)))
    }
}

/// Refuses an access to device memory that lies in the guest's RAM. Where KVM emulates the guest's
/// instructions, an access to RAM that is lost comes out like this, and the guest must not go on
/// with another content.
fn refuse_ram(memory: &Memory, address: u64, index: u8) -> Result<(), End> {
    if !memory.address_in_range(GuestAddress(address)) {
        return Ok(());
    }
    let what = exit::describe_memory_fault(Some((address, 0)));
    Err(End { kind: EndKind::VmmError, reason: format!("run vCPU {index}: {what}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_to_device_memory_within_ram_ends_the_vm() {
        let (_memfd, memory) = crate::memory::allocate(5 << 30).expect("RAM");
        for lost in [0, 0x1000, (3 << 30) - 1, 4 << 30, (6 << 30) - 1] {
            let end = refuse_ram(&memory, lost, 2).expect_err("it is RAM");
            assert_eq!(end.kind, EndKind::VmmError);
            let words = format!("run vCPU 2: KVM cannot reach the guest's RAM at guest address {lost:#x}: ");
            assert!(end.reason.starts_with(&words), "{}", end.reason);
        }
        for device in [3 << 30, crate::boot::layout::MMIO_BASE, (4 << 30) - 1, 6 << 30] {
            assert!(refuse_ram(&memory, device, 0).is_ok(), "{device:#x}");
        }
    }
}
