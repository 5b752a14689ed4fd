//! The other marks by which programs distinguish machines: `boot_id` and `/etc/machine-id`. A clone
//! gets its own.
//!
//! Patina's kernel generates another boot_id when its file is written. If another kernel refuses
//! that, a file is mounted over it when the guest boots, and a clone writes to that file. A program
//! that mounts its own procfs then sees the kernel's boot_id. If there is no `/etc/machine-id`,
//! none is created.

use super::ApplyError;
use rustix::fs::{Access, CWD, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where the kernel shows its boot_id.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The file over it.
const BOOT_ID: &str = "/run/gridcentric/boot_id";
const MACHINE_ID: &str = "/etc/machine-id";

/// A UUID in text, with hyphens; a machine-id is one without.
const BOOT_ID_BYTES: usize = 36;
const MACHINE_ID_BYTES: usize = 32;

/// Puts a file with the same text over the kernel's boot_id, if that cannot be written to.
///
/// # Errors
/// The kernel's; nothing is changed then.
pub fn cover_boot_id() -> Result<()> {
    if rustix::fs::open(KERNEL_BOOT_ID, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).is_ok() {
        return Ok(());
    }
    let kernel = rustix::fs::open(KERNEL_BOOT_ID, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0; BOOT_ID_BYTES + 1];
    let length = rustix::io::read(&kernel, &mut text)?;
    if let Some(directory) = Path::new(BOOT_ID).parent() {
        match rustix::fs::mkdirat(CWD, directory, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    let file = rustix::fs::open(BOOT_ID, flags, Mode::from_raw_mode(0o444))?;
    rustix::io::write(&file, text.get(..length).unwrap_or_default())?;
    rustix::mount::mount_bind(BOOT_ID, KERNEL_BOOT_ID)
}

/// The files of a machine.
#[derive(Debug)]
pub struct Marks {
    boot_id: Option<OwnedFd>,
    machine_id: PathBuf,
}

impl Marks {
    /// Those of the machine that the program runs in.
    #[must_use]
    pub fn open() -> Self {
        Self::open_at(Path::new(KERNEL_BOOT_ID), MACHINE_ID.into())
    }

    pub(super) fn open_at(boot_id: &Path, machine_id: PathBuf) -> Self {
        let boot_id = rustix::fs::open(boot_id, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        if rustix::fs::access(&machine_id, Access::EXISTS).is_err() {
            // Now the kernel remembers that. Otherwise each clone would look for it on the disk.
        }
        Self { boot_id: boot_id.ok(), machine_id }
    }

    /// Gives the machine marks of its own; the kernel's randomness must be its own already. Returns
    /// what did not work.
    pub fn renew(&self) -> Vec<ApplyError> {
        let mut failed = Vec::new();
        let mut note = |step, result: Result<()>| {
            failed.extend(result.err().map(|e| ApplyError { step, is_vital: false, source: e.into() }));
        };
        let mut random = [0; 32];
        // Up to 256 bytes come whole.
        match getrandom(&mut random[..], GetRandomFlags::empty()) {
            Ok(_) => {
                let (boot_id, machine_id) = random.split_at(random.len() / 2);
                note("change boot_id", self.set_boot_id(&uuid(boot_id)));
                note("change /etc/machine-id", self.set_machine_id(&uuid(machine_id).replace('-', "")));
            }
            Err(error) => note("draw a new boot_id", Err(error)),
        }
        failed
    }

    fn set_boot_id(&self, text: &str) -> Result<()> {
        let Some(file) = &self.boot_id else { return Ok(()) };
        whole(rustix::io::pwrite(file, text.as_bytes(), 0)?, text)
    }

    fn set_machine_id(&self, text: &str) -> Result<()> {
        let file = match rustix::fs::open(&self.machine_id, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        // One that is empty, or has another word in it, is not a machine's yet.
        let mut old = [0; MACHINE_ID_BYTES];
        let length = rustix::io::read(&file, &mut old)?;
        if length < old.len() || !old.iter().all(u8::is_ascii_hexdigit) {
            return Ok(());
        }
        whole(rustix::io::pwrite(&file, text.as_bytes(), 0)?, text)
    }
}

fn whole(written: usize, text: &str) -> Result<()> {
    if written == text.len() { Ok(()) } else { Err(Errno::NOSPC) }
}

/// 16 random bytes as the text of a UUID, version 4.
fn uuid(random: &[u8]) -> String {
    let mut text = String::with_capacity(BOOT_ID_BYTES);
    for (index, byte) in random.iter().enumerate() {
        let byte = match index {
            6 => byte & 0x0f | 0x40,
            8 => byte & 0x3f | 0x80,
            _ => *byte,
        };
        let hyphen = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        // Writing to a String does not fail.
        if write!(text, "{hyphen}{byte:02x}").is_err() {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_one() {
        assert_eq!(uuid(&[0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid(&[0; 16]), "00000000-0000-4000-8000-000000000000");
    }

    #[test]
    fn marks_that_are_there_change_and_others_are_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let (boot_id, machine_id) = (dir.path().join("boot_id"), dir.path().join("machine-id"));
        let marks = || Marks::open_at(&boot_id, machine_id.clone());
        assert!(marks().renew().is_empty());
        assert!(!boot_id.exists() && !machine_id.exists());

        let old = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11\n";
        std::fs::write(&boot_id, old).unwrap();
        std::fs::write(&machine_id, old.replace('-', "")).unwrap();
        assert!(marks().renew().is_empty());
        let read = |path| std::fs::read_to_string(path).unwrap();
        let (new_boot, new_machine) = (read(&boot_id), read(&machine_id));
        assert!(new_boot != old && new_boot.len() == 37 && new_boot.ends_with('\n'), "{new_boot}");
        assert!(new_machine.len() == 33 && new_machine.ends_with('\n'), "{new_machine}");
        assert_ne!(new_boot.replace('-', ""), new_machine);

        for unset in ["", "uninitialized\n"] {
            std::fs::write(&machine_id, unset).unwrap();
            assert!(marks().renew().is_empty());
            assert_eq!(read(&machine_id), unset);
        }
    }
}
