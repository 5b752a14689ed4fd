//! A host's daemon, as vmmd is one, on VMs that are numbers.

use crate::{
    calls::{Outcome, call, finished},
    dice::Dice,
    facts::{self, Shared},
    network,
};
use patina_proto::v1::{HostInfo, RequestTicketRequest, RunningClone, Ticket, VmEnd};
use scheduler::{
    client::Client,
    host::admission::{Admission, Admitted, Authorization, CloneRequest, Reservation, Vms},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};
use tokio::time::sleep;
use uuid::Uuid;

pub const MEMORY_MIB: u32 = 256;
/// How long it may take to be admitted: registered, asked, and what came too late given back.
const ADMIT: Duration = Duration::from_secs(20);

pub struct Daemon {
    pub facts: Shared,
    pub machine: usize,
    pub client: Client,
    pub admission: Admission,
    /// Of the clones that run.
    reservations: Mutex<BTreeMap<facts::Clone, Reservation>>,
}

/// The numbers on its machine.
struct Numbers(Weak<Daemon>);

impl Vms for Numbers {
    fn running(&self) -> Vec<RunningClone> {
        let Some(daemon) = self.0.upgrade() else { return Vec::new() };
        let running: Vec<_> = daemon.facts.get().machines[daemon.machine].running.values().cloned().collect();
        daemon.facts.log(format_args!("host {} registers: {} run", daemon.machine, running.len()));
        running
    }

    fn masters(&self) -> Vec<String> {
        let Some(daemon) = self.0.upgrade() else { return Vec::new() };
        (0..crate::cluster::FAMILIES).map(|number| daemon.family(number).to_string()).collect()
    }

    fn end(&self, family: &str, ticket: &str, vmids: &[u32], reason: &str) {
        let Some(daemon) = self.0.upgrade() else { return };
        daemon.facts.log(format_args!("host {} is to end {vmids:?} of {ticket}: {reason}", daemon.machine));
        let is_meant = |clone: &&RunningClone| {
            clone.family == family && clone.ticket == ticket && vmids.contains(&clone.vmid)
        };
        let all = daemon.facts.get().machines[daemon.machine].running.clone();
        for clone in all.values().filter(is_meant) {
            daemon.facts.get().sums.killed += 1;
            if !daemon.facts.get().unwanted.contains(&(clone.ticket.clone(), clone.vmid)) {
                let text = format!("{} of {ticket} is ended, and nobody wants that: {reason}", clone.vmid);
                daemon.facts.wrong(text);
            }
            daemon.end(clone, VmEnd::Killed);
        }
    }
}

impl Daemon {
    pub fn start(facts: &Shared, machine: usize) -> Arc<Self> {
        let (id, cpus, found, identity) = {
            let mut facts = facts.get();
            let machine = &mut facts.machines[machine];
            (machine.id, machine.cpus, machine.running.clone(), machine.new_identity())
        };
        let info = HostInfo {
            id: id.to_string(),
            name: format!("host-{machine}"),
            address: "nowhere".into(),
            cpus,
            memory_mib: u64::from(cpus) * u64::from(MEMORY_MIB),
            identity: Some(identity),
            ..HostInfo::default()
        };
        let connection = network::connection();
        let client = connection.client();
        let admission = Admission::new(connection, info);
        let reservations =
            found.into_iter().map(|(name, clone)| (name, admission.reservation(clone))).collect();
        let reservations = Mutex::new(reservations);
        let daemon = Arc::new(Self { facts: facts.clone(), machine, client, admission, reservations });
        daemon.admission.register(Numbers(Arc::downgrade(&daemon)));
        daemon
    }

    /// A family whose master is here. Masters end when the machine does, and others begin then.
    pub fn family(&self, number: u64) -> Uuid {
        let boots = self.facts.get().machines[self.machine].boots;
        let (machine, boots) = (self.machine as u128, u128::from(boots));
        Uuid::from_u128(0xfa_0000_0000 + machine * 0x100_0000 + boots * 0x100 + u128::from(number))
    }

    /// Watches whether it is registered and has said all it has to say.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let is_registered = self.admission.registered(Duration::ZERO).await;
            let settled = is_registered && self.admission.link().unwrap().unnoted() == 0;
            self.facts.get().machines[self.machine].settled = settled;
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// A VM ends.
    pub fn end(&self, clone: &RunningClone, end: VmEnd) {
        let name = (clone.ticket.clone(), clone.vmid);
        // First said, then left out: as the reservation wants it.
        if let Some(mut reservation) = self.reservations.lock().unwrap().remove(&name) {
            reservation.ended(end);
        }
        let mut facts = self.facts.get();
        facts.machines[self.machine].running.remove(&name);
        facts.leave(&clone.ticket, clone.vmid);
    }

    pub async fn request(&self, request: RequestTicketRequest) -> Option<Ticket> {
        let (request_id, wait) = (request.request_id.clone(), Duration::from_millis(request.timeout_ms));
        let requested = finished(&self.facts, "request", wait, self.admission.request(request)).await;
        let Outcome::Done(ticket) = requested else { return None };
        self.facts.log(format_args!("granted {} of {}: {:?}", ticket.id, ticket.vms, ticket.state()));
        self.facts.get().granted(&request_id, &ticket.id);
        Some(ticket)
    }

    /// The clones that are made; None: there are none, and whoever cloned knows so.
    pub async fn make(
        self: &Arc<Self>,
        clone_request: CloneRequest,
        authorization: Authorization,
        dice: &mut Dice,
    ) -> Option<(Ticket, Vec<RunningClone>)> {
        let admitted =
            match finished(&self.facts, "admit", ADMIT, self.admission.admit(&clone_request, &authorization))
                .await
            {
                Outcome::Done(admitted) => admitted,
                Outcome::Refused(_) => {
                    self.facts.get().machines[self.machine].free(&clone_request);
                    return None;
                }
                Outcome::Unknown => return None,
            };
        let ticket = admitted.ticket().clone();
        self.facts.log(format_args!("used {} for {:?}", ticket.id, clone_request.vmids));
        if let Authorization::Immediate(request_id) = authorization {
            self.facts.get().granted(&request_id.to_string(), &ticket.id);
            self.facts.get().sums.immediate += 1;
        }
        self.facts.get().used(self.machine, &ticket.id, &clone_request.vmids);
        if dice.percent(8) {
            self.give_back(&clone_request, admitted).await;
            return None;
        }
        if dice.percent(8) {
            let (daemon, clone_request) = (Arc::clone(self), clone_request.clone());
            let (ticket, after) = (ticket.id.clone(), dice.ms(0, 100));
            tokio::spawn(async move { daemon.kill_early(&clone_request, &ticket, after).await });
        }
        let made = self.start_all(admitted, dice).await;
        Some((ticket, made))
    }

    async fn give_back(&self, clone_request: &CloneRequest, admitted: Admitted) {
        let ticket = admitted.ticket().id.clone();
        let given = async { Ok::<_, scheduler::client::calls::Failed>(admitted.give_back().await) };
        if let Outcome::Done(true) = finished(&self.facts, "give back", Duration::ZERO, given).await {
            self.facts.get().unused(self.machine, &ticket);
            self.facts.get().machines[self.machine].free(clone_request);
        }
    }

    /// Somebody does not want them while they are being made.
    async fn kill_early(&self, clone_request: &CloneRequest, ticket: &str, after: Duration) {
        sleep(after).await;
        self.facts.get().unwanted(ticket, &clone_request.vmids);
        let request = patina_proto::v1::KillRequest {
            family: clone_request.family.clone(),
            vmids: clone_request.vmids.clone(),
            ticket: String::new(),
            reason: "not wanted after all".into(),
        };
        let mut client = self.client.clone();
        if let Outcome::Done(_) =
            call(&self.facts, "kill", Duration::from_secs(5), client.kill(request)).await
        {
            self.facts.get().killed(self.machine, ticket, &clone_request.vmids);
        }
    }

    /// The freeze, and then the clones that come to run.
    async fn start_all(&self, admitted: Admitted, dice: &mut Dice) -> Vec<RunningClone> {
        let longest = if dice.percent(15) { 2_000 } else { 60 };
        sleep(dice.ms(5, longest)).await;
        let mut made = Vec::new();
        for reservation in admitted.into_reservations() {
            // Who does not look whether it is still wanted hears so when it runs.
            if dice.percent(3) || (dice.percent(50) && reservation.kill_requested().is_some()) {
                continue;
            }
            let clone = reservation.of().clone();
            self.facts.get().start(self.machine, &clone);
            self.reservations.lock().unwrap().insert((clone.ticket.clone(), clone.vmid), reservation);
            match self.admission.started(&clone.family, clone.vmid) {
                Some(_) => {
                    self.facts.get().sums.kill_requested += 1;
                    self.end(&clone, VmEnd::Killed);
                }
                None => made.push(clone),
            }
        }
        made
    }
}
