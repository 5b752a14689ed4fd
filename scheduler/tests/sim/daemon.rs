//! A host's daemon: what vmmd does with tickets, on VMs that are numbers.

use crate::{
    calls::{Outcome, call},
    dice::Dice,
    facts::Shared,
    network,
};
use patina_proto::v1::{
    HostInfo, KillClones, RequestTicketRequest, RunningClone, Ticket, TicketState, UnuseTicketRequest,
    UseTicketRequest, VmEnd,
};
use scheduler::client::{Client, Clones, HostLink, Present, Registration};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

pub const MEMORY_MIB: u32 = 256;
/// How long a request is tried again.
const RETRY_FOR: Duration = Duration::from_secs(10);

/// Clones that are being made.
#[derive(Debug, Default)]
struct Making {
    clones: Vec<RunningClone>,
    /// They are to end before they have begun.
    doomed: BTreeSet<u32>,
}

pub struct Daemon {
    pub facts: Shared,
    pub machine: usize,
    pub host: String,
    pub client: Client,
    link: OnceLock<HostLink>,
    making: Mutex<BTreeMap<String, Making>>,
}

impl Clones for Daemon {
    fn present(&self) -> Present {
        let mut running: Vec<_> = self.facts.get().machines[self.machine].running.values().cloned().collect();
        let making = self.making();
        running.extend(making.values().flat_map(|making| making.clones.clone()));
        let making: Vec<String> = making.keys().cloned().collect();
        self.facts.log(format_args!(
            "host {} registers: {} run, making {making:?}",
            self.machine,
            running.len()
        ));
        Present { running, making }
    }

    fn kill(&self, order: KillClones) {
        self.facts.log(format_args!("host {} is to end {:?}: {}", self.machine, order.vmids, order.reason));
        for vmid in order.vmids {
            for making in self.making().values_mut() {
                if making.clones.iter().any(|clone| clone.family == order.family && clone.vmid == vmid) {
                    making.doomed.insert(vmid);
                }
            }
            let same = |clone: &&RunningClone| clone.family == order.family && clone.vmid == vmid;
            let found = self.facts.get().machines[self.machine].running.values().find(same).cloned();
            if let Some(clone) = found {
                self.facts.get().sums.killed += 1;
                self.end(&clone, VmEnd::Killed);
            }
        }
    }
}

impl Daemon {
    pub fn start(facts: &Shared, machine: usize) -> Arc<Self> {
        let (id, cpus) = {
            let facts = facts.get();
            (facts.machines[machine].id, facts.machines[machine].cpus)
        };
        let info = HostInfo {
            id: id.to_string(),
            name: format!("host-{machine}"),
            address: "nowhere".into(),
            cpus,
            memory_mib: u64::from(cpus) * u64::from(MEMORY_MIB),
            ..HostInfo::default()
        };
        let daemon = Arc::new(Self {
            facts: facts.clone(),
            machine,
            host: id.to_string(),
            client: network::client(),
            link: OnceLock::new(),
            making: Mutex::default(),
        });
        let link = HostLink::start(daemon.client.clone(), info, Arc::clone(&daemon) as Arc<dyn Clones>);
        assert!(daemon.link.set(link).is_ok());
        daemon
    }

    fn making(&self) -> MutexGuard<'_, BTreeMap<String, Making>> {
        self.making.lock().unwrap()
    }

    fn link(&self) -> &HostLink {
        self.link.get().unwrap()
    }

    /// Watches whether it is registered and has said all it has to say.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let settled = self.epoch().is_some() && self.link().unnoted() == 0;
            self.facts.get().machines[self.machine].settled = settled;
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The epoch of the registration, if there is one.
    pub fn epoch(&self) -> Option<u64> {
        match &*self.link().registration().borrow() {
            Registration::Registered { epoch, .. } => Some(*epoch),
            Registration::Away { .. } => None,
        }
    }

    /// Asks again and again: tokio wakes those who wait for the same `watch` in any order, and the story would not be the same twice.
    async fn registered(&self) -> u64 {
        loop {
            if let Some(epoch) = self.epoch() {
                return epoch;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// A VM ends.
    pub fn end(&self, clone: &RunningClone, end: VmEnd) {
        // Said before it is left out: see HostLink::ended.
        self.link().ended(clone.clone(), end);
        let mut facts = self.facts.get();
        facts.machines[self.machine].running.remove(&(clone.ticket.clone(), clone.vmid));
        facts.leave(&clone.ticket, clone.vmid);
    }

    /// Requests a ticket, again and again while the scheduler is away.
    pub async fn request(&self, request: RequestTicketRequest) -> Option<Ticket> {
        let begun = Instant::now();
        let wait = Duration::from_millis(request.timeout_ms);
        loop {
            let waited = u64::try_from(begun.elapsed().as_millis()).unwrap();
            let timeout_ms = request.timeout_ms.saturating_sub(waited);
            let again = RequestTicketRequest { timeout_ms, ..request.clone() };
            let mut client = self.client.clone();
            let wait_ms = Duration::from_millis(timeout_ms);
            match call(&self.facts, "request", wait_ms, client.request_ticket(again)).await {
                Outcome::Done(ticket) => {
                    self.facts.log(format_args!(
                        "granted {} of {}: {:?}",
                        ticket.id,
                        ticket.vms,
                        ticket.state()
                    ));
                    self.facts.get().granted(&request.request_id, &ticket.id);
                    return Some(ticket);
                }
                Outcome::Refused(_) => return None,
                Outcome::Unknown if begun.elapsed() > wait + RETRY_FOR => return None,
                Outcome::Unknown => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// The clones of a ticket that are made now; None: nothing is made.
    pub async fn make(
        &self,
        ticket: &Ticket,
        parent: u32,
        vmids: &[u32],
        dice: &mut Dice,
    ) -> Option<Vec<RunningClone>> {
        let clones = clones_of(ticket, parent, vmids);
        // Before it is used: whenever the scheduler asks what runs here, they are part of it.
        self.making().insert(ticket.id.clone(), Making { clones: clones.clone(), ..Making::default() });
        let request = UseTicketRequest {
            id: ticket.id.clone(),
            family: ticket.family.clone(),
            epoch: ticket.epoch,
            host_id: self.host.clone(),
            parent_vmid: parent,
            vmids: vmids.to_vec(),
            host_epoch: self.registered().await,
        };
        let mut client = self.client.clone();
        match call(&self.facts, "use", Duration::ZERO, client.use_ticket(request)).await {
            Outcome::Done(_) => {
                self.facts.log(format_args!("used {} for {vmids:?}", ticket.id));
                self.facts.get().used(&ticket.id, vmids);
            }
            Outcome::Refused(_) => {
                self.making().remove(&ticket.id);
                return None;
            }
            Outcome::Unknown => {
                // It may have been used: then these clones were never made.
                for clone in &clones {
                    self.link().ended(clone.clone(), VmEnd::Ended);
                }
                self.making().remove(&ticket.id);
                return None;
            }
        }
        if dice.percent(8) {
            self.give_back(ticket, &clones).await;
            return None;
        }
        self.start_all(ticket, clones, dice).await
    }

    /// Clones that were asked for by number.
    pub async fn make_loose(
        &self,
        request: RequestTicketRequest,
        parent: u32,
        vmids: &[u32],
        dice: &mut Dice,
    ) -> Option<(Ticket, Vec<RunningClone>)> {
        let before = self.registered().await;
        let request = RequestTicketRequest {
            use_by: Some(parent),
            use_vmids: vmids.to_vec(),
            host_epoch: before,
            ..request
        };
        let ticket = self.request(request).await?;
        let clones = clones_of(&ticket, parent, vmids);
        self.making().insert(ticket.id.clone(), Making { clones: clones.clone(), ..Making::default() });
        // A scheduler that asked in between, what runs here, has taken them for ended.
        if self.epoch() != Some(before) || ticket.state() != TicketState::Used {
            self.give_back(&ticket, &clones).await;
            return None;
        }
        self.facts.get().sums.loose += 1;
        self.facts.get().used(&ticket.id, vmids);
        let made = self.start_all(&ticket, clones, dice).await?;
        Some((ticket, made))
    }

    async fn give_back(&self, ticket: &Ticket, clones: &[RunningClone]) {
        let request = UnuseTicketRequest {
            id: ticket.id.clone(),
            family: ticket.family.clone(),
            epoch: 0,
            host_id: self.host.clone(),
        };
        let mut client = self.client.clone();
        match call(&self.facts, "unuse", Duration::ZERO, client.unuse_ticket(request)).await {
            Outcome::Done(_) => self.facts.get().unused(&ticket.id),
            Outcome::Refused(_) => {}
            Outcome::Unknown => {
                for clone in clones {
                    self.link().ended(clone.clone(), VmEnd::Ended);
                }
            }
        }
        self.making().remove(&ticket.id);
    }

    /// The freeze, and then the clones that come to run.
    async fn start_all(
        &self,
        ticket: &Ticket,
        clones: Vec<RunningClone>,
        dice: &mut Dice,
    ) -> Option<Vec<RunningClone>> {
        let longest = if dice.percent(15) { 2_000 } else { 60 };
        sleep(dice.ms(5, longest)).await;
        let doomed = self.making().remove(&ticket.id).unwrap_or_default().doomed;
        let mut made = Vec::new();
        for clone in clones {
            if doomed.contains(&clone.vmid) || dice.percent(3) {
                self.link().ended(clone, VmEnd::Ended);
            } else {
                self.facts.get().start(self.machine, &clone);
                made.push(clone);
            }
        }
        Some(made)
    }
}

fn clones_of(ticket: &Ticket, parent: u32, vmids: &[u32]) -> Vec<RunningClone> {
    let clone = |vmid: &u32| RunningClone {
        ticket: ticket.id.clone(),
        family: ticket.family.clone(),
        vmid: *vmid,
        vcpus: ticket.vcpus,
        memory_mib: ticket.memory_mib,
        parent_vmid: Some(parent),
    };
    vmids.iter().map(clone).collect()
}

/// A family's number on a machine.
pub fn family_id(machine: usize, number: u64) -> Uuid {
    Uuid::from_u128(0xfa_0000 + (machine as u128) * 0x100 + u128::from(number))
}
