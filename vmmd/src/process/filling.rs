//! Layers of RAM that the host's pager is still filling. [`crate::pager`] has them.

use futures::future::BoxFuture;
use patina_control::pager::Id;
use std::{fmt, os::fd::OwnedFd, sync::Arc};

/// The first version of a vmm that can start on layers which are still being filled.
pub const LAZY_VERSION: u32 = 2;

/// A file by its device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileNumber {
    /// The device.
    pub device: u64,
    /// The inode.
    pub inode: u64,
}

/// A layer of this host that the pager fills, or has filled. It stays as long as somebody holds it.
pub trait FillingLayer: fmt::Debug + Send + Sync {
    /// Its name between `vmmd` and the pager.
    fn id(&self) -> &Id;
    /// Whether all of it is in its memfd, which is sealed then.
    fn is_complete(&self) -> bool;
    /// Waits until all of it has arrived, nothing more is fetched unasked, or nobody uses it any
    /// longer. Does not itself use it.
    fn settled(&self) -> BoxFuture<'static, ()>;

    /// Waits until it is; or until its source has failed too often, and why.
    fn completed(&self) -> BoxFuture<'_, Result<(), String>>;
}

/// The layers of this host that the pager fills, or has filled.
pub trait FillingLayers: Sync {
    /// The one whose memfd this file is.
    fn find(&self, memfd: FileNumber) -> Option<Arc<dyn FillingLayer>>;
}

/// No layers.
impl FillingLayers for () {
    fn find(&self, _memfd: FileNumber) -> Option<Arc<dyn FillingLayer>> {
        None
    }
}

/// What a VM needs to start on layers that are still being filled.
#[derive(Debug)]
pub struct Filling {
    /// Their numbers in the generation, ascending.
    pub layers: Vec<u8>,
    /// The VM's socket to the pager.
    pub pager: OwnedFd,
}
