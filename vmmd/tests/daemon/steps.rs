//! A clone, step by step, with vmmd or the scheduler killed at each: afterwards the ledger is what
//! runs.

use crate::{
    bench::{Bench, Client, kill, ready, tell, vm},
    streams::ask,
    tickets::granted,
};
use patina_proto::v1::{
    ListHostsRequest, ListTicketsRequest, ListVmsRequest, ReleaseTicketRequest, TicketState, VmState,
};
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// Where a clone stands still.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// The scheduler was asked for clones by number and has not answered.
    Asked,
    /// The ticket is used, the VM is being frozen.
    Frozen,
    /// The clones were sent their generation.
    Sent,
    /// And their records stand among the others'.
    Recorded,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Vmmd,
    Scheduler,
}

const SOON: Duration = Duration::from_secs(20);

pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let turns = async {
        while !is_so().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(timeout(SOON, turns).await.is_ok(), "{what}");
}

/// Held, a stand-in stands still there.
pub struct Hold {
    path: PathBuf,
    file: File,
}

impl Hold {
    pub fn new(path: PathBuf) -> Self {
        let file = File::create(&path).unwrap();
        Self { path, file }
    }

    pub fn lock(&self) {
        // Whoever came there before did not stop.
        for vmid in 0..200 {
            fs::remove_file(self.mark(vmid)).ok();
        }
        flock(&self.file, FlockOperation::LockExclusive).unwrap();
    }

    pub fn unlock(&self) {
        flock(&self.file, FlockOperation::Unlock).unwrap();
    }

    /// Whether a VM has ever come there.
    pub fn is_reached(&self) -> bool {
        (0..200).any(|vmid| self.mark(vmid).exists())
    }

    /// Waits until so many VMs have come there: their vmids.
    pub async fn reached(&self, count: usize) -> Vec<u32> {
        let mut vmids = Vec::new();
        until("they come to where they are held", async || {
            vmids = (0..200).filter(|vmid| self.mark(*vmid).exists()).collect();
            vmids.len() == count
        })
        .await;
        vmids.iter().for_each(|vmid| fs::remove_file(self.mark(*vmid)).unwrap());
        vmids
    }

    fn mark(&self, vmid: u32) -> PathBuf {
        PathBuf::from(format!("{}.{vmid}", self.path.display()))
    }
}

/// How many clones there are by vmmd, if no process runs that is no VM's.
pub async fn running(bench: &Bench, client: &mut Client) -> Option<usize> {
    let vms = client.list_vms(ListVmsRequest::default()).await.unwrap().into_inner().vms;
    let run: Vec<_> = vms.iter().filter(|vm| vm.state() != VmState::Ended).collect();
    let pids: BTreeSet<u32> = run.iter().map(|vm| vm.pid).collect();
    (pids == bench.processes()).then(|| run.iter().filter(|vm| vm.vmid > 0).count())
}

/// How many clones there are by the ledger of `epoch` or a later one, if it holds exactly as many.
pub async fn known(bench: &Bench, epoch: u64) -> Option<usize> {
    let mut scheduler = bench.scheduler().await;
    let tickets = scheduler.list_tickets(ListTicketsRequest::default()).await.ok()?.into_inner().tickets;
    let live: u32 = tickets.iter().filter(|t| t.state() == TicketState::Used).map(|ticket| ticket.live).sum();
    let hosts = scheduler.list_hosts(ListHostsRequest::default()).await.ok()?.into_inner().hosts;
    // One that was just started knows of no host.
    let host = hosts.first()?;
    let is_so = host.alive && host.epoch >= epoch && host.held_vms == live;
    is_so.then_some(usize::try_from(live).unwrap())
}

pub async fn epoch(bench: &Bench) -> u64 {
    let mut scheduler = bench.scheduler().await;
    scheduler.list_hosts(ListHostsRequest::default()).await.unwrap().into_inner().hosts[0].epoch
}

/// Has the parent clone two, kills somebody in between; how many clones there are in the end.
async fn round(
    bench: &mut Bench,
    mut client: Client,
    holds: &[Hold; 2],
    step: Step,
    victim: Victim,
) -> Client {
    let ticket = match step {
        Step::Asked => None,
        _ => Some(granted(&mut client, "web", 2, 2).await),
    };
    let before = epoch(bench).await;
    let args = ticket.as_ref().map_or(json!({"count": 2}), |ticket| json!({"ticket": ticket})).to_string();
    match step {
        Step::Asked => bench.signal_scheduler(Signal::STOP),
        Step::Frozen => holds[0].lock(),
        Step::Sent | Step::Recorded => holds[1].lock(),
    }
    let mut caller = client.clone();
    let call = tokio::spawn(async move { ask(&mut caller, "web", "clone", &args).await });
    match step {
        // It cannot be seen from outside how far the question is; wherever it is, what follows
        // holds.
        Step::Asked => sleep(Duration::from_millis(200)).await,
        Step::Frozen => assert_eq!(holds[0].reached(1).await, [0]),
        Step::Sent | Step::Recorded => {
            let vmids = holds[1].reached(2).await;
            if step == Step::Recorded {
                let records: Vec<_> =
                    vmids.iter().map(|vmid| bench.path(&format!("state/vms/web.{vmid}/vm.json"))).collect();
                until("they have records", async || records.iter().all(|record| record.exists())).await;
            }
        }
    }
    match victim {
        Victim::Vmmd => {
            bench.stop(Signal::KILL);
        }
        Victim::Scheduler => bench.signal_scheduler(Signal::KILL),
    }
    holds.iter().for_each(Hold::unlock);
    let made = match victim {
        Victim::Vmmd => {
            if step == Step::Asked {
                bench.signal_scheduler(Signal::CONT);
            }
            assert!(call.await.is_err(), "{step:?}: nobody answers");
            client = bench.start().await;
            None
        }
        Victim::Scheduler => {
            bench.start_scheduler().await;
            let answer = call.await.unwrap();
            // It comes back in time for what asks again, and is not asked once a ticket is used.
            assert_eq!(answer["ok"]["vmids"].as_array().map(Vec::len), Some(2), "{step:?}: {answer}");
            Some(2)
        }
    };
    let what = format!("{step:?}, {victim:?}: the ledger is what runs");
    until(&what, async || {
        let runs = running(bench, &mut client).await;
        runs.is_some() && runs == known(bench, before + 1).await && made.is_none_or(|made| runs == Some(made))
    })
    .await;
    if let Some(ticket) = ticket {
        let mut scheduler = bench.scheduler().await;
        let release = ReleaseTicketRequest { id: ticket, family: String::new() };
        // One that is used is not given back.
        scheduler.release_ticket(release).await.ok();
    }
    client
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn whoever_is_killed_at_whatever_step_of_a_clone_the_ledger_is_what_runs() {
    tell(|mut bench| async move {
        bench.more = vec!["--max-vms", "4"];
        bench.start_scheduler().await;
        let mut client = bench.start().await;
        let holds = ["freeze", "start"].map(|name| Hold::new(bench.path(name)));
        let words = ["freeze", "start"].map(|name| format!("hold-{name}={}", bench.path(name).display()));
        ready(&mut client, vm("web", &words.join(" "))).await;
        for step in [Step::Asked, Step::Frozen, Step::Sent, Step::Recorded] {
            for victim in [Victim::Vmmd, Victim::Scheduler] {
                client = round(&mut bench, client, &holds, step, victim).await;
                let vms = client.list_vms(ListVmsRequest::default()).await.unwrap().into_inner().vms;
                for clone in vms.iter().filter(|vm| vm.vmid > 0 && vm.state() != VmState::Ended) {
                    kill(&mut client, &clone.name).await;
                }
                until("all is free", async || known(&bench, 0).await == Some(0)).await;
            }
        }
        // Nothing is held for what was never made.
        granted(&mut client, "web", 4, 4).await;
    });
}
