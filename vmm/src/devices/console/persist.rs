//! Saves and restores the console.
//!
//! The guest's output stays with the parent, whose log and clients have it. Input that the guest
//! has not read yet is part of the state. The order of a restore is that of a virtio device:
//! 1. The interrupt line is registered.
//! 2. [`ConsoleState::restore`].
//! 3. KVM's interrupt controllers are restored.
//! 4. The device loop starts. If the guest had not handled its interrupt, the loop raises the line
//!    once more.

use super::{Console, INPUT_MAX_BYTES, Line, Pending};
use crate::persist::Persist;
use crate::persist::mirror::{Mirror, mirror};
use patina_control::best_effort;
use patina_daemon::lock;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_superio::serial::{NoEvents, Serial, SerialState};

/// Interrupt identification: none is pending.
const NOTHING_PENDING: u8 = 1;

/// The serial port between two instructions of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleState {
    pub(crate) port: PortState,
    /// Waits for room in the port.
    pub(crate) input: Vec<u8>,
}

patina_snapshot::layout!(ConsoleState { port: PortState, input: Vec<u8> });

mirror! {
    /// The registers of the port, and what the guest is to read next.
    PortState of SerialState {
        baud_divisor_low: u8,
        baud_divisor_high: u8,
        interrupt_enable: u8,
        interrupt_identification: u8,
        line_control: u8,
        line_status: u8,
        modem_control: u8,
        modem_status: u8,
        scratch: u8,
        in_buffer: Vec<u8>,
    }
}

/// Why a console could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The port's buffer cannot hold so many bytes.
    #[error("restore the serial port: its buffer cannot hold {bytes} bytes")]
    Port {
        /// In the port's buffer.
        bytes: usize,
    },
    /// There is more pending input than a console keeps.
    #[error("restore the console: it has {bytes} bytes of input; the limit is {INPUT_MAX_BYTES}")]
    Input {
        /// In the state.
        bytes: usize,
    },
}

impl Persist for ConsoleState {
    type Source<'a> = &'a Console;
    /// A console, whose log is not restored: a clone's log is new and empty. On failure nothing has
    /// changed.
    type Target<'a> = &'a Console;
    type Restored = ();
    type SaveError = Infallible;
    type RestoreError = RestoreError;

    fn save(console: &Console) -> Result<Self, Infallible> {
        let serial = lock(&console.serial);
        Ok(Self {
            port: PortState::of(&serial.state()),
            input: lock(&console.input).iter().copied().collect(),
        })
    }

    fn restore(&self, console: &Console) -> Result<(), RestoreError> {
        let bytes = self.input.len();
        if bytes > INPUT_MAX_BYTES {
            return Err(RestoreError::Input { bytes });
        }
        let line = Line::held(&console.line);
        let pending = Pending { output: Arc::clone(&console.output), timer: Arc::clone(&console.timer) };
        let port = Serial::from_state(&self.port.original(), line, NoEvents, pending)
            .map_err(|_| RestoreError::Port { bytes: self.port.in_buffer.len() })?;
        // The port raises its line when it is made, and only then. This is too early for KVM.
        port.interrupt_evt().release();
        let mut serial = lock(&console.serial);
        *serial = port;
        *lock(&console.input) = self.input.iter().copied().collect();
        let pends = self.port.interrupt_identification & NOTHING_PENDING == 0;
        console.resends_interrupt.store(pends, Ordering::SeqCst);
        best_effort(
            console.wake.write(1),
            "the loop comes first thing, also for input for which there is room; a full counter does as well",
        );
        Ok(())
    }
}

#[cfg(test)]
#[path = "persist_test.rs"]
mod tests;
