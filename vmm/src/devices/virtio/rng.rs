//! virtio-rng: gives the guest randomness from the host.

use super::DeviceState;
use super::persist::RestoreError;
use super::queue::Chain;
use super::{DeviceError, Io, Next, VirtioDevice};
use crate::devices::Memory;
use rustix::rand::{GetRandomFlags, getrandom};

/// The virtio type of an entropy device.
pub const DEVICE_TYPE: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
/// Most bytes given for one request; a guest that wants more asks again.
pub const REQUEST_MAX_BYTES: u32 = 64 * 1024;

const QUEUE_SIZES: [u16; 1] = [16];
/// Bytes taken from the kernel at a time; the kernel gives this many without being interrupted.
const PIECE_BYTES: usize = 256;

/// The device.
#[derive(Debug, Default)]
pub struct Rng {
    chain: Chain,
}

fn answer(memory: &Memory, chain: &Chain) -> Result<u32, DeviceError> {
    let wanted = chain.writable_bytes().min(REQUEST_MAX_BYTES);
    let mut piece = [0; PIECE_BYTES];
    let mut done = 0;
    while done < wanted {
        let length = PIECE_BYTES.min((wanted - done) as usize);
        let count = getrandom(&mut piece[..length], GetRandomFlags::empty())
            .map_err(|error| DeviceError::io("get randomness for the guest")(error.into()))?;
        chain.write(memory, done, &piece[..count]).map_err(DeviceError::queue(0))?;
        done += count as u32;
    }
    Ok(done)
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn queue_event(&mut self, io: &mut Io<'_>, index: usize) -> Result<Next, DeviceError> {
        io.serve(index, &mut self.chain, answer)
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn restore(&mut self, state: &DeviceState, _is_active: bool) -> Result<(), RestoreError> {
        if *state == DeviceState::Rng { Ok(()) } else { Err(state.is_not("rng")) }
    }
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
