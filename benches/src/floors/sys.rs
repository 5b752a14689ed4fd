//! Mappings, and a guest of two instructions.
#![allow(unsafe_code, reason = "mappings and KVM's memory slots are what is measured")]

use super::{FloorError, PAGE_BYTES, kvm, memory};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::{ffi::c_void, os::fd::OwnedFd, ptr::null_mut};

/// Memory that is mapped as long as this lives.
#[derive(Debug)]
pub struct View {
    at: *mut c_void,
    bytes: usize,
}

impl View {
    /// A private view of the first `bytes` of a file.
    pub fn private(file: &OwnedFd, bytes: usize) -> rustix::io::Result<Self> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing one.
        let at = unsafe { mmap(null_mut(), bytes, access, flags, file, 0) }?;
        Ok(Self { at, bytes })
    }

    /// Fresh memory.
    fn anonymous(bytes: usize) -> rustix::io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as above.
        let at = unsafe { mmap_anonymous(null_mut(), bytes, access, MapFlags::PRIVATE) }?;
        Ok(Self { at, bytes })
    }

    /// Copies all pages in one call.
    pub fn populate(&self) -> rustix::io::Result<()> {
        // SAFETY: the range is the mapping that `self` owns; the advice changes no content.
        unsafe { madvise(self.at, self.bytes, Advice::LinuxPopulateWrite) }
    }

    /// Writes to one page.
    pub fn touch(&mut self, page: usize) {
        assert!(page < self.bytes / PAGE_BYTES, "page {page} of {}", self.bytes / PAGE_BYTES);
        // SAFETY: the page lies in the mapping, which is writable and lives as long as `self`.
        unsafe { self.at.cast::<u8>().add(page * PAGE_BYTES).write_volatile(2) };
    }

    fn write(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.bytes, "{} bytes into {}", bytes.len(), self.bytes);
        // SAFETY: both ranges are valid for that many bytes, and nothing else refers to the
        // mapping.
        unsafe { self.at.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone and nothing refers to it after this. The one error is a
        // range that is none, and it is one.
        unsafe { munmap(self.at, self.bytes) }.ok();
    }
}

/// A VM whose RAM begins with `mov al, 1; out 0x10, al`. The memory is dropped after the VM.
pub struct TinyGuest {
    vcpu: VcpuFd,
    _vm: VmFd,
    _ram: View,
}

impl TinyGuest {
    /// One with a page of fresh RAM.
    pub fn new(vm: VmFd, vcpu: VcpuFd) -> Result<Self, FloorError> {
        Self::on(vm, vcpu, View::anonymous(PAGE_BYTES).map_err(memory("map a page"))?)
    }

    /// Gives the VM its RAM and its vCPU its registers. The first page of the RAM is written to.
    pub fn on(vm: VmFd, vcpu: VcpuFd, mut ram: View) -> Result<Self, FloorError> {
        ram.write(&[0xb0, 0x01, 0xe6, 0x10]);
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: ram.bytes as u64,
            userspace_addr: ram.at as u64,
        };
        // SAFETY: the range is the mapping of `ram`, which lives as long as the VM.
        unsafe { vm.set_user_memory_region(slot) }.map_err(kvm("give KVM a memory slot"))?;
        let mut segments = vcpu.get_sregs().map_err(kvm("read segments"))?;
        (segments.cs.base, segments.cs.selector) = (0, 0);
        vcpu.set_sregs(&segments).map_err(kvm("set segments"))?;
        let mut registers = vcpu.get_regs().map_err(kvm("read registers"))?;
        (registers.rip, registers.rflags) = (0, 2);
        vcpu.set_regs(&registers).map_err(kvm("set registers"))?;
        Ok(Self { vcpu, _vm: vm, _ram: ram })
    }

    /// Runs it to its first exit.
    pub fn run_to_exit(&mut self) -> Result<(), FloorError> {
        match self.vcpu.run().map_err(kvm("KVM_RUN"))? {
            VcpuExit::IoOut(0x10, [1]) => Ok(()),
            other => Err(FloorError::Exit(format!("{other:?}"))),
        }
    }
}
