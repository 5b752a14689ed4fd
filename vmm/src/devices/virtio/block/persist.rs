//! A disk, saved and restored: its contents are in its file, and no request is under way while the loop is stopped.

use super::Block;
use crate::devices::virtio::persist::{DeviceState, RestoreError};
use serde::{Deserialize, Serialize};

/// What must be the same in a restored disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The guest was told this size and will not ask again.
    sectors: u64,
}

impl Block {
    pub(super) fn state(&self) -> BlockState {
        BlockState { sectors: self.disk.sectors }
    }

    pub(super) fn check(&self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Block(BlockState { sectors }) = state else { return Err(state.is_not("block")) };
        let (saved, found) = (*sectors, self.disk.sectors);
        if saved == found { Ok(()) } else { Err(RestoreError::DiskSize { saved, found }) }
    }
}
