//! virtio-blk on one file.
//!
//! The device thread does one request after another, directly between the file and guest memory. A
//! request that is invalid, goes beyond the disk or is longer than [`REQUEST_MAX_BYTES`] gets an
//! error status and changes nothing.

pub mod persist;

use self::persist::BlockState;
use super::DeviceState;
use super::persist::RestoreError;
use super::queue::{Chain, QueueError, Side};
use super::{DeviceError, Io, Next, VirtioDevice, read_config_bytes};
use crate::devices::Memory;
use crate::persist::Persist;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK,
    VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

/// The virtio type of a block device.
pub const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
/// Size of a sector, bytes. The guest does not see bytes of the file beyond its last whole sector.
pub const SECTOR_BYTES: u64 = 512;
/// Longest read or write in one request, bytes, so that one request does not hold up the other
/// devices.
pub const REQUEST_MAX_BYTES: u32 = 16 * 1024 * 1024;
/// Length of the device's name for GET_ID, bytes.
pub const ID_BYTES: usize = 20;

const QUEUE_SIZES: [u16; 1] = [256];
/// A header and a status take a descriptor each.
const SEGMENTS_MAX: u32 = QUEUE_SIZES[0] as u32 - 2;
const HEADER_BYTES: u32 = 16;

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
#[error("find the size of the disk")]
pub struct SizeError(#[source] io::Error);

/// The device.
#[derive(Debug)]
pub struct Block {
    chain: Chain,
    disk: Disk,
    config: [u8; 16],
}

#[derive(Debug)]
struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    id: [u8; ID_BYTES],
}

impl Block {
    /// A disk with the contents of `file`, which must not shrink while the VM runs. Its name for
    /// the guest is the first [`ID_BYTES`] bytes of `id`.
    pub fn new(file: File, read_only: bool, id: &str) -> Result<Self, SizeError> {
        let sectors = file.metadata().map_err(SizeError)?.len() / SECTOR_BYTES;
        let mut config = [0; 16];
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config[12..].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
        let mut name = [0; ID_BYTES];
        for (to, from) in name.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Ok(Self { chain: Chain::default(), disk: Disk { file, sectors, read_only, id: name }, config })
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_FLUSH
            | u64::from(self.disk.read_only) << VIRTIO_BLK_F_RO
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn queue_event(&mut self, io: &mut Io<'_>, index: usize) -> Result<Next, DeviceError> {
        let disk = &self.disk;
        io.serve(index, &mut self.chain, |memory, chain| {
            disk.answer(memory, chain).map_err(DeviceError::queue(index))
        })
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        let Ok(state) = BlockState::save(self);
        DeviceState::Block(state)
    }

    fn restore(&mut self, state: &DeviceState, _is_active: bool) -> Result<(), RestoreError> {
        let DeviceState::Block(state) = state else { return Err(state.is_not("block")) };
        state.restore(self)
    }
}

/// How a request ends.
enum Outcome {
    /// Done; so many bytes were written to the guest, before the status.
    Done(u32),
    /// The request cannot be done.
    Failed,
    /// The request is of no known kind.
    Unsupported,
}

impl From<io::Result<u32>> for Outcome {
    fn from(result: io::Result<u32>) -> Self {
        result.map_or(Self::Failed, Self::Done)
    }
}

impl Disk {
    /// Does one request; returns the bytes written into the chain. Only a broken queue is an error.
    fn answer(&self, memory: &Memory, chain: &Chain) -> Result<u32, QueueError> {
        // Without room for a status there is no way to answer.
        let Some(status_at) = chain.writable_bytes().checked_sub(1) else { return Ok(0) };
        let outcome = if chain.readable_bytes() < HEADER_BYTES {
            Outcome::Failed
        } else {
            let mut header = [0; HEADER_BYTES as usize];
            chain.read(memory, 0, &mut header)?;
            let [kind, _, sector_low, sector_high] = words(&header);
            let sector = u64::from(sector_high) << 32 | u64::from(sector_low);
            self.perform(memory, chain, kind, sector, status_at)?
        };
        let (status, written) = match outcome {
            Outcome::Done(written) => (VIRTIO_BLK_S_OK, written),
            Outcome::Failed => (VIRTIO_BLK_S_IOERR, 0),
            Outcome::Unsupported => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        chain.write(memory, status_at, &[status as u8])?;
        // The bytes between the data and the status were not written, but the status is the last
        // byte, and nothing else can be said with one number.
        Ok(if written > 0 { written + 1 } else { 1 })
    }

    fn perform(
        &self,
        memory: &Memory,
        chain: &Chain,
        kind: u32,
        sector: u64,
        room: u32,
    ) -> Result<Outcome, QueueError> {
        let transfer = match kind {
            VIRTIO_BLK_T_IN => (Side::Writable, 0, room),
            VIRTIO_BLK_T_OUT if self.read_only => return Ok(Outcome::Failed),
            VIRTIO_BLK_T_OUT => (Side::Readable, HEADER_BYTES, chain.readable_bytes() - HEADER_BYTES),
            VIRTIO_BLK_T_FLUSH if self.read_only => return Ok(Outcome::Done(0)),
            VIRTIO_BLK_T_FLUSH => return Ok(self.file.sync_data().map(|()| 0).into()),
            VIRTIO_BLK_T_GET_ID if room < ID_BYTES as u32 => return Ok(Outcome::Failed),
            VIRTIO_BLK_T_GET_ID => {
                chain.write(memory, 0, &self.id)?;
                return Ok(Outcome::Done(ID_BYTES as u32));
            }
            _ => return Ok(Outcome::Unsupported),
        };
        let (side, offset, length) = transfer;
        if length > REQUEST_MAX_BYTES || !self.contains(sector, u64::from(length)) {
            return Ok(Outcome::Failed);
        }
        self.transfer(memory, chain, side, sector * SECTOR_BYTES, offset, length)
    }

    /// Whole sectors that lie on the disk.
    fn contains(&self, sector: u64, length: u64) -> bool {
        length.is_multiple_of(SECTOR_BYTES)
            && sector.checked_add(length / SECTOR_BYTES).is_some_and(|end| end <= self.sectors)
    }

    fn transfer(
        &self,
        memory: &Memory,
        chain: &Chain,
        side: Side,
        position: u64,
        offset: u32,
        length: u32,
    ) -> Result<Outcome, QueueError> {
        let mut done = 0;
        while done < length {
            let slices = chain.slices(memory, side, offset + done, (length - done) as usize)?;
            let position = position + u64::from(done);
            let result = match side {
                Side::Writable => slices.read_at(self.file.as_fd(), position),
                Side::Readable => slices.write_at(self.file.as_fd(), position),
            };
            match result {
                Ok(0) => return Ok(Outcome::Failed),
                // At most what was asked for, so it fits.
                Ok(count) => done += count as u32,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Ok(Outcome::Failed),
            }
        }
        Ok(Outcome::Done(if side == Side::Writable { length } else { 0 }))
    }
}

fn words(bytes: &[u8; HEADER_BYTES as usize]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks();
    [0, 1, 2, 3].map(|index| words.get(index).map_or(0, |word| u32::from_le_bytes(*word)))
}

#[cfg(test)]
#[path = "block_test.rs"]
mod tests;
