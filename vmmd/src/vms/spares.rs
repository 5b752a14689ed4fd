//! Spare vmms: warm ones that belong to no family yet, for the next VM that is restored or starts
//! from an image. Here is which there are, and which there should be.
//!
//! A spare fits one kind of machine. There are spares for the kinds that were used last. A spare is
//! told who its VM is when the VM starts; its tap is put on the family's bridge before.

use super::warm::Warm;
use crate::store::record::{FileId, Record};
use patina_daemon::lock;
use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, oneshot};

/// For how many kinds there are spares.
const KINDS_MAX: usize = 2;
/// How long after its last use a kind has spares.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// What a spare is made for: any VM of this kind can be made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineKind {
    /// The path of the root file system.
    pub rootfs: PathBuf,
    /// Which file that is.
    pub rootfs_file: FileId,
    /// How many vCPUs.
    pub vcpus: u8,
    /// RAM, MiB.
    pub memory_mib: u32,
    vmm_file: FileId,
}

/// A vmm that waits for a family and a generation. Dropped, it is killed, and its folder goes.
#[derive(Debug)]
pub struct Spare {
    /// As a warm VM.
    pub warm: Warm,
    /// The index of its tap, which is on no bridge.
    pub tap: u32,
}

impl Spare {
    /// Ends it.
    pub async fn discard(self) {
        self.warm.discard().await;
    }
}

/// A spare that waits. Whoever watches its process stops when `watched` is dropped.
#[derive(Debug)]
struct Waiting {
    number: u64,
    spare: Spare,
    #[expect(dead_code, reason = "its end is what counts")]
    watched: oneshot::Receiver<()>,
}

/// The spares of a kind.
#[derive(Debug)]
struct Shelf {
    kind: MachineKind,
    used: Instant,
    waiting: Vec<Waiting>,
}

#[derive(Debug, Default)]
struct State {
    // The kind that was used last comes first.
    shelves: VecDeque<Shelf>,
    next_number: u64,
    is_closed: bool,
}

/// What is to be done.
#[derive(Debug)]
pub enum Work {
    /// All is as it should be.
    Nothing,
    /// Make one.
    Make(MachineKind),
}

/// The spares of a host.
#[derive(Debug)]
pub struct Spares {
    each: usize,
    vmm: PathBuf,
    state: Mutex<State>,
    /// Tells that there may be something to do.
    pub changed: Notify,
}

impl Spares {
    /// So many of each kind, that run this program.
    #[must_use]
    pub fn new(each: usize, vmm: PathBuf) -> Self {
        Self { each, vmm, state: Mutex::default(), changed: Notify::new() }
    }

    /// Whether there are spares at all.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.each > 0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn kind_of(&self, record: &Record) -> Option<MachineKind> {
        Some(MachineKind {
            rootfs: record.rootfs.clone(),
            rootfs_file: record.rootfs_file?,
            vcpus: record.vcpus,
            memory_mib: record.memory_mib,
            vmm_file: file_id(&self.vmm)?,
        })
    }

    /// A VM of this kind is restored or may soon be.
    pub fn used(&self, record: &Record) {
        if let Some(kind) = self.kind_of(record).filter(|_| self.is_wanted()) {
            self.lock().note(kind, Instant::now());
            self.changed.notify_one();
        }
    }

    /// A spare that this VM can be made of, if there is one. Another one takes its place.
    #[must_use]
    pub fn take(&self, record: &Record) -> Option<Spare> {
        let kind = self.kind_of(record).filter(|_| self.is_wanted())?;
        let mut state = self.lock();
        state.note(kind, Instant::now());
        let shelf = state.shelves.front_mut()?;
        // Of one that has died whoever watches it may not have heard yet.
        let runs = |spare: &Spare| spare.warm.process().is_some_and(|process| !process.is_gone());
        let taken = shelf.waiting.iter().position(|waiting| runs(&waiting.spare));
        let taken = taken.map(|at| shelf.waiting.remove(at).spare);
        drop(state);
        self.changed.notify_one();
        taken
    }

    /// Keeps a new spare. Whoever watches its process holds the other end of `watched`.
    ///
    /// # Errors
    /// Its kind is not wanted any more: here it is again.
    pub fn keep(
        &self,
        kind: &MachineKind,
        spare: Spare,
        watched: oneshot::Receiver<()>,
    ) -> Result<u64, Box<Spare>> {
        let mut state = self.lock();
        let number = state.next_number;
        let is_closed = state.is_closed;
        let shelf = state.shelves.iter_mut().find(|shelf| shelf.kind == *kind && !is_closed);
        let Some(shelf) = shelf else { return Err(Box::new(spare)) };
        shelf.waiting.push(Waiting { number, spare, watched });
        state.next_number += 1;
        Ok(number)
    }

    /// Takes the spare of this number out, if nobody has taken it.
    #[must_use]
    pub fn pull(&self, number: u64) -> Option<Spare> {
        let mut state = self.lock();
        let mut shelves = state.shelves.iter_mut();
        let pulled = shelves.find_map(|shelf| {
            let at = shelf.waiting.iter().position(|waiting| waiting.number == number)?;
            Some(shelf.waiting.remove(at).spare)
        });
        drop(state);
        self.changed.notify_one();
        pulled
    }

    /// What is to be done now.
    #[must_use]
    pub fn work(&self) -> Work {
        let state = self.lock();
        let short = state.shelves.iter().find(|shelf| shelf.waiting.len() < self.each && !state.is_closed);
        short.map_or(Work::Nothing, |shelf| Work::Make(shelf.kind.clone()))
    }

    /// Whether there are kinds that will not be wanted for ever.
    #[must_use]
    pub fn has_kinds(&self) -> bool {
        !self.lock().shelves.is_empty()
    }

    /// Forgets kinds that have not been used for long, and those of which the root file system or
    /// the vmm program is another one now. Their spares end. To be called where it may block.
    pub fn forget_unused(&self) {
        let kinds: Vec<_> = self.lock().shelves.iter().map(|shelf| shelf.kind.clone()).collect();
        let vmm = file_id(&self.vmm);
        let is_stale = |kind: &MachineKind| {
            file_id(&kind.rootfs) != Some(kind.rootfs_file) || vmm != Some(kind.vmm_file)
        };
        let stale: Vec<_> = kinds.into_iter().filter(is_stale).collect();
        let forgotten = self.lock().forget(Instant::now(), &stale);
        for shelf in &forgotten {
            tracing::debug!(rootfs = %shelf.kind.rootfs.display(), spares = shelf.waiting.len(), "spare vmms of this kind are not needed any more");
        }
    }

    /// How many wait.
    #[must_use]
    pub fn count(&self) -> u32 {
        let count: usize = self.lock().shelves.iter().map(|shelf| shelf.waiting.len()).sum();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Takes every spare out, and keeps none any more.
    #[must_use]
    pub fn clear(&self) -> Vec<Spare> {
        let mut state = self.lock();
        state.is_closed = true;
        let waiting = std::mem::take(&mut state.shelves).into_iter().flat_map(|shelf| shelf.waiting);
        waiting.map(|waiting| waiting.spare).collect()
    }
}

impl State {
    /// A kind is used: it comes first. The one that was used least recently may go for it.
    fn note(&mut self, kind: MachineKind, used: Instant) {
        if self.is_closed {
            return;
        }
        let known = self.shelves.iter().position(|shelf| shelf.kind == kind);
        let waiting = known.and_then(|at| self.shelves.remove(at)).map(|shelf| shelf.waiting);
        self.shelves.push_front(Shelf { kind, used, waiting: waiting.unwrap_or_default() });
        self.shelves.truncate(KINDS_MAX);
    }

    fn forget(&mut self, now: Instant, stale: &[MachineKind]) -> Vec<Shelf> {
        let is_wanted = |shelf: &Shelf| {
            now.saturating_duration_since(shelf.used) < IDLE_MAX && !stale.contains(&shelf.kind)
        };
        let (wanted, forgotten): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.shelves).into_iter().partition(is_wanted);
        self.shelves = wanted.into();
        forgotten
    }
}

fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|file| FileId::of(&file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(memory_mib: u32) -> MachineKind {
        let file = file_id(Path::new("/proc/self/exe")).unwrap();
        let rootfs = PathBuf::from("/proc/self/exe");
        MachineKind { rootfs, rootfs_file: file, vcpus: 1, memory_mib, vmm_file: file }
    }

    fn kinds(state: &State) -> Vec<u32> {
        state.shelves.iter().map(|shelf| shelf.kind.memory_mib).collect()
    }

    #[test]
    fn the_kinds_that_were_used_last_have_spares() {
        let (mut state, now) = (State::default(), Instant::now());
        for memory_mib in [256, 512, 256, 1024] {
            state.note(kind(memory_mib), now);
        }
        assert_eq!(kinds(&state), [1024, 256]);
        state.is_closed = true;
        state.note(kind(64), now);
        assert_eq!(kinds(&state), [1024, 256]);
    }

    #[test]
    fn a_kind_that_is_idle_for_long_or_changed_has_none() {
        let (mut state, then) = (State::default(), Instant::now());
        state.note(kind(256), then);
        state.note(kind(512), then + IDLE_MAX / 2);
        let now = then + IDLE_MAX;
        assert_eq!(state.forget(now, &[]).len(), 1);
        assert_eq!(kinds(&state), [512]);
        assert_eq!(state.forget(now, &[kind(64)]).len(), 0);
        assert_eq!(state.forget(now, &[kind(512)]).len(), 1);
    }

    #[test]
    fn a_spare_is_made_for_each_kind_and_none_if_none_is_wanted() {
        let record = crate::store::record::tests::sample("web");
        let file = file_id(Path::new("/proc/self/exe"));
        let record = Record { rootfs: "/proc/self/exe".into(), rootfs_file: file, ..record };
        let none = Spares::new(0, "/proc/self/exe".into());
        none.used(&record);
        assert!(none.take(&record).is_none() && matches!(none.work(), Work::Nothing));
        let spares = Spares::new(1, "/proc/self/exe".into());
        assert!(matches!(spares.work(), Work::Nothing) && !spares.has_kinds());
        assert!(spares.take(&record).is_none());
        let Work::Make(wanted) = spares.work() else { panic!("the next one of its kind needs a spare") };
        assert_eq!((wanted.vcpus, wanted.memory_mib), (record.vcpus, record.memory_mib));
        spares.forget_unused();
        assert!(spares.has_kinds(), "nothing has changed");
        assert!(spares.clear().is_empty() && matches!(spares.work(), Work::Nothing));
    }
}
