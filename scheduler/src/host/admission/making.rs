//! The clones of a host that are being made or were made by it, and each clone's part of its
//! ticket.

use super::{Admission, Admitted, CloneRequest, Key, Shared, Vms};
use crate::host::{Clones, Present};
use patina_daemon::lock;
use patina_proto::v1::{KillClones, RunningClone, Ticket, VmEnd};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{MutexGuard, Weak},
};

/// A clone in the making.
pub(super) struct Making {
    clone: RunningClone,
    /// Of its ticket, once the scheduler has said that it is used for it.
    epoch: Option<u64>,
    /// Why it is to end before it has begun, and the epoch that the order named.
    kill_requested: Option<(u64, String)>,
    /// It is found among those that run. It stays here as long as it has its [`Reservation`], so
    /// that orders for it are told from older ones.
    is_started: bool,
}

impl Making {
    fn new(clone: RunningClone) -> Self {
        Self { clone, epoch: None, kill_requested: None, is_started: false }
    }

    /// Whether an order is for this clone: not for an earlier one that had its vmid and was not
    /// made.
    fn is_meant(&self, order: &KillClones) -> bool {
        self.clone.ticket == order.ticket && self.epoch.is_none_or(|epoch| order.epoch >= epoch)
    }

    /// The scheduler has said that its ticket, of that epoch, is used for it. An order that came
    /// before may have been for an earlier one.
    fn used(&mut self, epoch: u64) {
        self.epoch = Some(epoch);
        self.kill_requested.take_if(|(of, _)| *of < epoch);
    }

    fn request_kill(&mut self, order: &KillClones) {
        let requested = self.kill_requested.get_or_insert_with(|| (order.epoch, order.reason.clone()));
        requested.0 = requested.0.max(order.epoch);
    }
}

/// One clone's part of a ticket. Dropped, it says how the clone has ended, or that it was never
/// made.
#[derive(Debug)]
pub struct Reservation {
    admission: Admission,
    clone: RunningClone,
    end: VmEnd,
    /// The scheduler knows of it.
    pub(super) is_known: bool,
}

fn key(clone: &RunningClone) -> Key {
    (clone.family.clone(), clone.vmid)
}

impl Shared {
    pub(super) fn making(&self) -> MutexGuard<'_, BTreeMap<Key, Making>> {
        // No code panics under this lock; if some did, the map itself is still whole.
        lock(&self.making)
    }
}

impl Admission {
    /// They are in the making from now on.
    pub(super) fn begin(
        &self,
        clone_request: &CloneRequest,
        ticket: &str,
        parent_host: &str,
    ) -> Vec<Reservation> {
        let mut making = self.0.making();
        let reservation = |vmid: &u32| {
            let clone = RunningClone {
                ticket: ticket.to_owned(),
                family: clone_request.family.clone(),
                vmid: *vmid,
                vcpus: clone_request.vcpus,
                memory_mib: clone_request.memory_mib,
                parent_vmid: Some(clone_request.parent_vmid),
                parent_host_id: parent_host.to_owned(),
            };
            making.insert(key(&clone), Making::new(clone.clone()));
            self.reservation(clone)
        };
        clone_request.vmids.iter().map(reservation).collect()
    }

    /// The scheduler knows of them.
    pub(super) fn used(&self, ticket: Ticket, reservations: Vec<Reservation>) -> Admitted {
        let mut making = self.0.making();
        for reservation in &reservations {
            if let Some(making) = making.get_mut(&key(&reservation.clone)) {
                making.used(ticket.epoch);
            }
        }
        drop(making);
        Admitted { admission: self.clone(), ticket, reservations }
    }

    /// The reservation of a clone that was found running.
    #[must_use]
    pub fn reservation(&self, clone: RunningClone) -> Reservation {
        Reservation { admission: self.clone(), clone, end: VmEnd::Ended, is_known: true }
    }

    /// [`Vms::running`] has this clone from now on. Returns why it is to end at once, if it is.
    #[must_use]
    pub fn started(&self, family: &str, vmid: u32) -> Option<String> {
        let mut making = self.0.making();
        let making = making.get_mut(&(family.to_owned(), vmid))?;
        making.is_started = true;
        making.kill_requested.take().map(|(_, reason)| reason)
    }
}

impl Reservation {
    /// Whose it is.
    #[must_use]
    pub fn of(&self) -> &RunningClone {
        &self.clone
    }

    /// Why its clone need not be started, if it need not.
    #[must_use]
    pub fn kill_requested(&self) -> Option<String> {
        self.admission
            .0
            .making()
            .get(&key(&self.clone))?
            .kill_requested
            .as_ref()
            .map(|(_, reason)| reason.clone())
    }

    /// How its clone has ended.
    pub fn ended(&mut self, end: VmEnd) {
        self.end = end;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let shared = &self.admission.0;
        if self.kill_requested().is_some() {
            self.end = VmEnd::Killed;
        }
        // First said, then left out. A scheduler that does not know this host yet hears what runs,
        // and that this does not.
        if let Some(link) = shared.link.get().filter(|_| self.is_known) {
            link.ended(self.clone.clone(), self.end);
        }
        shared.making().remove(&key(&self.clone));
    }
}

/// What the link asks, and whom it gives orders.
pub(super) struct HostClones<V> {
    pub(super) shared: Weak<Shared>,
    pub(super) vms: V,
}

impl<V: Vms> Clones for HostClones<V> {
    fn present(&self) -> Present {
        let Some(shared) = self.shared.upgrade() else { return Present::default() };
        // Clones go from one to the other: looked for in this order they are not missed.
        let (mut making, mut running) = (BTreeSet::new(), Vec::new());
        for clone in shared.making().values().filter(|making| !making.is_started) {
            making.insert(clone.clone.ticket.clone());
            running.extend(clone.epoch.map(|_| clone.clone.clone()));
        }
        running.extend(self.vms.running());
        Present { running, making: making.into_iter().collect(), masters: Some(self.vms.masters()) }
    }

    fn masters(&self) -> Option<Vec<String>> {
        self.shared.upgrade().map(|_| self.vms.masters())
    }

    fn free_memory_mib(&self) -> Option<u64> {
        self.vms.free_memory_mib()
    }

    fn images(&self) -> Option<Vec<Vec<u8>>> {
        self.vms.images()
    }

    fn kill(&self, order: KillClones) {
        let Some(shared) = self.shared.upgrade() else { return };
        // In the same order, for the same reason.
        let mut making = shared.making();
        let mut is_meant = |vmid: &u32| match making.get_mut(&(order.family.clone(), *vmid)) {
            Some(making) if !making.is_meant(&order) => false,
            Some(making) => {
                if !making.is_started {
                    making.request_kill(&order);
                }
                true
            }
            // It was found running.
            None => true,
        };
        let meant: Vec<u32> = order.vmids.iter().copied().filter(&mut is_meant).collect();
        drop(making);
        self.vms.end(&order.family, &order.ticket, &meant, &order.reason);
    }
}
