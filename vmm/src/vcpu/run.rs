//! The loop of a vCPU's thread.

use super::kind::KvmKind;
use crate::api::end::{End, EndKind};
use crate::control::mailbox::{Event, Mailbox};
use crate::machine::bus::{Bus, Stop};
use crate::memory::Memory;
use crate::software;
use crate::sys::exit;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;

/// What a vCPU's thread works with.
pub struct Runner {
    /// The vCPU.
    pub vcpu: VcpuFd,
    /// Its number, for messages.
    pub index: u8,
    /// What its I/O reaches.
    pub bus: Arc<Bus>,
    /// The guest's RAM.
    pub memory: Memory,
    /// Which kind of KVM runs it.
    pub kind: KvmKind,
    /// Where its end is told.
    pub mailbox: Mailbox,
}

impl Runner {
    /// Runs the vCPU until the VM ends, and tells how.
    pub fn run(mut self) {
        let end = loop {
            match self.step() {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        self.mailbox.send(Event::End(end));
    }

    fn step(&mut self) -> Result<(), End> {
        let index = self.index;
        let failed =
            |what: String| Err(End { kind: EndKind::VmmError, reason: format!("run vCPU {index}: {what}") });
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => self.bus.port_write(port, data).map_err(Stop::into_end),
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.port_read(port, data);
                Ok(())
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.mmio_read(address, data);
                Ok(())
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.mmio_write(address, data);
                Ok(())
            }
            Ok(VcpuExit::Shutdown) => Err(End {
                kind: EndKind::TripleFaulted,
                reason: format!("the guest's CPU {index} met a triple fault"),
            }),
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(VcpuExit::FailEntry(reason, cpu)) => failed(format!(
                "KVM could not enter the guest: hardware reason {reason:#x} on host CPU {cpu}"
            )),
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => Ok(()),
            Ok(other) => {
                let what = format!("KVM returned with an exit that is not known: {other:?}");
                failed(what)
            }
            // A signal, or an AP that has not been started yet.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(()),
            Err(error) => failed(format!("KVM_RUN: {error}")),
        }
    }

    fn internal_error(&mut self) -> Result<(), End> {
        let index = self.index;
        let failed = |reason: String| End { kind: EndKind::VmmError, reason };
        let Some(error) = exit::internal_error(&mut self.vcpu) else {
            return Err(failed(format!("run vCPU {index}: KVM told of an internal error without details")));
        };
        if self.kind != KvmKind::Software {
            let bytes = &error.instruction;
            let at = self.vcpu.get_regs().map_or(0, |regs| regs.rip);
            return Err(failed(format!(
                "run vCPU {index}: KVM internal error {} at guest address {at:#x}, instruction bytes {bytes:02x?}",
                error.suberror
            )));
        }
        software::finish(&self.vcpu, &self.memory, &error).map_err(|error| failed(crate::chain(&error)))
    }
}
