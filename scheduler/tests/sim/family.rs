//! What families do: they request tickets, clone, meet, leave results, join, kill, and give tickets
//! back.

use crate::{
    calls::{Outcome, call, finished},
    cluster::{ACTIVE, LOST_AFTER_MS},
    daemon::{Daemon, MEMORY_MIB},
    dice::Dice,
    facts::{self, Part, Plan},
};
use patina_proto::v1::{
    JoinLeave, JoinRequest, JoinWait, KillRequest, PlacementPolicy, RequestTicketRequest, RunningClone,
    SyncRequest, Ticket, VmEnd, join_request::Side,
};
use scheduler::host::admission::{Authorization, CloneRequest};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{task::JoinHandle, time::sleep};
use uuid::Uuid;

/// How long a VM waits for the others.
const SYNC: Duration = Duration::from_secs(8);
/// How long a VM waits before it comes again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a parent waits for its clones.
const JOIN: Duration = Duration::from_secs(10);

/// The master of a family, as long as there is time.
pub async fn live(daemon: Arc<Daemon>, number: u64, mut dice: Dice) {
    loop {
        sleep(dice.ms(0, 700)).await;
        if turmoil::sim_elapsed().unwrap_or_default() > ACTIVE {
            return;
        }
        daemon.facts.get().machines[daemon.machine].busy += 1;
        act(&daemon, number, &mut dice).await;
        daemon.facts.get().machines[daemon.machine].busy -= 1;
    }
}

async fn act(daemon: &Arc<Daemon>, number: u64, dice: &mut Dice) {
    let family = daemon.family(number);
    let (vms, vcpus) =
        (u32::try_from(dice.between(1, 4)).unwrap(), u32::try_from(dice.between(1, 2)).unwrap());
    let more = u32::try_from(dice.roll(2)).unwrap();
    let request = RequestTicketRequest {
        family: family.to_string(),
        request_id: dice.uuid().to_string(),
        max_cpus: (vms + more) * vcpus,
        min_vms: vms,
        min_cpus_per_vm: 1,
        vcpus,
        memory_mib: MEMORY_MIB,
        timeout_ms: [0, 500, 3_000][usize::try_from(dice.roll(3)).unwrap()],
        host_ids: vec![daemon.admission.host_id().to_owned()],
        ..RequestTicketRequest::default()
    };
    let clone_request = |count| CloneRequest {
        family: family.to_string(),
        parent_vmid: 0,
        vcpus,
        memory_mib: MEMORY_MIB,
        vmids: daemon.facts.get().machines[daemon.machine].new_vmids(family, count),
    };
    let of_ticket = |ticket: &Ticket| Authorization::Ticket { id: ticket.id.clone(), epoch: ticket.epoch };
    let (clone_request, authorization) = match dice.roll(10) {
        // By number.
        0..3 => (clone_request(vms), Authorization::Immediate(dice.uuid())),
        // Nothing is made of it.
        3 => {
            let request = RequestTicketRequest { host_ids: Vec::new(), ..request };
            let Some(ticket) = daemon.request(request).await else { return };
            sleep(dice.ms(0, 300)).await;
            if dice.percent(60) {
                let release = daemon.admission.release(&ticket.id, &ticket.family);
                finished(&daemon.facts, "release", Duration::ZERO, release).await;
            }
            return;
        }
        // On several machines.
        4 | 5 => {
            return spread(daemon, RequestTicketRequest { max_cpus: 6, min_vms: 3, ..request }, dice).await;
        }
        // The caller goes away; nobody else knows of what it is granted.
        6 if dice.percent(30) => {
            let request = RequestTicketRequest { request_id: String::new(), ..request };
            tokio::time::timeout(dice.ms(0, 100), daemon.admission.request(request)).await.ok();
            return;
        }
        _ => {
            let Some(ticket) = daemon.request(request).await else { return };
            sleep(dice.ms(0, 300)).await;
            (clone_request(ticket.vms), of_ticket(&ticket))
        }
    };
    if let Some((ticket, made)) = daemon.make(clone_request, authorization, dice).await {
        let (rounds, stays) = (dice.roll(4), dice.percent(12));
        together(daemon, &ticket, made, rounds, stays, dice).await;
    }
}

/// Clones on all machines on which a ticket has VMs: first here, then on the others, each of which
/// uses its own part.
async fn spread(daemon: &Arc<Daemon>, request: RequestTicketRequest, dice: &mut Dice) {
    let request = RequestTicketRequest {
        host_ids: Vec::new(),
        policy: PlacementPolicy::Spread.into(),
        min_cpus_per_vm: 1,
        vcpus: 1,
        ..request
    };
    let Some(ticket) = daemon.request(request).await else { return };
    let family: Uuid = ticket.family.parse().unwrap();
    let home = daemon.admission.host_id().to_owned();
    let authorization =
        Authorization::Part { id: ticket.id.clone(), epoch: ticket.epoch, parent_host: home.clone() };
    let clone_request = |vms| CloneRequest {
        family: ticket.family.clone(),
        parent_vmid: 0,
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        vmids: daemon.facts.get().machines[daemon.machine].new_vmids(family, vms),
    };
    let Some(here) = ticket.placements.iter().find(|place| place.host_id == home) else { return };
    let request = clone_request(here.vms);
    let Some((used, made)) = daemon.make(request, authorization.clone(), dice).await else { return };
    let (rounds, stays) = (dice.roll(4), dice.percent(12));
    for place in ticket.placements.iter().filter(|place| place.host_id != home) {
        // One that forgets to is as one that cannot.
        if dice.percent(10) {
            continue;
        }
        let clone_request = clone_request(place.vms);
        let part = Part {
            clone_request,
            authorization: authorization.clone(),
            rounds,
            stays,
            seed: dice.roll(u64::MAX),
        };
        let mut facts = daemon.facts.get();
        let machine = facts.machines.iter_mut().find(|machine| machine.id.to_string() == place.host_id);
        machine.unwrap().parts.push_back(part);
    }
    together(daemon, &used, made, rounds, stays, dice).await;
}

/// Makes what other machines want made here.
pub async fn make_parts(daemon: Arc<Daemon>) {
    loop {
        let part = {
            let mut facts = daemon.facts.get();
            let machine = &mut facts.machines[daemon.machine];
            let part = machine.parts.pop_front();
            machine.busy += u64::from(part.is_some());
            part
        };
        if let Some(part) = part {
            let daemon = Arc::clone(&daemon);
            tokio::spawn(async move {
                make_part(&daemon, part).await;
                daemon.facts.get().machines[daemon.machine].busy -= 1;
            });
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn make_part(daemon: &Arc<Daemon>, part: Part) {
    let Part { clone_request, authorization, rounds, stays, seed } = part;
    let mut dice = Dice::new(seed, 3);
    sleep(dice.ms(0, 300)).await;
    let family = clone_request.family.clone();
    let Some((ticket, made)) = daemon.make(clone_request, authorization, &mut dice).await else { return };
    daemon.facts.get().sums.parts += 1;
    let plan = Plan { machine: daemon.machine, family, rounds, stays };
    daemon.facts.get().meet(&ticket.id, &plan, made.iter().map(|clone| clone.vmid));
    let group = Arc::new(Group { daemon: Arc::clone(daemon), ticket: ticket.id.clone(), plan });
    for life in clones_live(&group, &made, &mut dice) {
        if life.await.is_err() {
            daemon.facts.wrong("a clone's life has panicked");
        }
    }
}

/// A ticket, its VMs, and what they will do. All of them are on one machine, and go on with what
/// they were about when its daemon is started again.
struct Group {
    daemon: Arc<Daemon>,
    ticket: String,
    plan: Plan,
}

impl Group {
    /// Nothing has broken so far: what breaks shows for a while after it is whole again.
    fn is_whole(&self) -> bool {
        self.daemon.facts.get().sums.faults == 0
    }

    /// A VM goes to the next meeting, as often as it takes. Returns whether it has met the others;
    /// else it is not one of them any more.
    async fn sync(&self, vmid: u32) -> bool {
        let facts = &self.daemon.facts;
        let round = facts.get().arrives(&self.ticket, vmid);
        let met = self.sync_until_answered(vmid, round).await;
        facts.get().comes_back(&self.ticket, vmid);
        met
    }

    async fn sync_until_answered(&self, vmid: u32, round: u64) -> bool {
        let facts = &self.daemon.facts;
        let request = SyncRequest {
            ticket: self.ticket.clone(),
            family: self.plan.family.clone(),
            vmid,
            timeout_ms: u64::try_from(SYNC.as_millis()).unwrap(),
            after_round: Some(round - 1),
        };
        for times in 0.. {
            let mut client = self.daemon.client.clone();
            let answer = call(facts, "sync", SYNC, client.sync(request.clone())).await;
            // What the ledger has is looked at after each turn of all machines: this answer may be
            // of the same turn.
            let now_ms = turmoil::sim_elapsed().unwrap_or_default().as_millis();
            facts.get().look(u64::try_from(now_ms).unwrap(), LOST_AFTER_MS);
            match answer {
                Outcome::Done(met) => {
                    let text = format!("{vmid} of {} has met {} in {}", self.ticket, met.arrived, met.round);
                    facts.log(text);
                    // A clone that was lost has missed what the others met at meanwhile.
                    let has_missed = facts.get().was_lost(&self.ticket, vmid) && met.round > round;
                    if met.round != round && !has_missed {
                        facts.wrong(format_args!("{vmid} of {} comes from round {round}", self.ticket));
                    }
                    facts.get().met(&self.ticket, vmid, met.round);
                    facts.get().sums.met_later += u64::from(times > 0);
                    return true;
                }
                Outcome::Refused(reason) if reason == "BARRIER_TIMEOUT" && !self.is_whole() => {}
                // The host of the VM that cloned was given up; its clones elsewhere go on.
                Outcome::Refused(reason) if reason == "UNKNOWN_VM" && vmid == 0 && self.was_left(vmid) => {
                    if !facts.get().may_come_back(&self.ticket) {
                        return false;
                    }
                    sleep(AGAIN).await;
                }
                // Its host was given up, and is not back yet.
                Outcome::Refused(reason) if reason == "UNKNOWN_VM" && self.is_away(vmid) => {
                    sleep(AGAIN).await;
                }
                Outcome::Refused(reason) => {
                    // One that is killed while it waits is told so; one whose host was given up,
                    // too.
                    if reason != "UNKNOWN_VM" || vmid == 0 {
                        facts.wrong(format_args!("VM {vmid} does not meet at {}: {reason}", self.ticket));
                    }
                    return false;
                }
                Outcome::Unknown => sleep(AGAIN).await,
            }
        }
        false
    }

    /// Whether the ledger has ever had a VM as lost.
    fn was_left(&self, vmid: u32) -> bool {
        self.daemon.facts.get().was_lost(&self.ticket, vmid)
    }

    fn is_running(&self, vmid: u32) -> bool {
        self.daemon.facts.get().is_running(self.daemon.machine, &self.ticket, vmid)
    }

    /// Whether a clone runs that the ledger had as lost. One that was killed ends when its host is
    /// back, if the ledger has heard of that.
    fn is_away(&self, vmid: u32) -> bool {
        let facts = self.daemon.facts.get();
        facts.is_running(self.daemon.machine, &self.ticket, vmid) && facts.was_lost(&self.ticket, vmid)
    }

    fn has_rounds_left(&self, vmid: u32) -> bool {
        self.daemon.facts.get().rounds(&self.ticket, vmid) < self.plan.rounds
    }

    /// The life of a clone.
    async fn clone_lives(&self, clone: RunningClone, mut dice: Dice) {
        while self.has_rounds_left(clone.vmid) {
            sleep(dice.ms(0, 200)).await;
            if dice.percent(5) && self.is_running(clone.vmid) {
                self.daemon.end(&clone, VmEnd::Ended);
            }
            if !self.is_running(clone.vmid) || !self.sync(clone.vmid).await {
                break;
            }
        }
        self.daemon.facts.get().leave(&self.ticket, clone.vmid);
        if self.plan.stays {
            return;
        }
        sleep(dice.ms(0, 400)).await;
        if dice.percent(70) && self.is_running(clone.vmid) {
            let status = i32::try_from(clone.vmid).unwrap();
            self.daemon.facts.get().unwanted(&self.ticket, &[clone.vmid]);
            let leave = JoinLeave { vmid: clone.vmid, status, data: vec![1, 2, 3], noreport: false };
            let mut client = self.daemon.client.clone();
            let request = self.join(Side::Leave(leave));
            if let Outcome::Done(_) =
                call(&self.daemon.facts, "leave", Duration::ZERO, client.join(request)).await
            {
                self.daemon.facts.get().sums.left += 1;
            }
        }
        if self.is_running(clone.vmid) {
            self.daemon.end(&clone, VmEnd::Ended);
        }
    }

    fn join(&self, side: Side) -> JoinRequest {
        JoinRequest { ticket: self.ticket.clone(), family: self.plan.family.clone(), side: Some(side) }
    }

    async fn kill(&self, vmids: Vec<u32>) {
        self.daemon.facts.get().unwanted(&self.ticket, &vmids);
        let request = KillRequest {
            family: self.plan.family.clone(),
            vmids: vmids.clone(),
            ticket: String::new(),
            reason: "the family wants it".into(),
        };
        let mut client = self.daemon.client.clone();
        let killed = call(&self.daemon.facts, "kill", Duration::from_secs(5), client.kill(request)).await;
        if let Outcome::Done(_) = killed
            && self.is_whole()
            && vmids.iter().any(|vmid| self.is_running(*vmid))
        {
            self.daemon
                .facts
                .wrong(format_args!("one of {vmids:?} of {} runs after it was killed", self.ticket));
        }
    }

    /// The parent waits for all of them.
    async fn join_all(&self, made: &[RunningClone]) {
        let wait = JoinWait { vmid: 0, timeout_ms: u64::try_from(JOIN.as_millis()).unwrap() };
        let mut client = self.daemon.client.clone();
        let request = self.join(Side::Wait(wait));
        match call(&self.daemon.facts, "join", JOIN, client.join(request)).await {
            Outcome::Done(joined) => {
                self.daemon.facts.get().sums.joined += 1;
                let left = |vmid| joined.results.iter().find(|result| result.vmid == vmid);
                for clone in made.iter().filter(|_| self.is_whole()) {
                    let ended = !self.is_running(clone.vmid);
                    let result =
                        left(clone.vmid).filter(|r| r.end() != VmEnd::Joined || r.status as u32 == r.vmid);
                    if !ended || result.is_none() {
                        let text =
                            format!("{} joins {} with {:?}", self.ticket, clone.vmid, left(clone.vmid));
                        self.daemon.facts.wrong(text);
                    }
                }
            }
            Outcome::Refused(reason) if self.is_whole() => {
                self.daemon.facts.wrong(format_args!("{} is not joined: {reason}", self.ticket));
            }
            Outcome::Refused(_) | Outcome::Unknown => {}
        }
    }
}

/// A ticket's life, from when its clones run.
async fn together(
    daemon: &Arc<Daemon>,
    ticket: &Ticket,
    made: Vec<RunningClone>,
    rounds: u64,
    stays: bool,
    dice: &mut Dice,
) {
    let plan = Plan { machine: daemon.machine, family: ticket.family.clone(), rounds, stays };
    daemon.facts.get().meet(&ticket.id, &plan, made.iter().map(|clone| clone.vmid).chain([0]));
    let group = Arc::new(Group { daemon: Arc::clone(daemon), ticket: ticket.id.clone(), plan });
    let lives = clones_live(&group, &made, dice);
    parent_lives(&group, made, lives, dice).await;
}

/// What was begun before the daemon of a machine has crashed goes on. Returns the clones that have
/// something to do.
pub fn go_on(daemon: &Arc<Daemon>, dice: &mut Dice) -> BTreeSet<facts::Clone> {
    let mut busy = BTreeSet::new();
    let unfinished = daemon.facts.get().unfinished(daemon.machine);
    for (ticket, plan, members) in unfinished {
        let group = Arc::new(Group { daemon: Arc::clone(daemon), ticket, plan });
        let running = daemon.facts.get().machines[daemon.machine].running.clone();
        let is_member = |clone: &RunningClone| clone.ticket == group.ticket && members.contains(&clone.vmid);
        let found: Vec<_> = running.into_values().filter(is_member).collect();
        busy.extend(found.iter().map(|clone| (clone.ticket.clone(), clone.vmid)));
        let (lives, mut dice) = (clones_live(&group, &found, dice), Dice::new(dice.roll(u64::MAX), 2));
        if members.contains(&0) {
            daemon.facts.get().machines[daemon.machine].busy += 1;
            tokio::spawn(async move {
                parent_lives(&group, found, lives, &mut dice).await;
                group.daemon.facts.get().machines[group.daemon.machine].busy -= 1;
            });
        }
    }
    busy
}

fn clones_live(group: &Arc<Group>, clones: &[RunningClone], dice: &mut Dice) -> Vec<JoinHandle<()>> {
    let lives = clones.iter().map(|clone| {
        let (group, clone) = (Arc::clone(group), clone.clone());
        let dice = Dice::new(dice.roll(u64::MAX), 1);
        tokio::spawn(async move { group.clone_lives(clone, dice).await })
    });
    lives.collect()
}

/// The parent's part of a ticket's life, with its clones beside it.
async fn parent_lives(
    group: &Arc<Group>,
    made: Vec<RunningClone>,
    lives: Vec<JoinHandle<()>>,
    dice: &mut Dice,
) {
    let facts = &group.daemon.facts;
    while group.has_rounds_left(0) {
        sleep(dice.ms(0, 200)).await;
        if !group.sync(0).await {
            break;
        }
    }
    facts.get().leave(&group.ticket, 0);
    if group.plan.stays {
        return;
    }
    if dice.percent(25) && !made.is_empty() {
        group.kill(made.iter().take(2).map(|clone| clone.vmid).collect()).await;
    }
    group.join_all(&made).await;
    for life in lives {
        if life.await.is_err() {
            facts.wrong("a clone's life has panicked");
        }
    }
}
