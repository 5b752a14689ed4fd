//! Composes the kernel command line: options for every guest, options for software KVM, the
//! devices, and the user's options.

use super::layout;
use crate::devices::virtio::mmio::WINDOW_BYTES;

/// Why the command line could not be composed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CmdlineError {
    /// Control or non-ASCII characters.
    #[error("make the kernel command line: {0:?} has a character that is not printable ASCII")]
    Characters(String),
    /// Too long.
    #[error("make the kernel command line: it has {0} bytes; the limit is {max}; shorten your own options", max = layout::CMDLINE_MAX_BYTES - 1)]
    Length(usize),
}

/// Log only problems to the console, reset through the keyboard controller, which the vmm sees, and
/// do not probe for missing devices. images/README.md lists each option that saves time in the
/// guest, with its measurement.
const ALWAYS: &str = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 nomodule \
    8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on tsc=reliable no_timer_check swiotlb=noforce \
    root=/dev/vda ro init=/sbin/gc-init";

/// Makes the command line for `devices` virtio-mmio devices. `host` has the options that the kind
/// of KVM needs. `user` comes last, so its options take precedence.
///
/// # Errors
/// It has characters that are not printable ASCII, or is too long.
pub fn compose(devices: u32, host: &str, user: &str) -> Result<String, CmdlineError> {
    let mut line = ALWAYS.to_owned();
    for index in 0..devices {
        let base = layout::MMIO_BASE + u64::from(index) * WINDOW_BYTES;
        let irq = layout::MMIO_FIRST_IRQ + index;
        line.push_str(&format!(" virtio_mmio.device=4K@{base:#x}:{irq}"));
    }
    for part in [host, user] {
        if !part.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(CmdlineError::Characters(part.to_owned()));
        }
        if !part.trim().is_empty() {
            line.push(' ');
            line.push_str(part.trim());
        }
    }
    if line.len() >= layout::CMDLINE_MAX_BYTES {
        return Err(CmdlineError::Length(line.len()));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_then_host_then_user() {
        let line = compose(2, "clearcpuid=1", "quiet init=/bin/sh").expect("a command line");
        assert!(line.contains("virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"));
        assert!(line.ends_with(":6 clearcpuid=1 quiet init=/bin/sh"), "{line}");
    }

    /// A guest with RAM above 4 GiB would else clear 64 MiB for devices that reach no further: ours
    /// reach all of it.
    #[test]
    fn no_bounce_buffer_is_asked_for() {
        let line = compose(4, "", "").expect("a command line");
        assert!(line.split(' ').any(|word| word == "swiotlb=noforce"), "{line}");
    }

    #[test]
    fn newlines_and_too_much_are_refused() {
        assert_eq!(compose(0, "", "a\nb"), Err(CmdlineError::Characters("a\nb".into())));
        assert!(matches!(compose(0, "", &"x".repeat(2048)), Err(CmdlineError::Length(n)) if n > 2048));
    }
}
