//! The names and the [`families`] in use. Critical sections are short, with no I/O under the lock.

pub mod families;

use super::{
    error::{Error, VMS_MAX},
    vm::Vm,
};
use crate::{
    plan::{lifecycle::Phase, names::VmName},
    store::{VmDir, record::Record},
};
use families::family::Family;
use patina_daemon::lock;
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard},
};

/// A name's state.
#[derive(Debug)]
enum Slot {
    /// A VM is being made or removed under it.
    Reserved,
    /// An earlier vmmd left a folder of this name, which is being looked at.
    Adopting,
    /// The folder cannot be taken over as it is.
    Broken(Arc<Broken>),
    /// A VM has the name.
    Vm(Arc<Vm>),
}

/// A folder that an earlier vmmd left and that cannot be taken over now: it is tried again.
#[derive(Debug)]
pub struct Broken {
    /// The folder that was left.
    pub dir: VmDir,
    /// The VM's record, if it can be read.
    pub record: Option<Record>,
    /// What is wrong with it, in words.
    pub problem: String,
}

/// What stands under a name.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A VM has the name.
    Vm(Arc<Vm>),
    /// A folder that is being looked at.
    Adopting(String),
    /// A folder that cannot be taken over.
    Broken(String, Arc<Broken>),
}

impl Entry {
    /// The name that it stands under.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Vm(vm) => &vm.record.name,
            Self::Adopting(name) | Self::Broken(name, _) => name,
        }
    }
}

impl Slot {
    fn entry(&self, name: &str) -> Option<Entry> {
        match self {
            Self::Reserved => None,
            Self::Adopting => Some(Entry::Adopting(name.to_owned())),
            Self::Broken(broken) => Some(Entry::Broken(name.to_owned(), Arc::clone(broken))),
            Self::Vm(vm) => Some(Entry::Vm(Arc::clone(vm))),
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    slots: BTreeMap<String, Slot>,
    /// The families, by their numbers.
    families: BTreeMap<u16, Family>,
}

/// The host's names and families.
#[derive(Debug, Clone, Default)]
pub struct Table(Arc<Mutex<Inner>>);

/// A name that is held; given up when dropped.
#[derive(Debug)]
pub struct HeldName {
    table: Table,
    name: Option<String>,
}

impl Drop for HeldName {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.table.lock().slots.remove(&name);
        }
    }
}

impl HeldName {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Gives the name to a VM.
    pub fn fill(mut self, vm: Arc<Vm>) {
        if let Some(name) = self.name.take() {
            self.table.lock().slots.insert(name, Slot::Vm(vm));
        }
    }

    /// Keeps the name taken, by a folder that cannot be taken over.
    pub fn set_aside(mut self, broken: Broken) {
        if let Some(name) = self.name.take() {
            self.table.lock().slots.insert(name, Slot::Broken(Arc::new(broken)));
        }
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics under this lock; if some did, the map itself is still whole.
        lock(&self.0)
    }

    /// Holds a name.
    ///
    /// # Errors
    /// It is in use, or there are too many.
    pub fn reserve(&self, name: &str) -> Result<HeldName, Error> {
        let mut inner = self.lock();
        if inner.slots.contains_key(name) {
            return Err(Error::NameTaken(name.to_owned()));
        }
        if inner.slots.len() >= VMS_MAX {
            return Err(Error::TooMany);
        }
        inner.slots.insert(name.to_owned(), Slot::Reserved);
        Ok(HeldName { table: self.clone(), name: Some(name.to_owned()) })
    }

    /// Holds a name nobody has, out of random numbers.
    ///
    /// # Errors
    /// There are too many VMs.
    pub fn reserve_any(&self, mut random: impl FnMut() -> u64) -> Result<HeldName, Error> {
        loop {
            // There are 65,536 such names and at most 1,024 in use: a few turns find a free one.
            match self.reserve(VmName::generate(random()).as_str()) {
                Err(Error::NameTaken(_)) => {}
                other => return other,
            }
        }
    }

    /// Folders of these names were found: they are taken, and looked at from now on.
    pub fn find_folders<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let mut inner = self.lock();
        for name in names {
            inner.slots.entry(name.to_owned()).or_insert(Slot::Adopting);
        }
    }

    /// Takes the name of a folder that is to be looked at, or was and is again.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn take_folder(&self, name: &str) -> Result<HeldName, Error> {
        match self.lock().slots.get_mut(name) {
            // As it was to all others, until it is known what becomes of it.
            Some(Slot::Adopting | Slot::Broken(_)) => {
                Ok(HeldName { table: self.clone(), name: Some(name.to_owned()) })
            }
            Some(Slot::Reserved | Slot::Vm(_)) | None => Err(Error::NotFound(name.to_owned())),
        }
    }

    /// Takes a folder that cannot be taken over out of the table; its name stays held until the
    /// [`HeldName`] is dropped.
    ///
    /// # Errors
    /// There is none, or it is a VM.
    pub fn take_broken(&self, name: &str) -> Result<(Arc<Broken>, HeldName), Error> {
        let mut inner = self.lock();
        let broken = match inner.slots.get(name) {
            Some(Slot::Broken(broken)) => Arc::clone(broken),
            Some(Slot::Vm(_)) => return Err(Error::NotBroken(name.to_owned())),
            Some(Slot::Adopting) => return Err(Error::Adopting(name.to_owned())),
            Some(Slot::Reserved) | None => return Err(Error::NotFound(name.to_owned())),
        };
        inner.slots.insert(name.to_owned(), Slot::Reserved);
        Ok((broken, HeldName { table: self.clone(), name: Some(name.to_owned()) }))
    }

    /// The folders that cannot be taken over, by name.
    #[must_use]
    pub fn broken(&self) -> Vec<(String, Arc<Broken>)> {
        let broken = |entry| match entry {
            Entry::Broken(name, broken) => Some((name, broken)),
            Entry::Vm(_) | Entry::Adopting(_) => None,
        };
        self.page("", usize::MAX).0.into_iter().filter_map(broken).collect()
    }

    /// Finds a VM.
    ///
    /// # Errors
    /// There is none of that name, or it is not taken over.
    pub fn find(&self, name: &str) -> Result<Arc<Vm>, Error> {
        match self.lock().slots.get(name) {
            Some(Slot::Vm(vm)) => Ok(Arc::clone(vm)),
            Some(Slot::Adopting) => Err(Error::Adopting(name.to_owned())),
            Some(Slot::Broken(broken)) => {
                Err(Error::Broken { name: name.to_owned(), problem: broken.problem.clone() })
            }
            Some(Slot::Reserved) | None => Err(Error::NotFound(name.to_owned())),
        }
    }

    /// At most `most` entries by name, from the first after `after`; and whether there are more.
    #[must_use]
    pub fn page(&self, after: &str, most: usize) -> (Vec<Entry>, bool) {
        let inner = self.lock();
        let after = inner.slots.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        let mut entries = after.filter_map(|(name, slot)| slot.entry(name));
        let page = entries.by_ref().take(most).collect();
        (page, entries.next().is_some())
    }

    /// Every VM.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Vm>> {
        let inner = self.lock();
        let vm = |slot: &Slot| match slot {
            Slot::Vm(vm) => Some(Arc::clone(vm)),
            Slot::Reserved | Slot::Adopting | Slot::Broken(_) => None,
        };
        inner.slots.values().filter_map(vm).collect()
    }

    /// Takes an ended VM out; its name stays held until the [`HeldName`] is dropped.
    ///
    /// # Errors
    /// There is none, or it runs.
    pub fn take_ended(&self, name: &str) -> Result<(Arc<Vm>, HeldName), Error> {
        let mut inner = self.lock();
        let Some(Slot::Vm(vm)) = inner.slots.get(name) else {
            return Err(Error::NotFound(name.to_owned()));
        };
        if !matches!(vm.status().phase, Phase::Ended(_)) {
            return Err(Error::Running(name.to_owned()));
        }
        let vm = Arc::clone(vm);
        inner.slots.insert(name.to_owned(), Slot::Reserved);
        Ok((vm, HeldName { table: self.clone(), name: Some(name.to_owned()) }))
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
