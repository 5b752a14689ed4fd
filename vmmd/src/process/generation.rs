//! What a vmm gives away: a generation, the image of a VM at one instant, from which clones start;
//! and a prefault list, which helps them to.
//!
//! What a vmm sends is not believed: the descriptors must be memory files, sealed where it matters,
//! the RAM's of the VM's size. The one file that need not be sealed is that of a layer which the
//! pager of this host still fills. Clones get descriptors of their own, opened for reading only:
//! they neither share a file position nor can one change what the others start from.

use super::filling::{FileNumber, FillingLayer, FillingLayers};
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
    sync::Arc,
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
    /// Memory that was to arrive does not.
    #[error("wait for the generation's memory: {0}")]
    Incomplete(String),
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
    layers: Vec<Layer>,
}

/// A layer of a generation.
#[derive(Debug)]
struct Layer {
    memfd: OwnedFd,
    /// None: the pager has never had it.
    filling: Option<Arc<dyn FillingLayer>>,
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
    /// Takes what a vmm sent for a VM of `memory_mib`: the state, then the files of the RAM. Those
    /// of the RAM that are not sealed must be among the host's `own` layers.
    ///
    /// # Errors
    /// It is not as a generation must be.
    pub fn check(
        mut sent: Vec<OwnedFd>,
        memory_mib: u32,
        own: &dyn FillingLayers,
    ) -> Result<Self, GenerationError> {
        let memfds = sent.split_off(sent.len().min(1));
        let Some(state) = sent.pop().filter(|_| (1..=LAYERS_MAX).contains(&memfds.len())) else {
            return Err(GenerationError::Layers(memfds.len()));
        };
        let (state_bytes, seals, _) = look(&state, "state")?;
        if state_bytes == 0 || state_bytes > STATE_MAX_BYTES {
            let expected = format!("1 to {STATE_MAX_BYTES}");
            return Err(GenerationError::Size { what: "state", found_bytes: state_bytes, expected });
        }
        if !seals.contains(SEALS) {
            return Err(GenerationError::Unsealed { what: "state", seals });
        }
        let expected_bytes = u64::from(memory_mib) << 20;
        let mut layers = Vec::new();
        for memfd in memfds {
            let (found_bytes, seals, number) = look(&memfd, RAM)?;
            if found_bytes != expected_bytes {
                let expected = expected_bytes.to_string();
                return Err(GenerationError::Size { what: RAM, found_bytes, expected });
            }
            // One that is complete, too: who restores the same snapshot later shares it.
            let filling = own.find(number);
            if !seals.contains(SEALS) && filling.is_none() {
                return Err(GenerationError::Unsealed { what: RAM, seals });
            }
            layers.push(Layer { memfd, filling });
        }
        Ok(Self { state, layers })
    }

    /// The layers that are not complete at this moment, with their numbers.
    #[must_use]
    pub fn filling(&self) -> Vec<(u8, Arc<dyn FillingLayer>)> {
        let numbered = (0u8..).zip(&self.layers);
        let filling = numbered.filter_map(|(number, layer)| Some((number, layer.filling.as_ref()?)));
        let incomplete = filling.filter(|(_, layer)| !layer.is_complete());
        incomplete.map(|(number, layer)| (number, Arc::clone(layer))).collect()
    }

    /// The layers that the pager has filled, all of them.
    #[must_use]
    pub fn filled(&self) -> Vec<Arc<dyn FillingLayer>> {
        let filled = self.layers.iter().filter_map(|layer| layer.filling.clone());
        filled.filter(|layer| layer.is_complete()).collect()
    }

    /// Waits until all of its layers are complete. Before that, nothing may read their memfds: a
    /// page that has not arrived would be taken for one of zeros.
    ///
    /// # Errors
    /// A part of a layer cannot be had.
    pub async fn completed(&self) -> Result<(), GenerationError> {
        for (_, layer) in self.filling() {
            layer.completed().await.map_err(GenerationError::Incomplete)?;
        }
        Ok(())
    }

    /// Reads a state that was checked: the file of [`Opened`].
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read_state(state: File) -> Result<Vec<u8>, GenerationError> {
        read_list(state.into(), "state", STATE_MAX_BYTES)
    }

    /// Descriptors for one clone.
    ///
    /// # Errors
    /// There is no room for more.
    pub fn open(&self) -> Result<Opened, GenerationError> {
        let layers = self.layers.iter().map(|layer| reopen(&layer.memfd, RAM)).collect::<Result<_, _>>()?;
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
        read_list(sent, PREFAULT_LIST, PREFAULT_LIST_MAX_BYTES)
    }

    /// A descriptor for one clone.
    ///
    /// # Errors
    /// There is no room for more.
    pub fn open(&self) -> Result<File, GenerationError> {
        reopen(&self.0, PREFAULT_LIST)
    }
}

/// Reads a sealed memory file of at most `most_bytes` that a vmm sent.
pub(super) fn read_list(
    sent: OwnedFd,
    what: &'static str,
    most_bytes: u64,
) -> Result<Vec<u8>, GenerationError> {
    let (found_bytes, seals, _) = look(&sent, what)?;
    if found_bytes > most_bytes {
        let expected = format!("at most {most_bytes}");
        return Err(GenerationError::Size { what, found_bytes, expected });
    }
    if !seals.contains(SEALS) {
        return Err(GenerationError::Unsealed { what, seals });
    }
    let mut bytes = vec![0; usize::try_from(found_bytes).unwrap_or(0)];
    let read = File::from(sent).read_exact_at(&mut bytes, 0);
    read.map_err(|source| GenerationError::Io { operation: "read", what, source })?;
    Ok(bytes)
}

/// Size, seals and number of a file in memory.
fn look(fd: &OwnedFd, what: &'static str) -> Result<(u64, SealFlags, FileNumber), GenerationError> {
    let stat = fstat(fd).map_err(|source| GenerationError::Stat { what, source })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(GenerationError::NoMemfd { what });
    }
    // Only files in memory have seals to ask for.
    let seals = fcntl_get_seals(fd).map_err(|errno| match errno {
        Errno::INVAL => GenerationError::NoMemfd { what },
        source => GenerationError::Stat { what, source },
    })?;
    let number = FileNumber { device: stat.st_dev, inode: stat.st_ino };
    Ok((u64::try_from(stat.st_size).unwrap_or(0), seals, number))
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
    use futures::FutureExt as _;
    use patina_control::pager::Id;
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
        let generation = Generation::check(sent, 64, &()).unwrap();
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
        let check = |sent| Generation::check(sent, 64, &()).unwrap_err();
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
        assert!(Generation::check(vec![state(b"s"), plain()], 0, &()).is_err());
    }

    #[derive(Debug)]
    struct Own(FileNumber, Id);

    impl FillingLayer for Own {
        fn id(&self) -> &Id {
            &self.1
        }

        fn is_complete(&self) -> bool {
            false
        }

        fn settled(&self) -> futures::future::BoxFuture<'static, ()> {
            Box::pin(std::future::ready(()))
        }

        fn completed(&self) -> futures::future::BoxFuture<'_, Result<(), String>> {
            Box::pin(std::future::ready(Err("run 3: no such file".into())))
        }
    }

    impl FillingLayers for Own {
        fn find(&self, memfd: FileNumber) -> Option<Arc<dyn FillingLayer>> {
            (memfd == self.0).then(|| Arc::new(Self(self.0, self.1.clone())) as Arc<dyn FillingLayer>)
        }
    }

    #[test]
    fn of_what_is_not_sealed_only_the_hosts_own_filling_layers_are_accepted() {
        let filling = SealFlags::SHRINK | SealFlags::GROW;
        let (own, foreign, sealed) = (ram(64, filling), ram(64, filling), ram(64, SEALS));
        let number = look(&own, RAM).unwrap().2;
        let known = Own(number, Id::try_from("layer".to_owned()).unwrap());
        let error = Generation::check(vec![state(b"s"), foreign], 64, &known).unwrap_err();
        assert!(matches!(error, GenerationError::Unsealed { what: "RAM", .. }), "{error}");
        // Not as the state, and not with another length.
        let error =
            Generation::check(vec![own.try_clone().unwrap(), ram(64, SEALS)], 64, &known).unwrap_err();
        assert!(matches!(error, GenerationError::Size { what: "state", .. }), "{error}");
        let error = Generation::check(vec![state(b"s"), own.try_clone().unwrap()], 65, &known).unwrap_err();
        assert!(matches!(error, GenerationError::Size { what: "RAM", .. }), "{error}");
        let again = Generation::check(vec![state(b"s"), sealed, own], 64, &known).unwrap();
        let numbers: Vec<u8> = again.filling().into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [1]);
        let error = again.completed().now_or_never().expect("at once").unwrap_err();
        assert!(error.to_string().ends_with("memory: run 3: no such file"), "{error}");
    }

    #[test]
    fn ram_comes_in_so_many_files_and_no_more() {
        let sent = |count| {
            let mut sent = vec![state(b"s")];
            sent.extend((0..count).map(|_| ram(64, SEALS)));
            Generation::check(sent, 64, &())
        };
        assert!(sent(LAYERS_MAX).is_ok());
        assert!(matches!(sent(LAYERS_MAX + 1), Err(GenerationError::Layers(17))));
        assert!(matches!(sent(0), Err(GenerationError::Layers(0))));
        assert!(matches!(Generation::check(Vec::new(), 64, &()), Err(GenerationError::Layers(0))));
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
