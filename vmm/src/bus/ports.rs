//! The few ports of a PC without ACPI: those that stop the VM, and those that a kernel probes.

/// Power off: Bochs and QEMU take 0x2000 there; the guest kernel's Patina driver writes it.
const POWER: u16 = 0x604;
const POWER_OFF: u16 = 0x2000;
/// pvpanic's port and its bit for a panic.
const PANIC: u16 = 0x505;
const PANICKED: u8 = 1;
/// The keyboard controller, whose command 0xfe pulses the reset line: Linux's reboot=k.
const KEYBOARD: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// The clock's data port. A kernel waits while its "update in progress" bit is set.
const RTC_DATA: u16 = 0x71;

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortsEffect {
    /// The write does nothing to the VM.
    None,
    /// The guest powers off.
    PowerOff,
    /// The guest's kernel panics.
    Panic,
    /// The guest resets.
    Reset,
}

/// The ports; they have no state.
pub struct Ports;

impl Ports {
    /// The guest writes.
    #[must_use]
    pub fn write(port: u16, data: &[u8]) -> PortsEffect {
        match (port, data) {
            (POWER, [low, high]) if u16::from_le_bytes([*low, *high]) == POWER_OFF => PortsEffect::PowerOff,
            (PANIC, [byte]) if byte & PANICKED != 0 => PortsEffect::Panic,
            (KEYBOARD, [KEYBOARD_RESET]) => PortsEffect::Reset,
            _ => PortsEffect::None,
        }
    }

    /// The guest reads. Bytes that no port answers keep their set bits.
    pub fn read(port: u16, data: &mut [u8]) {
        match port {
            PANIC => data.fill(PANICKED),
            KEYBOARD | RTC_DATA => data.fill(0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_words_stop_a_vm() {
        assert_eq!(Ports::write(0x604, &[0, 0x20]), PortsEffect::PowerOff);
        assert_eq!(Ports::write(0x604, &[0]), PortsEffect::None);
        assert_eq!(Ports::write(0x604, &[0, 0x20, 0, 0]), PortsEffect::None);
        assert_eq!(Ports::write(0x64, &[0xfe]), PortsEffect::Reset);
        assert_eq!(Ports::write(0x64, &[0xaa]), PortsEffect::None);
        assert_eq!(Ports::write(0x505, &[1]), PortsEffect::Panic);
        assert_eq!(Ports::write(0x80, &[0xfe]), PortsEffect::None);
    }
}
