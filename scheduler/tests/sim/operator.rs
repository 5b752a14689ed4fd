//! An operator who cordons, drains and fences hosts at any moment.

use crate::{
    calls::{Outcome, call},
    cluster::ACTIVE,
    dice::Dice,
    facts::Shared,
    network,
};
use patina_proto::v1::{FenceHostRequest, HostScheduling, SetHostSchedulingRequest};
use scheduler::client::Client;
use std::time::Duration;
use tokio::time::sleep;

pub async fn work(facts: Shared, mut dice: Dice) -> turmoil::Result {
    let client = network::connection().client();
    let machines = facts.get().machines.len();
    loop {
        sleep(dice.ms(200, 2_000)).await;
        if turmoil::sim_elapsed().unwrap_or_default() > ACTIVE {
            break;
        }
        let machine = usize::try_from(dice.roll(machines as u64))?;
        match dice.roll(8) {
            0..3 => fence(&facts, &client, machine).await,
            3 => drop(set(&facts, &client, machine, HostScheduling::Cordoned).await),
            4 => drop(set(&facts, &client, machine, HostScheduling::Draining).await),
            _ => drop(set(&facts, &client, machine, HostScheduling::Open).await),
        }
    }
    for machine in 0..machines {
        while !set(&facts, &client, machine, HostScheduling::Open).await {
            sleep(Duration::from_millis(500)).await;
        }
    }
    std::future::pending().await
}

/// Whether it was answered.
async fn set(facts: &Shared, client: &Client, machine: usize, scheduling: HostScheduling) -> bool {
    let host_id = facts.get().machines[machine].id.to_string();
    facts.log(format_args!("host {machine} is to be {scheduling:?}"));
    let request = SetHostSchedulingRequest { host_id, scheduling: scheduling.into() };
    let mut client = client.clone();
    let set = call(facts, "set", Duration::ZERO, client.set_host_scheduling(request)).await;
    if let Outcome::Done(change) = &set {
        facts.get().sums.scheduled += 1;
        if change.host.as_ref().map(|host| host.scheduling()) != Some(scheduling) {
            facts.wrong(format_args!("host {machine} is {:?}, not {scheduling:?}", change.host));
        }
    }
    !matches!(set, Outcome::Unknown)
}

async fn fence(facts: &Shared, client: &Client, machine: usize) {
    let host_id = facts.get().machines[machine].id.to_string();
    facts.log(format_args!("host {machine} is to be fenced"));
    // Its clones may be lost from now on.
    facts.get().machines[machine].may_be_fenced = true;
    let mut client = client.clone();
    match call(facts, "fence", Duration::ZERO, client.fence_host(FenceHostRequest { host_id })).await {
        Outcome::Done(_) => {
            facts.get().sums.fenced += 1;
            // What the ledger says of it is seen a tick later.
            sleep(Duration::from_millis(50)).await;
            let now_ms = u64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_millis()).unwrap();
            let machine = &mut facts.get().machines[machine];
            (machine.may_be_fenced, machine.fenced_ms) = (false, Some(now_ms));
        }
        Outcome::Refused(_) => facts.get().machines[machine].may_be_fenced = false,
        // It may be carried out at any time.
        Outcome::Unknown => {}
    }
}
