//! The record of one VM: all that a new `vmmd` must know to take the VM over.

use crate::{
    plan::{address::FamilyNet, lifecycle::Ended, spec::Port},
    process_id::ProcessId,
};
use patina_snapshot::facts::HostFacts;
use serde::{Deserialize, Serialize};
use std::{fs::Metadata, os::unix::fs::MetadataExt, path::PathBuf};
use uuid::Uuid;

/// The format that this `vmmd` writes.
pub const FORMAT: u32 = 1;

/// What is written about a VM. `process` and `ended` tell how far it came: see
/// [`crate::vms::adopt`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The record's format: [`FORMAT`].
    pub format: u32,
    /// The VM's name.
    pub name: String,
    /// The VM's UUID.
    pub uuid: Uuid,
    /// The UUID of its family.
    pub family: Uuid,
    /// The network of its family.
    pub net: FamilyNet,
    /// The VM's vmid; 0 on the master.
    pub vmid: u32,
    /// What it is a clone of; None on a master.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// How many vCPUs the VM has.
    pub vcpus: u8,
    /// The VM's RAM, MiB.
    pub memory_mib: u32,
    /// What the user added to the kernel's command line.
    pub cmdline: String,
    /// The ports that it publishes.
    pub ports: Vec<Port>,
    /// Path of the kernel.
    pub kernel: PathBuf,
    /// Path of the root file system.
    pub rootfs: PathBuf,
    /// Which file that was as the family's master started: its clones go on with it. None in older
    /// records.
    #[serde(default)]
    pub rootfs_file: Option<FileId>,
    /// Which file the kernel was. None in older records.
    #[serde(default)]
    pub kernel_file: Option<FileId>,
    /// The snapshot that its family was restored from. None: the family's master booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<PathBuf>,
    /// The key of the image that its family's master started from. None: the master booted, or was
    /// restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The hosts whose CPU features in common its family's master was offered; empty: it has no CPU
    /// baseline, or came from elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_baseline: Vec<String>,
    /// What it needs of a host, its CPUID as it is compared; None: what its host offers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs: Option<Box<HostFacts>>,
    /// The ticket that it was made under.
    #[serde(default)]
    pub ticket: Option<Uuid>,
    /// When the VM was made, milliseconds since 1970.
    pub created_unix_ms: u64,
    /// The vmm process, once it has been started.
    pub process: Option<ProcessId>,
    /// How long the VM took from the start of its process to its agent being ready, microseconds.
    pub ready_after_us: Option<u64>,
    /// How the VM ended.
    pub ended: Option<Ended>,
}

/// A file as it was at one moment: another file under its path, or other content, has another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileId {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl FileId {
    /// Of an open file.
    #[must_use]
    pub fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            bytes: file.len(),
            modified_s: file.mtime(),
            modified_ns: file.mtime_nsec(),
        }
    }
}

/// What a clone was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The VM that was frozen.
    pub parent_vmid: u32,
    /// The name of the family's master, which may be gone: clones are named after it.
    pub master: String,
    /// The host on which the VM was that was frozen. None: this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_host: Option<Uuid>,
    /// The caller's number for the call that made it, if it gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
}

impl Record {
    /// The name of the family's master.
    #[must_use]
    pub fn master(&self) -> &str {
        self.origin.as_ref().map_or(&self.name, |origin| &origin.master)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record of a VM that was never started.
    pub(crate) fn sample(name: &str) -> Record {
        let range: crate::plan::address::Range = "100.64.0.0/10".parse().unwrap();
        Record {
            format: FORMAT,
            name: name.into(),
            uuid: Uuid::nil(),
            family: Uuid::nil(),
            net: range.family(2).unwrap(),
            vmid: 0,
            origin: None,
            vcpus: 1,
            memory_mib: 256,
            cmdline: "quiet".into(),
            ports: vec![Port { host: "127.0.0.1:8080".parse().unwrap(), guest_port: 80 }],
            kernel: "/k".into(),
            rootfs: "/r".into(),
            rootfs_file: None,
            kernel_file: None,
            snapshot: None,
            image: None,
            cpu_baseline: Vec::new(),
            needs: None,
            ticket: None,
            created_unix_ms: 1,
            process: None,
            ready_after_us: None,
            ended: None,
        }
    }
}
