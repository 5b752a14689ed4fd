//! Saves and restores a disk. Its contents are in its file, and no request is in progress while the
//! loop is stopped.

use super::Block;
use crate::devices::virtio::persist::RestoreError;
use crate::persist::Persist;
use std::convert::Infallible;

/// The state of a disk: what a restored disk must have in common with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockState {
    /// The guest was told this size and will not ask again.
    pub(crate) sectors: u64,
}

patina_snapshot::layout!(BlockState { sectors: u64 });

impl Persist for BlockState {
    type Source<'a> = &'a Block;
    type Target<'a> = &'a Block;
    type Restored = ();
    type SaveError = Infallible;
    type RestoreError = RestoreError;

    fn save(block: &Block) -> Result<Self, Infallible> {
        Ok(Self { sectors: block.disk.sectors })
    }

    fn restore(&self, block: &Block) -> Result<(), RestoreError> {
        let (saved, found) = (self.sectors, block.disk.sectors);
        if saved == found { Ok(()) } else { Err(RestoreError::DiskSize { saved, found }) }
    }
}
