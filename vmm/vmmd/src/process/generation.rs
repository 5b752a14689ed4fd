//! A generation: the image of a VM at one instant, as its vmm gave it away. Clones start from it.
//!
//! What a vmm sends is not believed: the descriptors must be memory files, the RAM's sealed and of the VM's size.
//! Clones get descriptors of their own, opened for reading only: they neither share a file position nor can one
//! change what the others start from.

use rustix::{
    fs::{FileType, SealFlags, fcntl_get_seals, fstat},
    io::Errno,
};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// Largest state that a vmm may give, bytes: what a vmm reads at most.
pub const STATE_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Without these the RAM could change, or go, under the clones.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

/// Why what a vmm sent is no generation.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// A descriptor is not of a file in memory.
    #[error("look at the generation's {what}: not a file in memory")]
    NoMemfd {
        /// Which.
        what: &'static str,
    },
    /// A descriptor cannot be looked at.
    #[error("look at the generation's {what}: {source}")]
    Stat {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Its size cannot be right.
    #[error("look at the generation's {what}: it has {found_bytes} bytes, not {expected}")]
    Size {
        /// Which.
        what: &'static str,
        /// As it is.
        found_bytes: u64,
        /// As it must be, in words.
        expected: String,
    },
    /// The RAM can be changed.
    #[error("look at the generation's RAM: it can still be written to (seals {0:?})")]
    Unsealed(SealFlags),
    /// A descriptor for a clone cannot be made.
    #[error("open the generation's {what} for a clone: {source}")]
    Open {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The image of a VM.
#[derive(Debug)]
pub struct Generation {
    state: OwnedFd,
    memory: OwnedFd,
}

impl Generation {
    /// Takes what a vmm sent for a VM of `memory_mib`.
    ///
    /// # Errors
    /// It is not as a generation must be.
    pub fn check(state: OwnedFd, memory: OwnedFd, memory_mib: u32) -> Result<Self, GenerationError> {
        let (state_bytes, _) = look(&state, "state")?;
        if state_bytes == 0 || state_bytes > STATE_MAX_BYTES {
            let expected = format!("1 to {STATE_MAX_BYTES}");
            return Err(GenerationError::Size { what: "state", found_bytes: state_bytes, expected });
        }
        let (memory_bytes, seals) = look(&memory, "RAM")?;
        let expected_bytes = u64::from(memory_mib) << 20;
        if memory_bytes != expected_bytes {
            let expected = expected_bytes.to_string();
            return Err(GenerationError::Size { what: "RAM", found_bytes: memory_bytes, expected });
        }
        if !seals.contains(SEALS) {
            return Err(GenerationError::Unsealed(seals));
        }
        Ok(Self { state, memory })
    }

    /// Descriptors of state and RAM for one clone.
    ///
    /// # Errors
    /// There is no room for more.
    pub fn open(&self) -> Result<(File, File), GenerationError> {
        Ok((reopen(&self.state, "state")?, reopen(&self.memory, "RAM")?))
    }
}

/// Size and seals of a file in memory.
fn look(fd: &OwnedFd, what: &'static str) -> Result<(u64, SealFlags), GenerationError> {
    let stat = fstat(fd).map_err(|source| GenerationError::Stat { what, source })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(GenerationError::NoMemfd { what });
    }
    // Only files in memory have seals to ask for.
    let seals = fcntl_get_seals(fd).map_err(|errno| match errno {
        Errno::INVAL => GenerationError::NoMemfd { what },
        source => GenerationError::Stat { what, source },
    })?;
    Ok((u64::try_from(stat.st_size).unwrap_or(0), seals))
}

fn reopen(fd: &OwnedFd, what: &'static str) -> Result<File, GenerationError> {
    File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|source| GenerationError::Open { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use std::io::{Read as _, Write as _};

    fn memfd(bytes: &[u8]) -> OwnedFd {
        let mut file =
            File::from(memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
        file.write_all(bytes).unwrap();
        file.into()
    }

    fn ram(mib: u64, seals: SealFlags) -> OwnedFd {
        let fd = memfd(b"ram");
        ftruncate(&fd, mib << 20).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn every_clone_reads_the_whole_state_and_writes_nothing() {
        let generation = Generation::check(memfd(b"state"), ram(64, SEALS), 64).unwrap();
        for _ in 0..2 {
            let (mut state, memory) = generation.open().unwrap();
            let mut text = String::new();
            state.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), memory.metadata().unwrap().len()), ("state", 64 << 20));
            assert!(state.write_all(b"x").is_err());
        }
    }

    #[test]
    fn what_is_no_generation_is_refused() {
        let check = |state, memory| Generation::check(state, memory, 64).unwrap_err();
        let plain = || OwnedFd::from(tempfile::tempfile().unwrap());
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(matches!(check(null(), ram(64, SEALS)), GenerationError::NoMemfd { what: "state" }));
        let error = check(memfd(b"s"), null());
        assert!(matches!(error, GenerationError::NoMemfd { what: "RAM" }));
        assert!(matches!(check(memfd(b""), ram(64, SEALS)), GenerationError::Size { what: "state", .. }));
        let error = check(memfd(b"s"), ram(63, SEALS));
        assert!(error.to_string().ends_with("it has 66060288 bytes, not 67108864"), "{error}");
        let error = check(memfd(b"s"), ram(64, SealFlags::SHRINK));
        assert!(matches!(error, GenerationError::Unsealed(SealFlags::SHRINK)));
        // A file of the disk has no seals, or (on a tmpfs) not those.
        assert!(Generation::check(memfd(b"s"), plain(), 0).is_err());
    }
}
