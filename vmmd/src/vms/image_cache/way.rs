//! Whether a VM boots, or starts from an image.

use super::{cache::Making, key::Key};
use crate::store::record::FileId;
use patina_snapshot::{directory::Snapshot, manifest::ImageRef};
use std::{fs::File, sync::Arc};

/// How a new VM comes to run.
#[derive(Debug)]
pub enum Way {
    /// It boots.
    Boot,
    /// It boots, and is kept as an image when it is ready.
    Keep(Making, [ImageRef; 2]),
    /// It starts from this image.
    Image(Key, Arc<Snapshot>, [ImageRef; 2]),
}

/// A VM's kernel and root file system, which are open, and which files they are.
#[derive(Debug)]
pub struct Files {
    /// The kernel.
    pub kernel: (File, FileId),
    /// The root file system.
    pub rootfs: (File, FileId),
}
