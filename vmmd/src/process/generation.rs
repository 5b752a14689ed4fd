//! What a vmm gives away: a generation, the image of a VM at one instant, from which clones start;
//! and a prefault list, which helps them to.
//!
//! What a vmm sends is not believed: the descriptors must be memory files, sealed where it matters,
//! the RAM's of the VM's size. Clones get descriptors of their own, opened for reading only: they
//! neither share a file position nor can one change what the others start from.

use patina_control::{
    config::LAYERS_MAX,
    memfd,
    messages::{PREFAULT_LIST_MAX_BYTES, STATE_MAX_BYTES},
};
use rustix::{
    fs::{FileType, SealFlags, fcntl_get_seals, fstat},
    io::Errno,
};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

/// Without these the content could change, or go, under those who use it.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);
const RAM: &str = "RAM";
const PREFAULT_LIST: &str = "prefault list";

/// Why what a vmm sent is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum GenerationError {
    /// A descriptor is not of a file in memory.
    #[error("check the generation's {what}: not a memfd")]
    NoMemfd {
        /// Which file it was to be: the state, the RAM or the prefault list.
        what: &'static str,
    },
    /// A descriptor cannot be looked at.
    #[error("check the generation's {what}")]
    Stat {
        /// The file: the state, the RAM or the prefault list.
        what: &'static str,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
    /// The size of a file cannot be right.
    #[error("check the generation's {what}: it has {found_bytes} bytes instead of {expected}")]
    Size {
        /// The file: the state, the RAM or the prefault list.
        what: &'static str,
        /// The size that the file has, bytes.
        found_bytes: u64,
        /// The size that it must have, in words.
        expected: String,
    },
    /// The RAM comes in no file, or in too many.
    #[error("check the generation's RAM: it has {0} layers, 1 to {LAYERS_MAX} are allowed")]
    Layers(usize),
    /// The content of a file can still be changed.
    #[error("check the generation's {what}: it is still writable (seals {seals:?})")]
    Unsealed {
        /// The file: the state, the RAM or the prefault list.
        what: &'static str,
        /// The seals that the file has.
        seals: SealFlags,
    },
    /// A file cannot be read or made.
    #[error("{operation} the generation's {what}")]
    Io {
        /// What was done with the file: `read`, for example.
        operation: &'static str,
        /// The file: the state, the RAM or the prefault list.
        what: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// The image of a VM.
#[derive(Debug)]
pub struct Generation {
    state: OwnedFd,
    layers: Vec<OwnedFd>,
}

/// One clone's own descriptors of a generation.
#[derive(Debug)]
pub struct Opened {
    /// The VM's state.
    pub state: File,
    /// The layers of its RAM.
    pub layers: Vec<File>,
}

impl Generation {
    /// Takes what a vmm sent for a VM of `memory_mib`: the state, then the files of the RAM.
    ///
    /// # Errors
    /// It is not as a generation must be.
    pub fn check(mut sent: Vec<OwnedFd>, memory_mib: u32) -> Result<Self, GenerationError> {
        let layers = sent.split_off(sent.len().min(1));
        let Some(state) = sent.pop().filter(|_| (1..=LAYERS_MAX).contains(&layers.len())) else {
            return Err(GenerationError::Layers(layers.len()));
        };
        let (state_bytes, seals) = look(&state, "state")?;
        if state_bytes == 0 || state_bytes > STATE_MAX_BYTES {
            let expected = format!("1 to {STATE_MAX_BYTES}");
            return Err(GenerationError::Size { what: "state", found_bytes: state_bytes, expected });
        }
        if !seals.contains(SEALS) {
            return Err(GenerationError::Unsealed { what: "state", seals });
        }
        let expected_bytes = u64::from(memory_mib) << 20;
        for layer in &layers {
            let (found_bytes, seals) = look(layer, RAM)?;
            if found_bytes != expected_bytes {
                let expected = expected_bytes.to_string();
                return Err(GenerationError::Size { what: RAM, found_bytes, expected });
            }
            if !seals.contains(SEALS) {
                return Err(GenerationError::Unsealed { what: RAM, seals });
            }
        }
        Ok(Self { state, layers })
    }

    /// Descriptors for one clone.
    ///
    /// # Errors
    /// There is no room for more.
    pub fn open(&self) -> Result<Opened, GenerationError> {
        let layers = self.layers.iter().map(|layer| reopen(layer, RAM)).collect::<Result<_, _>>()?;
        Ok(Opened { state: reopen(&self.state, "state")?, layers })
    }
}

/// A prefault list, as a vmm reads it.
#[derive(Debug)]
pub struct PrefaultList(OwnedFd);

impl PrefaultList {
    /// The list with these bytes; with none, it helps nobody.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn of(bytes: &[u8]) -> Result<Self, GenerationError> {
        let failed = |source| GenerationError::Io { operation: "write", what: PREFAULT_LIST, source };
        Ok(Self(memfd::sealed("prefault-list", bytes).map_err(failed)?.into()))
    }

    /// Reads the list that a vmm sent.
    ///
    /// # Errors
    /// It is no sealed memory file of a size that a list can have.
    pub fn read(sent: OwnedFd) -> Result<Vec<u8>, GenerationError> {
        let (found_bytes, seals) = look(&sent, PREFAULT_LIST)?;
        if found_bytes > PREFAULT_LIST_MAX_BYTES {
            let expected = format!("at most {PREFAULT_LIST_MAX_BYTES}");
            return Err(GenerationError::Size { what: PREFAULT_LIST, found_bytes, expected });
        }
        if !seals.contains(SEALS) {
            return Err(GenerationError::Unsealed { what: PREFAULT_LIST, seals });
        }
        let mut bytes = vec![0; usize::try_from(found_bytes).unwrap_or(0)];
        let read = File::from(sent).read_exact_at(&mut bytes, 0);
        read.map_err(|source| GenerationError::Io { operation: "read", what: PREFAULT_LIST, source })?;
        Ok(bytes)
    }

    /// A descriptor for one clone.
    ///
    /// # Errors
    /// There is no room for more.
    pub fn open(&self) -> Result<File, GenerationError> {
        reopen(&self.0, PREFAULT_LIST)
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
    File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|source| GenerationError::Io {
        operation: "open",
        what,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    use std::io::{Read as _, Write as _};

    fn unsealed(bytes: &[u8]) -> OwnedFd {
        let mut file =
            File::from(memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
        file.write_all(bytes).unwrap();
        file.into()
    }

    fn state(bytes: &[u8]) -> OwnedFd {
        let fd = unsealed(bytes);
        fcntl_add_seals(&fd, SEALS).unwrap();
        fd
    }

    fn ram(mib: u64, seals: SealFlags) -> OwnedFd {
        let fd = unsealed(b"ram");
        ftruncate(&fd, mib << 20).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn every_clone_reads_the_whole_state_and_writes_nothing() {
        let sent = vec![state(b"state"), ram(64, SEALS), ram(64, SEALS)];
        let generation = Generation::check(sent, 64).unwrap();
        for _ in 0..2 {
            let Opened { mut state, layers } = generation.open().unwrap();
            let mut text = String::new();
            state.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), layers.len()), ("state", 2));
            assert_eq!(layers[1].metadata().unwrap().len(), 64 << 20);
            assert!(state.write_all(b"x").is_err());
        }
    }

    #[test]
    fn an_invalid_generation_is_refused() {
        let check = |sent| Generation::check(sent, 64).unwrap_err();
        let plain = || OwnedFd::from(tempfile::tempfile().unwrap());
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let error = check(vec![null(), ram(64, SEALS)]);
        assert!(matches!(error, GenerationError::NoMemfd { what: "state" }));
        assert!(matches!(check(vec![state(b"s"), null()]), GenerationError::NoMemfd { what: "RAM" }));
        let error = check(vec![unsealed(b""), ram(64, SEALS)]);
        assert!(matches!(error, GenerationError::Size { what: "state", .. }));
        // Clones would start from whatever it is changed to between two of them.
        let error = check(vec![unsealed(b"s"), ram(64, SEALS)]);
        assert!(matches!(error, GenerationError::Unsealed { what: "state", .. }), "{error}");
        // The last of several files counts as the first does.
        let error = check(vec![state(b"s"), ram(64, SEALS), ram(63, SEALS)]);
        assert!(error.to_string().ends_with("it has 66060288 bytes instead of 67108864"), "{error}");
        let error = check(vec![state(b"s"), ram(64, SEALS), ram(64, SealFlags::SHRINK)]);
        assert!(matches!(error, GenerationError::Unsealed { what: "RAM", seals: SealFlags::SHRINK }));
        // A file of the disk has no seals, or (on a tmpfs) not those.
        assert!(Generation::check(vec![state(b"s"), plain()], 0).is_err());
    }

    #[test]
    fn ram_comes_in_so_many_files_and_no_more() {
        let sent = |count| {
            let mut sent = vec![state(b"s")];
            sent.extend((0..count).map(|_| ram(64, SEALS)));
            Generation::check(sent, 64)
        };
        assert!(sent(LAYERS_MAX).is_ok());
        assert!(matches!(sent(LAYERS_MAX + 1), Err(GenerationError::Layers(17))));
        assert!(matches!(sent(0), Err(GenerationError::Layers(0))));
        assert!(matches!(Generation::check(Vec::new(), 64), Err(GenerationError::Layers(0))));
    }

    #[test]
    fn a_prefault_list_reads_back_and_a_wrong_one_is_refused() {
        let list = PrefaultList::of(b"sixteen bytes ok").unwrap();
        for _ in 0..2 {
            assert_eq!(PrefaultList::read(list.open().unwrap().into()).unwrap(), b"sixteen bytes ok");
        }
        assert!(matches!(PrefaultList::read(unsealed(b"x")), Err(GenerationError::Unsealed { .. })));
        assert!(matches!(PrefaultList::read(ram(2, SEALS)), Err(GenerationError::Size { .. })));
    }
}
