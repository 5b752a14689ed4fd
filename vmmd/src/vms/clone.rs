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
mod report;
mod slots;

use super::{
    blocking::blocking,
    error::Error,
    host::Host,
    pool::OnTheWay,
    supervise::{Supervised, supervise},
    tickets::Wanted,
    vm::Vm,
    warm::Warm,
};
use crate::{
    clock::unix_ms,
    metrics::Stage,
    plan::lifecycle::Lifecycle,
    process::{
        control_client::{self, ControlError, PATIENCE},
        generation::{Generation, PrefaultList},
        turns::Turn,
    },
    store::{
        Lasting, VmDir,
        record::{Origin, Record},
    },
};
use futures::future::join_all;
use patina_control::{
    messages::{Frozen, Prepare},
    monotonic_ns,
};
use patina_daemon::chain;
use report::log;
use scheduler::host::admission::Reservation;
use slots::FilledSlot;
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
    pub made: Result<(Arc<Vm>, Times), Error>,
}

/// When a clone came to run, after the call's arrival.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Its vmm was sent the generation.
    pub sent: Duration,
    /// It entered its guest.
    pub executing: Duration,
}

/// What all clones of a call start from.
struct Source {
    parent: Arc<Vm>,
    generation: Generation,
    prefault_list: Arc<PrefaultList>,
    ticket: Option<Uuid>,
    arrived_ns: u64,
}

impl Source {
    fn after(&self, ns: u64) -> Duration {
        Duration::from_nanos(ns.saturating_sub(self.arrived_ns))
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

    async fn clone_whole(self: Arc<Self>, call: Call) -> Result<Clones, Error> {
        let Call { parent, wanted, prepare, arrived_ns, asked: _asked, abandoned } = call;
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
            let count = self.size(record, wanted).await?;
            Ok::<_, Error>((count, parent.cloning.lock().await))
        };
        let (count, turn) = abandoned.run_until_cancelled(waited).await.ok_or_else(abandon)??;
        // The scheduler is asked for these very vmids. Pools make no warm VMs while a clone is on
        // the way.
        let (slots, on_the_way) = (self.take_clone_slots(record, count)?, self.on_the_way(count));
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
        let admit = async {
            let admitted = self.tickets.admit(record, wanted, vmids).await;
            (admitted, monotonic_ns())
        };
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
        let slots = self.fill_clone_slots(record, slots);
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
                let is_unused = admitted.give_back().await;
                self.return_clone_slots(record, slots, is_unused).await;
                return Err(error);
            }
        };
        // From here on each clone reports its own end: a reservation that is dropped does.
        let reservations = admitted.into_reservations();
        let prefault_list = self.table.prefault_list(record.net.index, record.family);
        let prefault_list = prefault_list.unwrap_or_else(|| Arc::clone(&self.no_list));
        let source = Source {
            parent: Arc::clone(&parent),
            generation,
            prefault_list,
            ticket: Some(ticket),
            arrived_ns,
        };
        // Side by side, each with its own outcome: one that fails does not stop the others.
        let start = |((slot, reservation), way)| self.make_clone(&source, slot, reservation, way);
        let mut outcomes = join_all(slots.into_iter().zip(reservations).zip(on_the_way).map(start)).await;
        outcomes.sort_by_key(|outcome| outcome.vmid);
        log(&source, source.after(asked_ns), freeze, frozen, &outcomes);
        self.count(freeze, frozen, &outcomes);
        self.tell_cloned(&source, frozen, &outcomes);
        Ok(Clones { freeze, frozen, outcomes })
    }

    /// How many clones are wanted.
    async fn size(&self, parent: &Record, wanted: Wanted) -> Result<u32, Error> {
        match wanted {
            Wanted::Count(count) => Ok(count),
            Wanted::Ticket { id, count, .. } => {
                let vms = self.tickets.size(id, parent.family).await?;
                match count {
                    Some(count) if count != vms => Err(Error::TicketCount { ticket: id, count, vms }),
                    _ => Ok(vms),
                }
            }
        }
    }

    fn on_the_way(&self, count: u32) -> Vec<OnTheWay> {
        (0..count).map(|_| OnTheWay::new(&self.on_the_way)).collect()
    }

    async fn make_clone(
        self: &Arc<Self>,
        source: &Source,
        slot: FilledSlot,
        reservation: Reservation,
        on_the_way: OnTheWay,
    ) -> Outcome {
        let FilledSlot { vmid, held_name, pool_slot } = slot;
        let parent = &source.parent.record;
        let started = match (pool_slot.warm().await, reservation.kill_requested()) {
            (Ok(warm), None) => self.start_clone(source, warm, record(source, vmid, held_name.name())).await,
            (Ok(warm), Some(reason)) => {
                warm.discard().await;
                Err(Error::Unwanted { name: held_name.name().to_owned(), reason })
            }
            (Err(error), _) => Err(error),
        };
        let made = match started {
            Ok((started, turn, times)) => {
                let vm = supervise(self, Supervised { reservation: Some(reservation), ..started });
                held_name.fill(Arc::clone(&vm));
                if let Some(reason) = self.tickets.started(&vm.record) {
                    vm.ask_to_end(&reason);
                }
                on_the_way.until_ready(Arc::clone(&vm), turn);
                Ok((vm, times))
            }
            Err(error) => {
                tracing::warn!(family = %parent.family, vmid, error = %chain(&error), "a clone was not made");
                self.leave_family(parent.net, parent.family).await;
                Err(error)
            }
        };
        Outcome { vmid, made }
    }

    /// Gives a warm VM the generation and makes it a VM; on an error nothing of it is left.
    async fn start_clone(
        self: &Arc<Self>,
        source: &Source,
        mut warm: Warm,
        record: Record,
    ) -> Result<(Supervised, Option<Turn>, Times), Error> {
        let record = Record { process: warm.process().map(|process| process.id().clone()), ..record };
        let sent = async {
            let (generation, prefault_list) = (source.generation.open()?, source.prefault_list.open()?);
            let ticket = record.ticket.map(|ticket| ticket.to_string()).unwrap_or_default();
            control_client::start(&warm.start, ticket, &generation, &prefault_list).await
        };
        if let Err(error) = sent.await {
            return Err(failed(warm, record.name, error).await);
        }
        let sent_after = source.after(monotonic_ns());
        // The vmm works, and so does vmmd.
        let writing = self.write_clone(warm.dir.clone(), record.clone());
        let started = async {
            let started = control_client::started(&warm.start, PATIENCE).await;
            (started, warm.has_started(&self.turns))
        };
        let ((started, turn), written) = tokio::join!(started, writing);
        if let Ok(dir) = &written {
            warm.dir = dir.clone();
        }
        let (entered_ns, dir) = match (started, written) {
            (Ok(entered_ns), Ok(dir)) => (entered_ns, dir),
            (Err(error), _) => return Err(failed(warm, record.name, error).await),
            (Ok(_), Err(error)) => {
                warm.discard().await;
                return Err(error);
            }
        };
        let (control, vmm_version) = (warm.control.take(), Some(warm.version));
        let Some(process) = warm.into_process() else { return Err(Error::Stopping) };
        let life = Lifecycle::running(None);
        let (published, reservation) = (None, None);
        let started = Supervised { dir, record, process, life, published, control, vmm_version, reservation };
        Ok((started, turn, Times { sent: sent_after, executing: source.after(entered_ns) }))
    }

    /// Writes a clone's record and puts its folder among the others': now it is a VM.
    async fn write_clone(self: &Arc<Self>, warm: VmDir, record: Record) -> Result<VmDir, Error> {
        // Few threads write: those of the clones need the processors more.
        let _turn = self.writing.acquire().await.map_err(|_| Error::Stopping)?;
        let host = Arc::clone(self);
        let write = move || {
            warm.save(&record, Lasting::Process)?;
            Ok(host.state.promote(&warm, &record.name)?)
        };
        blocking(write).await
    }
}

/// Ends a vmm that did not start its VM; what it says of that is the reason.
async fn failed(mut warm: Warm, name: String, source: ControlError) -> Error {
    // A vmm that has ended leaves the reason in its files. If a vmm refused, its files have no more
    // than its answer.
    let is_refusal = matches!(source, ControlError::Refused(_));
    let (source, words) =
        if is_refusal { (source, String::new()) } else { (warm.death(source).await, warm.dir.last_words()) };
    warm.discard().await;
    Error::Start { name, words, source }
}

/// A clone's record: of the same kind as its parent, but for what makes it another VM.
fn record(source: &Source, vmid: u32, name: &str) -> Record {
    clone_of(&source.parent.record, vmid, name, source.ticket)
}

fn clone_of(parent: &Record, vmid: u32, name: &str, ticket: Option<Uuid>) -> Record {
    Record {
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        vmid,
        origin: Some(Origin { parent_vmid: parent.vmid, master: parent.master().to_owned() }),
        // A port of the host leads to one VM: it stays with the parent.
        ports: Vec::new(),
        ticket,
        created_unix_ms: unix_ms(),
        process: None,
        ready_after_us: None,
        ended: None,
        ..parent.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::sample;

    #[test]
    fn a_clone_is_of_its_family_and_has_what_is_its_own() {
        let master = Record { ready_after_us: Some(5), ..sample("web") };
        let ticket = Some(Uuid::from_u128(7));
        let first = clone_of(&master, 1, "web.1", ticket);
        assert_eq!((first.name.as_str(), first.vmid, first.family), ("web.1", 1, master.family));
        assert_eq!((first.net, &first.rootfs, first.memory_mib), (master.net, &master.rootfs, 256));
        assert!(first.ports.is_empty() && first.uuid != master.uuid && first.ticket == ticket);
        assert_eq!((&first.process, first.ready_after_us, &first.ended), (&None, None, &None));
        let second = clone_of(&first, 2, "web.2", None);
        assert_eq!(second.origin, Some(Origin { parent_vmid: 1, master: "web".into() }));
        assert_eq!((second.master(), second.ticket), ("web", None));
    }
}
