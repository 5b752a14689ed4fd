//! Routes a vCPU's port and memory-mapped accesses to devices. `ports` has the few legacy ports of
//! a PC.

mod ports;

use crate::boot::layout::MMIO_BASE;
use crate::devices::console::persist::{self, ConsoleState};
use crate::devices::console::{Console, PORT_BASE, PORT_COUNT};
use crate::devices::virtio::mmio::persist::TransportState;
use crate::devices::virtio::mmio::{MmioTransport, WINDOW_BYTES};
use crate::devices::virtio::persist::RestoreError;
use crate::memory::Memory;
use crate::persist::Persist;
use patina_control::end::{End, EndKind};
use ports::{Ports, PortsEffect};
use std::sync::Arc;

/// The ports of the serial console.
const SERIAL: std::ops::Range<u16> = PORT_BASE..PORT_BASE + PORT_COUNT;

/// All devices that a vCPU can address.
pub struct Bus {
    /// In the order of their windows.
    pub transports: Vec<Arc<MmioTransport>>,
    /// The console.
    pub serial: Arc<Console>,
}

/// The guest stops its VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    kind: EndKind,
    reason: String,
}

impl Stop {
    /// As the record of the VM's end.
    #[must_use]
    pub fn into_end(self) -> End {
        End { kind: self.kind, reason: self.reason }
    }
}

/// Why the devices could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The generation has another number of devices than the VM.
    #[error("restore the devices: the generation has {found}, but the VM has {wanted}")]
    Count {
        /// How many devices the generation has.
        found: usize,
        /// How many devices the VM has.
        wanted: usize,
    },
    /// A virtio device rejects its state.
    #[error("restore device {index}")]
    Device {
        /// The device's index among the VM's virtio devices, from 0.
        index: usize,
        /// Why the device rejects it.
        source: RestoreError,
    },
    /// The console rejects its state.
    #[error("restore the console")]
    Console(#[from] persist::RestoreError),
}

impl Bus {
    /// Restores the states of all devices, which are new and whose loop is stopped. `memory` is the
    /// guest's RAM.
    ///
    /// # Errors
    /// The states do not fit the devices.
    pub fn restore(
        &self,
        memory: &Memory,
        transports: &[TransportState],
        console: &ConsoleState,
    ) -> Result<(), DevicesError> {
        let (found, wanted) = (transports.len(), self.transports.len());
        if found != wanted {
            return Err(DevicesError::Count { found, wanted });
        }
        for (index, (transport, state)) in self.transports.iter().zip(transports).enumerate() {
            state
                .restore((transport, Arc::clone(memory)))
                .map_err(|source| DevicesError::Device { index, source })?;
        }
        Ok(console.restore(&self.serial)?)
    }

    /// The guest writes to a port.
    ///
    /// # Errors
    /// The write ends the VM.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Result<(), Stop> {
        if SERIAL.contains(&port) {
            // The port is one byte wide, so only the first byte of a wider write reaches it.
            if let Some(byte) = data.first() {
                self.serial.write((port - PORT_BASE) as u8, *byte);
            }
            return Ok(());
        }
        match Ports::write(port, data) {
            PortsEffect::None => Ok(()),
            PortsEffect::PowerOff => {
                Err(Stop { kind: EndKind::PoweredOff, reason: "the guest powered off".into() })
            }
            PortsEffect::Panic => Err(self.panicked().unwrap_or_else(|| Stop {
                kind: EndKind::Panicked,
                reason: "the guest's kernel panicked; see the VM's console log".into(),
            })),
            // A kernel without Patina's power driver resets after a panic, which its last output
            // shows.
            PortsEffect::Reset => Err(self.panicked().unwrap_or_else(|| Stop {
                kind: EndKind::Rebooted,
                reason: "the guest requested a reset; a VM starts only once".into(),
            })),
        }
    }

    /// The guest reads a port. A port without a device reads as all ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if SERIAL.contains(&port) {
            if let Some(byte) = data.first_mut() {
                *byte = self.serial.read((port - PORT_BASE) as u8);
            }
        } else {
            Ports::read(port, data);
        }
    }

    /// The guest reads device memory.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((transport, offset)) = self.transport(address) {
            transport.read(offset, data);
        }
    }

    /// The guest writes device memory.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((transport, offset)) = self.transport(address) {
            transport.write(offset, data);
        }
    }

    fn transport(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let offset = address.checked_sub(MMIO_BASE)?;
        let transport = self.transports.get(usize::try_from(offset / WINDOW_BYTES).ok()?)?;
        Some((transport, offset % WINDOW_BYTES))
    }

    fn panicked(&self) -> Option<Stop> {
        let reason = panic_message(&self.serial.tail())?;
        Some(Stop { kind: EndKind::Panicked, reason: format!("the guest's kernel panicked: {reason}") })
    }
}

/// The kernel's panic message, if the end of the console's output has one. It is from the guest, so
/// it is cut to one printable line.
fn panic_message(tail: &[u8]) -> Option<String> {
    const WORDS: &str = "Kernel panic - not syncing: ";
    const MAX_CHARS: usize = 200;
    let text = String::from_utf8_lossy(tail);
    let message = &text[text.rfind(WORDS)? + WORDS.len()..];
    Some(
        message
            .chars()
            .take_while(|c| *c != '\n' && *c != '\r')
            .filter(|c| !c.is_control())
            .take(MAX_CHARS)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::panic_message;

    #[test]
    fn the_last_panic_is_found_and_made_printable() {
        let tail = b"[1.0] Kernel panic - not syncing: first\r\n[2.0] Kernel panic - not syncing: No \x1binit\xff found.\r\nmore";
        assert_eq!(panic_message(tail).as_deref(), Some("No init\u{fffd} found."));
        assert_eq!(panic_message(b"all is well"), None);
    }
}
