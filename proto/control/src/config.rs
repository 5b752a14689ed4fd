//! How a `vmm` process is told what to run.
//!
//! `vmmd` starts `vmm --config-fd N`; N is a file (memfd) that holds one [`VmConfig`] as JSON, read from
//! offset 0. Every resource is an inherited file descriptor, so that the process needs no rights of its own.

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

/// All that a `vmm` needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmConfig {
    /// [`crate::VERSION`] of the `vmmd` that starts it. A vmm of an older version refuses it. A `vmmd` of before versions tells none.
    #[serde(default)]
    pub version: u32,
    /// The VM's name, for log lines only.
    pub name: String,
    /// See [`VCPUS`].
    pub vcpus: u8,
    /// See [`MEMORY_MIB`].
    pub memory_mib: u32,
    /// `/dev/kvm`, opened read-write.
    pub kvm_fd: RawFd,
    /// Which kind of KVM that is, by its kernel module. None: that could not be seen, and the CPU tells.
    #[serde(default)]
    pub kvm_kind: Option<KvmKind>,
    /// Where the VM begins.
    pub start: Start,
    /// The root disk, opened for reading; the guest sees a read-only `/dev/vda`.
    pub rootfs_fd: RawFd,
    /// The tap (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, non-blocking).
    pub tap_fd: RawFd,
    /// The console's log, opened read-write, empty. The vmm keeps at most [`CONSOLE_LOG_MAX_BYTES`] in it.
    pub console_fd: RawFd,
    /// A listening Unix stream socket: see [`super::messages`].
    pub control_fd: RawFd,
    /// A file opened for writing: the vmm writes one [`super::end::End`] there, as JSON, when the VM ends.
    pub end_fd: RawFd,
    /// Who the VM is.
    pub identity: Identity,
    /// Who else is on its network. None: not known; what the guest asks about addresses goes to all then.
    #[serde(default)]
    pub neighbours: Option<Neighbours>,
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

/// Where a VM begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// With a kernel's first instruction.
    Boot {
        /// The kernel: ELF (with a PVH note or a 64-bit entry) or bzImage, opened for reading.
        kernel_fd: RawFd,
        /// Added to the end of the command line that the vmm makes.
        cmdline: String,
    },
    /// Nowhere yet: everything is made, jailed and waits for a generation, which comes with
    /// [`super::messages::Open::Start`].
    Warm,
}

/// Most memfds that a generation's RAM is made of.
pub const LAYERS_MAX: usize = 16;

/// Greatest size of a console log, bytes: when it is full its older half goes.
pub const CONSOLE_LOG_MAX_BYTES: u64 = 1024 * 1024;
