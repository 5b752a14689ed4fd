//! The protocol of the pager, the process that fills layers and answers the page faults of the VMs
//! that use them.
//!
//! `vmmd` starts `pager --control-fd N`. N is a listening Unix stream socket. A connection to it
//! carries JSON lines, [`ToPager`] and [`FromPager`], until either side closes. There is one
//! connection at a time: a new one replaces the old, so that a restarted `vmmd` takes over. The
//! pager's first line is a [`FromPager::Hello`]. Then it sends a [`FromPager::Layer`] for each
//! layer, a [`FromPager::Vm`] for each VM that it has, and a [`FromPeers::Serving`] for each
//! connection that it serves.
//!
//! Each VM has a Unix stream socket between its vmm and the pager, whose ends `vmmd` gives to both.
//! It carries [`VmToPager`] and [`PagerToVm`].
//!
//! Lines are at most [`patina_abi::LINE_MAX_BYTES`] long. Descriptors come with a line
//! (SCM_RIGHTS, [`crate::rights`]); each message says which. Both sides ignore unknown fields. The
//! pager answers a line that it does not understand with [`FromPager::Error`] and closes the
//! connection: it cannot know which descriptors belong to which line any longer.
//!
//! **Takeover.** When a pager dies, VMs that need a page wait: each vmm keeps its userfaultfd.
//! `vmmd` starts another pager, and gives it the same layers with the same memfds, and a new socket
//! for each VM. The pager takes nothing that it finds in a memfd for true: a run counts as present
//! when its digest is right.

use crate::PAGE_BYTES;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

mod bitmap;
mod mapping;
mod peers;

pub use bitmap::{BUCKETS_MS, DemandBitmap, DemandBitmapError};
pub use mapping::{MAPPING_BYTES, Mapping, MappingsError};
pub use peers::{CREDENTIAL_MAX_BYTES, Credential, FromPeers, PEERS_MAX, PeerLayer, SERVED_MAX, ToPeers};

/// The version of this protocol. A peer of another version is refused.
pub const VERSION: u32 = 1;
/// What is fetched, checked and made present at a time, bytes. The last run of a layer may be
/// shorter.
pub const RUN_BYTES: u64 = 64 * 1024;
/// Longest layer, bytes: as long as the longest RAM.
pub const LAYER_MAX_BYTES: u64 = (*crate::config::MEMORY_MIB.end() as u64) << 20;
/// Most layers that a pager has at a time.
pub const PAGER_LAYERS_MAX: usize = 1024;
/// Most VMs that a pager has at a time.
pub const PAGER_VMS_MAX: usize = 4096;

const _: () = assert!(RUN_BYTES.is_multiple_of(PAGE_BYTES));

/// The name of a layer or of a VM between `vmmd` and a pager: 1 to 64 of `a-z`, `A-Z`, `0-9`, `-`,
/// `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// A name is not as [`Id`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.'")]
pub struct IdError;

impl TryFrom<String> for Id {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_valid = (1..=64).contains(&text.len()) && text.bytes().all(is_allowed);
        if is_valid { Ok(Self(text)) } else { Err(IdError) }
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What `vmmd` sends to a pager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum ToPager {
    /// Take a layer over. Descriptors, in this order:
    /// 1. the layer's memfd, from [`layer_memfd`] or from an earlier pager;
    /// 2. a memfd with the digests of the layer's runs, sealed: 32 bytes (BLAKE3) for each run, all
    ///    zero for a run that is known to be zero;
    /// 3. without `source`, the layer's file, opened for reading: each run at its offset;
    /// 4. with `has_demand`, what clones of the layer demanded before: a [`DemandBitmap`] in a
    ///    sealed memfd. The pager fetches the first buckets first.
    ///
    /// The answer is [`FromPager::Layer`] or [`FromPager::LayerRefused`].
    AddLayer {
        /// The layer's name.
        layer: Id,
        /// The layer's length: whole pages.
        bytes: u64,
        /// Whether there is a fourth descriptor.
        has_demand: bool,
        /// Whether the pager fetches what nobody demands.
        fill: bool,
        /// Who has the layer, if it is another host's pager.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<PeerLayer>,
    },
    /// Serve a VM. Descriptor: a Unix stream socket, of which the VM's vmm has the other end. The
    /// answer is [`FromPager::Vm`] when the vmm has sent [`VmToPager::Attach`], or
    /// [`FromPager::VmGone`].
    AttachVm {
        /// The VM's name.
        vm: Id,
        /// The layers that the VM may name, by number.
        layers: Vec<Id>,
        /// How long the VM has run, milliseconds: from its start on, the time of a demand counts.
        #[serde(default)]
        age_ms: u64,
        /// An earlier pager had this socket, and may have read [`VmToPager::Attach`] from it: the
        /// vmm is asked for it with [`PagerToVm::AttachAgain`].
        #[serde(default)]
        is_again: bool,
    },
    /// Serve a VM no longer. What it waits for stays unanswered, so its process must have ended or
    /// be about to.
    DropVm {
        /// The VM's name.
        vm: Id,
    },
    /// Forget a layer. Refused while a VM uses it.
    DropLayer {
        /// The layer's name.
        layer: Id,
    },
    /// Send what the layer's VMs have demanded so far: [`FromPager::Demand`], or
    /// [`FromPager::Error`].
    Demand {
        /// The layer's name.
        layer: Id,
    },
    /// Send the layer's memfd: [`FromPager::Memfd`]. For a `vmmd` that has been restarted.
    Memfd {
        /// The layer's name.
        layer: Id,
    },
    /// Send [`FromPager::Layer`].
    Layer {
        /// The layer's name.
        layer: Id,
    },
    /// About pagers of other hosts. The answer is [`FromPager::Peers`].
    Peers(ToPeers),
    /// Send [`FromPager::Status`].
    Status,
}

/// What a pager sends to `vmmd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum FromPager {
    /// The first line of a connection.
    Hello {
        /// [`VERSION`] of the pager.
        version: u32,
    },
    /// A layer that the pager has.
    Layer(LayerStatus),
    /// A layer is not taken over, or not dropped.
    LayerRefused {
        /// The layer's name.
        layer: Id,
        /// Why, and what to do.
        reason: String,
    },
    /// A VM is served.
    Vm {
        /// The VM's name.
        vm: Id,
        /// How many mappings it has.
        mappings: usize,
    },
    /// A VM is not served any longer, or could not be: its vmm closed its socket, or sent what is
    /// not allowed. If its process runs, it must be ended: it may wait for a page.
    VmGone {
        /// The VM's name.
        vm: Id,
        /// The reason.
        reason: String,
    },
    /// All of a layer is in its memfd, which is sealed. The source is no longer needed.
    LayerComplete {
        /// The layer's name.
        layer: Id,
    },
    /// VMs need a run that cannot be had. Each of them must end, with data loss as the reason.
    RunFailed {
        /// The layer's name.
        layer: Id,
        /// The number of the run: the run begins at so many times [`RUN_BYTES`].
        run: u64,
        /// Why it cannot be had.
        reason: String,
        /// The VMs that wait for it.
        vms: Vec<FailedVm>,
    },
    /// What nobody demands is not fetched any longer, because the source fails. A run that a VM
    /// demands still is.
    FillStopped {
        /// The layer's name.
        layer: Id,
        /// The run whose failure was the last one.
        run: u64,
        /// Why it could not be had.
        reason: String,
    },
    /// What a layer's VMs have demanded: a [`DemandBitmap`] in a sealed memfd, which comes with the
    /// line.
    Demand {
        /// The layer's name.
        layer: Id,
    },
    /// A layer's memfd comes with the line.
    Memfd {
        /// The layer's name.
        layer: Id,
    },
    /// The answer to [`ToPager::DropLayer`].
    LayerDropped {
        /// The layer's name.
        layer: Id,
    },
    /// About pagers of other hosts.
    Peers(FromPeers),
    /// The answer to [`ToPager::Status`].
    Status(Status),
    /// A line that the pager does not understand or cannot follow.
    Error {
        /// What is wrong.
        reason: String,
    },
}

/// A layer of a pager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    /// The layer's name.
    pub layer: Id,
    /// The layer's length, bytes.
    pub bytes: u64,
    /// How many runs it has.
    pub runs: u64,
    /// How many of them are present. Runs that are known to be zero always are.
    pub present: u64,
    /// How many runs were read at the source.
    pub fetched: u64,
    /// How many runs could not be had when a VM needed them.
    pub failed: u64,
    /// How many VMs use it.
    pub vms: usize,
    /// All runs are present, and the memfd is sealed.
    pub is_complete: bool,
}

/// A VM that waits for a run that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedVm {
    /// The VM's name.
    pub vm: Id,
    /// Whether the access has failed (SIGBUS), so that the vmm notices by itself. If not, the vmm
    /// waits, and must be killed.
    pub is_poisoned: bool,
}

/// What a pager is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Layers.
    pub layers: usize,
    /// VMs that are served.
    pub vms: usize,
    /// Runs that VMs wait for.
    pub demanded: u64,
    /// Faults of VMs that wait for these runs.
    pub waiting: usize,
    /// Threads that fetch runs.
    pub workers: usize,
    /// Those of `workers` whose source does not answer.
    pub stuck_workers: usize,
}

/// What a vmm sends to the pager.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum VmToPager {
    /// The first line, once the vmm has registered its lazy mappings. Descriptors: a userfaultfd
    /// (non-blocking; the vmm keeps a duplicate), then a sealed memfd with the [`Mapping`]s. The
    /// answer is [`PagerToVm::Attached`]. Who waits for a page already is woken, so that its fault
    /// is seen again.
    Attach {
        /// [`VERSION`] of the vmm.
        version: u32,
        /// Whether the kernel tracks writes in these mappings with the same userfaultfd. See
        /// [`Self::TrackWrites`].
        tracks_writes: bool,
    },
    /// The vmm is about to track writes with the same userfaultfd. To unregister a range would end
    /// that, so from the answer, [`PagerToVm::TrackingWrites`], on the pager unregisters none. The
    /// vmm does when it starts to track anew: see [`PagerToVm::Complete`].
    TrackWrites,
}

/// What a pager sends to a vmm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum PagerToVm {
    /// The VM's faults are answered from now on.
    Attached,
    /// Another pager has the socket: the vmm is to send [`VmToPager::Attach`] again. If the pager
    /// has read one from the socket when the next one comes, it ignores that one.
    AttachAgain,
    /// The VM is not served. The pager closes the socket.
    Refused {
        /// What is wrong.
        reason: String,
    },
    /// The answer to [`VmToPager::TrackWrites`].
    TrackingWrites,
    /// A layer is complete: its faults need no pager any longer.
    Complete {
        /// The layer's number in [`ToPager::AttachVm`].
        layer: u32,
        /// Whether its mappings are unregistered. If not, because the vmm tracks writes, the vmm
        /// should register them for write protection alone when it starts to track anew.
        is_unregistered: bool,
    },
}

/// Makes the memfd of a layer: sparse, of this length for good, and named for `/proc`.
///
/// # Errors
/// The kernel's.
pub fn layer_memfd(name: &str, bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.set_len(bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file)
}

/// Reads a sealed memfd of at most `max_bytes`. Nothing else can be read in bounded time, and
/// nothing else stays as it is.
///
/// # Errors
/// InvalidData: it is no memfd, is not sealed against writes and a change of its length, or is too
/// long. The kernel's.
pub fn read_sealed(file: &File, max_bytes: u64) -> io::Result<Vec<u8>> {
    let invalid = |text: &'static str| io::Error::new(io::ErrorKind::InvalidData, text);
    let seals = fcntl_get_seals(file).map_err(|_| invalid("it is no memfd"))?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
        return Err(invalid("it is not sealed"));
    }
    let bytes = file.metadata()?.len();
    if bytes > max_bytes {
        return Err(invalid("it is too long"));
    }
    let mut content = vec![0; usize::try_from(bytes).map_err(|_| invalid("it is too long"))?];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

#[cfg(test)]
#[path = "pager/pager_test.rs"]
mod tests;
