//! Where the kernel describes itself: its VMCOREINFO note, which tells a crash dump's reader, and
//! this VM's host, where the lists of free pages are.

use patina_abi::link::Vmcoreinfo;
use rustix::fs::{Mode, OFlags};

const FILE: &str = "/sys/kernel/vmcoreinfo";
/// The file has two numbers.
const TEXT_MAX_BYTES: usize = 64;

/// What the kernel of this machine says. None: it was built without.
pub(super) fn read() -> Option<Vmcoreinfo> {
    let file = rustix::fs::open(FILE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; TEXT_MAX_BYTES];
    let length = rustix::io::read(&file, &mut text).ok()?;
    parse(text.get(..length)?)
}

/// `0x0000000002f4a000 1024`: both are in hex.
fn parse(text: &[u8]) -> Option<Vmcoreinfo> {
    let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
    let address = words.next()?;
    let address = u64::from_str_radix(address.strip_prefix("0x").unwrap_or(address), 16).ok()?;
    let bytes = u32::from_str_radix(words.next()?, 16).ok()?;
    Some(Vmcoreinfo { address, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_in_hex_are_where_the_note_is_and_other_text_is_nothing() {
        let note = Vmcoreinfo { address: 0x2f4_a000, bytes: 0x1024 };
        assert_eq!(parse(b"0x0000000002f4a000 1024\n"), Some(note));
        // Linux before 4.13 wrote no prefix.
        assert_eq!(parse(b"2f4a000 1024\n"), Some(note));
        for text in [&b""[..], b"\n", b"0x10", b"0x10 zz", b"-1 2", b"0x1 100000000", b"\xff 1"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
