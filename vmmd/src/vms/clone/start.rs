//! Starts clones: warm VMs that get a generation.

use super::{Made, Outcome, Times, memory::started, slots::FilledSlot};
use crate::{
    clock::unix_ms,
    plan::lifecycle::Lifecycle,
    process::{
        control_client::{self, ControlError},
        generation::{Generation, PrefaultList},
        turns::Turn,
    },
    store::{
        Lasting, VmDir,
        record::{Origin, Record},
    },
    vms::{
        blocking::blocking,
        error::Error,
        host::Host,
        pool::OnTheWay,
        supervise::{Supervised, supervise},
        warm::Warm,
        warm_up::For,
    },
};
use futures::future::join_all;
use patina_control::monotonic_ns;
use patina_daemon::chain;
use scheduler::host::admission::Reservation;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// A VM that runs, and how it came to.
type Started = (Supervised, Option<Turn>, Times);

/// What all VMs of a call start from.
pub(in crate::vms) struct Source {
    /// The VM that is cloned.
    pub parent: Record,
    /// Its image.
    pub generation: Generation,
    /// The pages that its clones write first.
    pub prefault_list: Arc<PrefaultList>,
    /// The host on which the VM is that is cloned. None: this one.
    pub parent_host: Option<Uuid>,
    /// The ticket of the clones.
    pub ticket: Option<Uuid>,
    /// The caller's number for the call, if it gave one.
    pub request: Option<String>,
    /// When the call came: [`monotonic_ns`].
    pub arrived_ns: u64,
}

impl Source {
    /// How long after the call's arrival.
    pub(in crate::vms) fn after(&self, ns: u64) -> Duration {
        Duration::from_nanos(ns.saturating_sub(self.arrived_ns))
    }
}

impl Host {
    /// Makes clones side by side, each with its own outcome: one that fails does not stop the
    /// others.
    pub(in crate::vms) async fn make_clones(
        self: &Arc<Self>,
        source: &Source,
        slots: Vec<FilledSlot>,
        reservations: Vec<Reservation>,
        on_the_way: Vec<OnTheWay>,
    ) -> Vec<Outcome> {
        let start = |((slot, reservation), way)| self.make_clone(source, slot, reservation, way);
        let mut outcomes = join_all(slots.into_iter().zip(reservations).zip(on_the_way).map(start)).await;
        outcomes.sort_by_key(|outcome| outcome.vmid);
        outcomes
    }

    async fn make_clone(
        self: &Arc<Self>,
        source: &Source,
        slot: FilledSlot,
        reservation: Reservation,
        on_the_way: OnTheWay,
    ) -> Outcome {
        let FilledSlot { vmid, held_name, pool_slot } = slot;
        let parent = &source.parent;
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
                Ok((Made::Here(vm), times))
            }
            Err(error) => {
                tracing::warn!(family = %parent.family, vmid, error = %chain(&error), "a clone was not made");
                self.leave_family(parent.net, parent.family, vmid).await;
                Err(error)
            }
        };
        Outcome { vmid, made }
    }

    /// Gives a warm VM the generation and makes it a VM; on an error nothing of it is left. A spare
    /// may have died while it waited. Then, and whatever else a spare fails of, a new vmm starts
    /// the VM, and only its failure counts against the generation.
    pub(in crate::vms) async fn start_clone(
        self: &Arc<Self>,
        source: &Source,
        warm: Warm,
        record: Record,
    ) -> Result<Started, Error> {
        let was_spare = warm.member.is_some();
        match self.start_warm(source, warm, record.clone()).await {
            Err(error @ Error::Start { .. }) if was_spare => {
                tracing::warn!(vm = record.name, error = %chain(&error), "a spare vmm did not start; the VM gets a new one");
                let warm = self.warm_up(&record, For::Clone).await?;
                self.start_warm(source, warm, record).await
            }
            started => started,
        }
    }

    async fn start_warm(
        self: &Arc<Self>,
        source: &Source,
        mut warm: Warm,
        record: Record,
    ) -> Result<Started, Error> {
        let record = Record { process: warm.process().map(|process| process.id().clone()), ..record };
        let sent = async {
            let (generation, prefault_list) = (source.generation.open()?, source.prefault_list.open()?);
            let ticket = record.ticket.map(|ticket| ticket.to_string()).unwrap_or_default();
            let (filling, memory) = self.serve_memory(&warm, &record, &source.generation).await?;
            let told = (ticket, warm.member.take());
            control_client::start(&warm.start, told, &generation, &prefault_list, filling.as_ref()).await?;
            Ok(memory)
        };
        let mut memory = match sent.await {
            Ok(memory) => memory,
            Err(error) => return Err(failed(warm, record.name, error).await),
        };
        let sent_after = source.after(monotonic_ns());
        // The vmm works, and so does vmmd.
        let writing = self.write_clone(warm.dir().clone(), record.clone());
        let started = async {
            let started = started(&warm, &mut memory).await;
            (started, warm.has_started(&self.turns))
        };
        let ((started, turn), written) = tokio::join!(started, writing);
        if let Ok(dir) = &written {
            warm.is_moved(dir.clone());
            memory.iter().for_each(|memory| memory.moved_to(dir));
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
        let started = Supervised {
            dir,
            record,
            process,
            life,
            published,
            control,
            vmm_version,
            memory,
            reservation,
            keep: None,
        };
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
    // One that has gone away leaves its account in its files; those of one that says no hold no
    // more than it said.
    let is_refusal = matches!(source, ControlError::Refused(_));
    let (source, words) = if is_refusal {
        (source, String::new())
    } else {
        (warm.death(source).await, warm.dir().last_words())
    };
    warm.discard().await;
    Error::Start { name, words, source }
}

/// A clone's record: of the same kind as its parent, but for what makes it another VM.
fn record(source: &Source, vmid: u32, name: &str) -> Record {
    let (parent, request) = (&source.parent, source.request.clone());
    let (master, parent_host) = (parent.master().to_owned(), source.parent_host);
    let origin = Origin { parent_vmid: parent.vmid, master, parent_host, request };
    clone_of(parent, origin, vmid, name, source.ticket)
}

fn clone_of(parent: &Record, origin: Origin, vmid: u32, name: &str, ticket: Option<Uuid>) -> Record {
    Record {
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        vmid,
        origin: Some(origin),
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
        let origin = |parent_vmid, parent_host, request: Option<&str>| Origin {
            parent_vmid,
            master: "web".into(),
            parent_host,
            request: request.map(str::to_owned),
        };
        let first = clone_of(&master, origin(0, None, Some("a")), 1, "web.1", ticket);
        assert_eq!((first.name.as_str(), first.vmid, first.family), ("web.1", 1, master.family));
        assert_eq!((first.net, &first.rootfs, first.memory_mib), (master.net, &master.rootfs, 256));
        assert!(first.ports.is_empty() && first.uuid != master.uuid && first.ticket == ticket);
        assert_eq!((&first.process, first.ready_after_us, &first.ended), (&None, None, &None));
        let host = Some(Uuid::from_u128(8));
        let second = clone_of(&first, origin(1, host, None), 2, "web.2", None);
        assert_eq!(second.origin, Some(origin(1, host, None)));
        assert_eq!((second.master(), second.ticket), ("web", None));
    }
}
