//! The configuration of a `vmm` process.
//!
//! `vmmd` starts `vmm --config-fd N`. N is a file (memfd) that holds one [`VmConfig`] as JSON, read
//! from offset 0. Every resource is an inherited file descriptor, so the process needs no
//! privileges of its own.

use patina_abi::link::Identity;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::os::fd::RawFd;

/// Fewest and most vCPUs.
pub const VCPUS: std::ops::RangeInclusive<u8> = 1..=16;
/// Least and most RAM, MiB.
pub const MEMORY_MIB: std::ops::RangeInclusive<u32> = 64..=65_536;
/// Longest kernel command line that a user may add, bytes.
pub const CMDLINE_MAX_BYTES: usize = 1024;

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvmKind {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// KVM without hardware virtualization.
    Software,
}

/// Everything that a `vmm` needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmConfig {
    /// [`crate::VERSION`] of the `vmmd` that starts it. A vmm of an older version refuses it. A
    /// `vmmd` from before this field sends none.
    #[serde(default)]
    pub version: u32,
    /// The VM's name, for log lines only; of a spare vmm, until it is told who its VM is, any.
    pub name: String,
    /// See [`VCPUS`].
    pub vcpus: u8,
    /// See [`MEMORY_MIB`].
    pub memory_mib: u32,
    /// `/dev/kvm`, opened read-write.
    pub kvm_fd: RawFd,
    /// The kind of KVM, by its kernel module. None: the module could not be determined, and the vmm
    /// guesses from the CPU.
    #[serde(default)]
    pub kvm_kind: Option<KvmKind>,
    /// The first state of the VM.
    pub start: Start,
    /// The root disk, opened for reading; the guest sees a read-only `/dev/vda`.
    pub rootfs_fd: RawFd,
    /// The tap (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, non-blocking).
    pub tap_fd: RawFd,
    /// The console's log, opened read-write, empty. The vmm keeps at most [`CONSOLE_LOG_MAX_BYTES`]
    /// in it.
    pub console_fd: RawFd,
    /// A listening Unix stream socket: see [`super::messages`].
    pub control_fd: RawFd,
    /// A file opened for writing: the vmm writes one [`super::end::End`] there, as JSON, when the
    /// VM ends.
    pub end_fd: RawFd,
    /// The VM's identity. None: a spare vmm. Its start is [`Start::Warm`], and its VM's identity
    /// and neighbours come with [`super::messages::Open::Start`]. A vmm that does not know spares
    /// refuses a configuration without an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Do not ask the kernel for written pages (PAGEMAP_SCAN): its answers are wrong
    /// ([`HostCheck`]). Each freeze copies all private pages instead. An older `vmmd` does not send
    /// this.
    #[serde(default)]
    pub avoid_pagemap_scan: bool,
    /// The other VMs on its network. None: they are not known, and the guest's ARP requests are
    /// broadcast.
    #[serde(default)]
    pub neighbours: Option<Neighbours>,
    /// The guest of a VM that boots is offered only CPU features that are in these facts, of the
    /// form of [`HostCheck::facts`]. None: all that the host offers. A warm VM is offered what its
    /// generation says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_baseline: Option<Vec<u8>>,
}

/// What `vmm --check-host` prints on standard output, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCheck {
    /// What is wrong with the kernel's answers to PAGEMAP_SCAN. None: nothing, or the kernel cannot
    /// track writes at all (before Linux 6.7).
    pub pagemap_fault: Option<String>,
    /// What a VM that is made on this host needs of a host: the content of the first section of its
    /// state (`patina_snapshot::container::FACTS`), a number for each byte. None: KVM cannot be
    /// asked; or an older vmm, which does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Vec<u8>>,
}

/// The variable with which `vmmd` tells `vmm --check-host` the kind of KVM, as [`KvmKind`] is
/// written in JSON. Without it, the CPU has to tell.
pub const KVM_KIND_VARIABLE: &str = "PATINA_KVM_KIND";

/// Who a VM is: what a spare vmm is told when its VM starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The VM's identity.
    pub identity: Identity,
    /// The other VMs on its network.
    pub neighbours: Neighbours,
}

/// The VMs of a family: vmid n has the n-th address and the n-th MAC after those of vmid 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbours {
    /// The address of vmid 0.
    pub first_ip: Ipv4Addr,
    /// The MAC of vmid 0, as in [`Identity::mac`].
    pub first_mac: String,
    /// How many vmids there are.
    pub vms: u32,
    /// The MAC of the identity's gateway.
    pub gateway_mac: String,
}

/// The first state of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// At a kernel's first instruction.
    Boot {
        /// The kernel: ELF (with a PVH note or a 64-bit entry) or bzImage, opened for reading.
        kernel_fd: RawFd,
        /// Added to the end of the command line that the vmm makes.
        cmdline: String,
    },
    /// Warm: the VM is made, is in its jail, and waits for a generation, which comes with
    /// [`super::messages::Open::Start`].
    Warm,
}

/// Most memfds that a generation's RAM is made of.
pub const LAYERS_MAX: usize = 16;
/// Most extents of one generation: each is a mapping in every clone, and a process has 65,530 of
/// them.
pub const EXTENTS_MAX: usize = 16_384;

/// Greatest size of a console log, bytes. When it is full, its older half is removed.
pub const CONSOLE_LOG_MAX_BYTES: u64 = 1024 * 1024;
