//! Which names are in use, and [which families live](families). Short critical sections, no I/O under the lock.

#[path = "families.rs"]
pub mod families;

use super::{
    Vm,
    error::{Error, VMS_MAX},
};
use crate::plan::{lifecycle::Phase, names::VmName};
use families::Family;
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A name's state.
#[derive(Debug)]
enum Slot {
    /// A VM is being made or removed under it, or its folder is set aside.
    Reserved,
    /// A VM.
    Vm(Arc<Vm>),
}

#[derive(Debug, Default)]
struct Inner {
    slots: BTreeMap<String, Slot>,
    /// By number.
    families: BTreeMap<u16, Family>,
}

/// The host's names and families.
#[derive(Debug, Clone, Default)]
pub struct Table(Arc<Mutex<Inner>>);

/// A name that is held; given up when dropped.
#[derive(Debug)]
pub struct Reservation {
    table: Table,
    name: Option<String>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            self.table.lock().slots.remove(&name);
        }
    }
}

impl Reservation {
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

    /// Keeps the name taken with no VM under it.
    pub fn set_aside(mut self) {
        self.name = None;
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics under this lock; if some did, the map itself is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a name.
    ///
    /// # Errors
    /// It is in use, or there are too many.
    pub fn reserve(&self, name: &str) -> Result<Reservation, Error> {
        let mut inner = self.lock();
        if inner.slots.contains_key(name) {
            return Err(Error::NameTaken(name.to_owned()));
        }
        if inner.slots.len() >= VMS_MAX {
            return Err(Error::TooMany);
        }
        inner.slots.insert(name.to_owned(), Slot::Reserved);
        Ok(Reservation { table: self.clone(), name: Some(name.to_owned()) })
    }

    /// Holds a name nobody has, out of random numbers.
    ///
    /// # Errors
    /// There are too many VMs.
    pub fn reserve_any(&self, mut random: impl FnMut() -> u64) -> Result<Reservation, Error> {
        loop {
            // There are 65,536 such names and at most 1,024 in use: a few turns find a free one.
            match self.reserve(VmName::generate(random()).as_str()) {
                Err(Error::NameTaken(_)) => {}
                other => return other,
            }
        }
    }

    /// Finds a VM.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn find(&self, name: &str) -> Result<Arc<Vm>, Error> {
        match self.lock().slots.get(name) {
            Some(Slot::Vm(vm)) => Ok(Arc::clone(vm)),
            Some(Slot::Reserved) | None => Err(Error::NotFound(name.to_owned())),
        }
    }

    /// At most `most` VMs by name, from the first after `after`; and whether there are more.
    #[must_use]
    pub fn page(&self, after: &str, most: usize) -> (Vec<Arc<Vm>>, bool) {
        let inner = self.lock();
        let mut vms = inner.slots.range::<str, _>((Bound::Excluded(after), Bound::Unbounded)).filter_map(
            |(_, slot)| match slot {
                Slot::Vm(vm) => Some(Arc::clone(vm)),
                Slot::Reserved => None,
            },
        );
        let page = vms.by_ref().take(most).collect();
        (page, vms.next().is_some())
    }

    /// Every VM.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Vm>> {
        self.page("", VMS_MAX).0
    }

    /// Takes an ended VM out; its name stays held until the reservation is dropped.
    ///
    /// # Errors
    /// There is none, or it runs.
    pub fn take_ended(&self, name: &str) -> Result<(Arc<Vm>, Reservation), Error> {
        let mut inner = self.lock();
        let Some(Slot::Vm(vm)) = inner.slots.get(name) else {
            return Err(Error::NotFound(name.to_owned()));
        };
        if !matches!(vm.status().phase, Phase::Ended(_)) {
            return Err(Error::Running(name.to_owned()));
        }
        let vm = Arc::clone(vm);
        inner.slots.insert(name.to_owned(), Slot::Reserved);
        Ok((vm, Reservation { table: self.clone(), name: Some(name.to_owned()) }))
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod tests;
