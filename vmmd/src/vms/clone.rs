//! Cloning: a VM is frozen into a generation and continues. Each clone is a VM of the same family
//! that starts from that generation.
//!
//! ```text
//!  ready? ▶ clone slots ▶ granted? ▶ freeze, and write the vmids ▶ for each clone: start ▶ record
//! ```
//!
//! A warm vmm runs as soon as it has the generation. It becomes a VM when its folder, with the
//! record inside, stands among the folders of the other VMs. If `vmmd` is killed before that, a
//! process without a record is left. The next `vmmd` ends it; no caller has seen it yet. From the
//! freeze on, each clone has an outcome of its own: one that fails leaves nothing but a used vmid,
//! and the others are not affected.

mod freeze;
mod memory;
mod report;
mod slots;
mod start;

pub(super) use slots::FilledSlot;
pub(super) use start::Source;

use super::{
    error::Error,
    host::Host,
    pool::OnTheWay,
    remote_data::place::{Elsewhere, Others, There},
    table::families::CloneSlot,
    tickets::Wanted,
    vm::Vm,
    warm_up::For,
};
use crate::{
    metrics::Stage,
    process::{control_client::PATIENCE, generation::PrefaultList},
    store::record::Record,
};
use patina_control::{
    messages::{Frozen, Prepare},
    monotonic_ns,
};
use report::log;
use scheduler::host::admission::Admitted;
use std::{ops::RangeInclusive, sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How many clones one call makes.
pub const COUNT: RangeInclusive<u32> = 1..=256;

/// A call for clones.
#[derive(Debug)]
pub struct Call {
    /// The VM to be cloned.
    pub parent: Arc<Vm>,
    /// How many clones the call is for.
    pub wanted: Wanted,
    /// What the VM's agent does first; None: the guest asked, and has.
    pub prepare: Option<Prepare>,
    /// The caller's number for the call, if it gave one. It is kept with each clone.
    pub request: Option<String>,
    /// When the call came: [`monotonic_ns`].
    pub arrived_ns: u64,
    /// The guest's turn to clone, until the clones are made, whether the guest waits for that or
    /// not. None: an operator asked.
    pub asked: Option<OwnedSemaphorePermit>,
    /// Nobody wants the clones any more. Whoever drops [`Host::clone_vm`] says so too. From the
    /// freeze on it is too late.
    pub abandoned: CancellationToken,
}

/// What came of a call.
#[derive(Debug)]
pub struct Clones {
    /// How long it took from asking the vmm to having the generation.
    pub freeze: Duration,
    /// What the vmm says of the freeze.
    pub frozen: Frozen,
    /// What came of each clone, in the order of their vmids.
    pub outcomes: Vec<Outcome>,
}

/// What came of one clone.
#[derive(Debug)]
pub struct Outcome {
    /// The clone's vmid.
    pub vmid: u32,
    /// The VM, and how it came to run.
    pub made: Result<(Made, Times), Error>,
}

/// A clone that runs.
#[derive(Debug)]
pub enum Made {
    /// On this host.
    Here(Arc<Vm>),
    /// On another host, as that one describes it.
    There(Box<patina_proto::v1::Vm>),
}

/// When a clone came to run, after the call's arrival.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Its vmm was sent the generation.
    pub sent: Duration,
    /// It entered its guest.
    pub executing: Duration,
}

/// How many clones are wanted.
struct Size {
    /// On this host.
    count: u32,
    /// On other hosts.
    elsewhere: Vec<Elsewhere>,
}

/// Gives back what was not used. Returns whether the vmids can be given to other clones.
async fn given_back(admitted: Option<Admitted>) -> bool {
    match admitted {
        Some(admitted) => admitted.give_back().await,
        None => true,
    }
}

impl Host {
    /// Makes clones of a VM.
    ///
    /// # Errors
    /// The VM is not ready or cannot be frozen; there is no room, or no such ticket. What fails for
    /// one clone only is in its outcome.
    pub async fn clone_vm(self: &Arc<Self>, call: Call) -> Result<Clones, Error> {
        // In a task of its own: if the client goes away, the call still makes or undoes every
        // clone. Until the freeze begins, a client that goes away ends the call.
        let _left = call.abandoned.clone().drop_guard();
        let host = Arc::clone(self);
        tokio::spawn(host.clone_whole(call)).await.map_err(|_| Error::Stopping)?
    }

    /// The clones of a VM that a call with this number made here, by vmid: also one that an earlier
    /// vmmd answered. What was removed since is not among them.
    ///
    /// # Errors
    /// What an earlier vmmd left is not known in time.
    pub async fn clones_of_call(&self, parent: &Record, request: &str) -> Result<Vec<Arc<Vm>>, Error> {
        self.adopted(PATIENCE).await?;
        let is_of_call = |vm: &Arc<Vm>| {
            let origin = vm.record.origin.as_ref().filter(|origin| origin.parent_host.is_none());
            vm.record.family == parent.family
                && origin.is_some_and(|origin| {
                    origin.parent_vmid == parent.vmid && origin.request.as_deref() == Some(request)
                })
        };
        let mut clones: Vec<_> = self.table.all().into_iter().filter(is_of_call).collect();
        clones.sort_by_key(|vm| vm.record.vmid);
        Ok(clones)
    }

    async fn clone_whole(self: Arc<Self>, call: Call) -> Result<Clones, Error> {
        let Call { parent, wanted, prepare, request, arrived_ns, asked: _asked, abandoned } = call;
        // Until all VMs that an earlier vmmd left are known, a vmid or a name may be in use that
        // the table does not have.
        self.adopted(PATIENCE).await?;
        // What can be refused at once is refused before the VM is disturbed.
        let record = &parent.record;
        let abandon = || Error::Abandoned(record.name.clone());
        abandoned.run_until_cancelled(parent.check_clonable(PATIENCE)).await.ok_or_else(abandon)??;
        // Calls for clones of one VM take turns until it is frozen: it has one freeze at a time.
        // The caller may leave meanwhile.
        let waited = async {
            let size = self.size(record, wanted).await?;
            Ok::<_, Error>((size, parent.cloning.lock().await))
        };
        let (Size { count, elsewhere }, turn) =
            abandoned.run_until_cancelled(waited).await.ok_or_else(abandon)??;
        let others = if elsewhere.is_empty() { None } else { Some(self.look_at(&elsewhere, record).await?) };
        let wanted = self.part_of(wanted, &elsewhere);
        let (slots, there) = self.take_vmids_for(record, count, elsewhere).await?;
        // The scheduler is asked for these very vmids. Pools make no warm VMs while a clone is on
        // the way.
        let on_the_way = self.on_the_way(count);
        let vmids = slots.iter().map(|slot| slot.vmid).collect();
        // A VM whose agent is told nothing is frozen at once: the reservation takes as long to be
        // on the disk. An agent goes on after a freeze as one that was cloned, so for it there is
        // one only, and only when its clones are granted.
        let early = async {
            match prepare {
                Some(Prepare::Not) => Some(self.freeze(&parent, prepare, &abandoned).await),
                Some(Prepare::Ask { .. }) | None => None,
            }
        };
        let admit = async { (self.admit_here(record, wanted, vmids).await, monotonic_ns()) };
        // The freeze first: the vmm works from then on, and so does the scheduler.
        let (early, (admitted, admitted_ns)) = tokio::join!(early, admit);
        let (admitted, ticket) = match admitted {
            Ok(admitted) => admitted,
            Err((error, is_unused)) => {
                // An early freeze may have used the spare connection up.
                parent.connect_ahead();
                self.refuse_clone_slots(record, slots, is_unused).await;
                return Err(error);
            }
        };
        // Only now that the clones are granted are missing warm VMs made, at the same time as the
        // VM is frozen.
        let slots = self.fill_clone_slots(record, slots, For::Clone);
        self.metrics.stage(Stage::Admit, Duration::from_nanos(admitted_ns.saturating_sub(arrived_ns)));
        // An image that is too old is replaced: clones of it would be of the past.
        let fresh = early.filter(|early| early.is_fresh(admitted_ns) && !abandoned.is_cancelled());
        let freezing = match fresh {
            Some(early) => early,
            None => self.freeze(&parent, prepare, &abandoned).await,
        };
        let (asked_ns, freeze) = (freezing.asked_ns, freezing.took());
        // The image is complete, or there is none: the next call may freeze the VM while these
        // clones start.
        drop(turn);
        parent.connect_ahead();
        let (frozen, generation) = match freezing.result {
            Ok(frozen) => frozen,
            Err(error) => {
                // The scheduler first: whether it has forgotten the vmids decides whether other
                // clones may get them.
                let is_unused = given_back(admitted).await;
                self.return_clone_slots(record, slots, is_unused).await;
                return Err(error);
            }
        };
        // From here on each clone reports its own end: a reservation that is dropped does.
        let reservations = admitted.map(Admitted::into_reservations).unwrap_or_default();
        let source = Source {
            parent: parent.record.clone(),
            generation,
            prefault_list: self.prefault_list_of(record),
            parent_host: None,
            ticket: Some(ticket),
            request,
            arrived_ns,
        };
        let here = self.make_clones(&source, slots, reservations, on_the_way);
        let there = self.make_those_elsewhere(&source, &there, others.map(|others| (others, frozen)));
        let (mut outcomes, made_there) = tokio::join!(here, there);
        outcomes.extend(made_there);
        log(&source, source.after(asked_ns), freeze, frozen, &outcomes);
        self.count(freeze, frozen, &outcomes);
        self.tell_cloned(&source, frozen, &outcomes);
        Ok(Clones { freeze, frozen, outcomes })
    }

    /// Takes the authorization to make the clones of this host.
    async fn admit_here(
        &self,
        parent: &Record,
        wanted: Wanted,
        vmids: Vec<u32>,
    ) -> Result<(Option<Admitted>, Uuid), (Error, bool)> {
        match wanted {
            // All of the ticket's clones are elsewhere.
            Wanted::Part { id, .. } if vmids.is_empty() => Ok((None, id)),
            _ => {
                let (admitted, ticket) = self.tickets.admit(parent, wanted, vmids).await?;
                Ok((Some(admitted), ticket))
            }
        }
    }

    /// Has clones made on other hosts. What is not used of the ticket there is released.
    async fn make_those_elsewhere(
        self: &Arc<Self>,
        source: &Source,
        there: &[There],
        others: Option<(Others, Frozen)>,
    ) -> Vec<Outcome> {
        let Some((others, frozen)) = others else { return Vec::new() };
        let outcomes = self.make_clones_elsewhere(source, there, others, frozen).await;
        if let Some(ticket) = source.ticket
            && outcomes.iter().any(|outcome| outcome.made.is_err())
        {
            self.tickets.release_rest(ticket, source.parent.family).await;
        }
        outcomes
    }

    fn prefault_list_of(&self, record: &Record) -> Arc<PrefaultList> {
        let list = self.table.prefault_list(record.net.index, record.family);
        list.unwrap_or_else(|| Arc::clone(&self.no_list))
    }

    /// How many clones are wanted.
    async fn size(&self, parent: &Record, wanted: Wanted) -> Result<Size, Error> {
        match wanted {
            Wanted::Count(count) => Ok(Size { count, elsewhere: Vec::new() }),
            // Nobody calls with a part.
            Wanted::Part { id, .. } => {
                Ok(Size { count: self.tickets.size(id, parent.family).await?.0, elsewhere: Vec::new() })
            }
            Wanted::Ticket { id, count, .. } => {
                let (here, elsewhere) = self.tickets.size(id, parent.family).await?;
                let vms = here + elsewhere.iter().map(|place| place.vms).sum::<u32>();
                match count {
                    Some(count) if count != vms => Err(Error::TicketCount { ticket: id, count, vms }),
                    _ => Ok(Size { count: here, elsewhere }),
                }
            }
        }
    }

    /// What is wanted of this host, if the rest is made elsewhere.
    fn part_of(&self, wanted: Wanted, elsewhere: &[Elsewhere]) -> Wanted {
        match (wanted, self.tickets.host_id().parse()) {
            (Wanted::Ticket { id, epoch, .. }, Ok(parent_host)) if !elsewhere.is_empty() => {
                Wanted::Part { id, epoch, parent_host }
            }
            _ => wanted,
        }
    }

    /// Takes clone slots for the clones here, and vmids for those on other hosts. The latter stay
    /// unused if they are not used.
    async fn take_vmids_for(
        self: &Arc<Self>,
        parent: &Record,
        count: u32,
        places: Vec<Elsewhere>,
    ) -> Result<(Vec<CloneSlot>, Vec<There>), Error> {
        if !places.is_empty() {
            self.table.share_family(parent.net.index, parent.family);
            self.write_vmids(parent).await?;
        }
        let all = places.iter().map(|place| place.vms).sum::<u32>() + count;
        let _turn = self.reserving.lock().await;
        self.reserve_vmids(parent, all).await?;
        let take = |place: Elsewhere| {
            let vmids = self.table.take_vmids(parent, place.vms)?;
            Ok(There { place, vmids })
        };
        let there = places.into_iter().map(take).collect::<Result<_, Error>>()?;
        Ok((self.take_clone_slots(parent, count)?, there))
    }

    pub(super) fn on_the_way(&self, count: u32) -> Vec<OnTheWay> {
        (0..count).map(|_| OnTheWay::new(&self.on_the_way)).collect()
    }
}
