//! A scheduler that is killed while it works.

use crate::{
    fake::{Dice, FakeHost, all_tickets, family, get, grant, hosts, release, request},
    server::Server,
};
use patina_proto::v1::{RequestTicketRequest, Ticket, TicketState, VmEnd};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::task::JoinSet;

const ROUNDS: u64 = 12;
const CALLERS: usize = 24;

/// What the callers were told: by ticket, the last state, and whether something was asked of it since.
type Told = Arc<Mutex<HashMap<String, (TicketState, bool)>>>;

/// Until the scheduler is gone: a ticket, sometimes clones, sometimes given back.
async fn caller(
    host: Arc<FakeHost>,
    client: scheduler::client::Client,
    told: Told,
    family: String,
    seed: u64,
) {
    let mut dice = Dice(seed);
    let mut vmid = u32::try_from(seed % 1000).unwrap() * 1_000_000 + 1;
    loop {
        let Ok(ticket) = grant(&client, &family, 2).await else { return };
        told.lock().unwrap().insert(ticket.id.clone(), (TicketState::Granted, false));
        let next = match dice.roll(3) {
            0 => continue,
            1 => {
                told.lock().unwrap().insert(ticket.id.clone(), (TicketState::Granted, true));
                release(&client, &ticket.id).await
            }
            _ => {
                told.lock().unwrap().insert(ticket.id.clone(), (TicketState::Granted, true));
                vmid += 2;
                host.clone_with(&ticket, 0, &[vmid, vmid + 1]).await
            }
        };
        let Ok(ticket) = next else { return };
        told.lock().unwrap().insert(ticket.id.clone(), (ticket.state(), false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there_after_a_kill_at_any_point() {
    let mut server = Server::start(&["--lease", "60s"]);
    let host = FakeHost::start(&server, 60_000).await;
    let client = server.client();
    let told = Told::default();
    let mut dice = Dice(11);
    for round in 0..ROUNDS {
        let mut callers = JoinSet::new();
        for number in 0..CALLERS {
            let seed = round * CALLERS as u64 + number as u64;
            callers.spawn(caller(Arc::clone(&host), server.client(), Arc::clone(&told), family(), seed));
        }
        // Not to wait for anything: the kill comes at a random point of the work.
        tokio::time::sleep(Duration::from_millis(1 + dice.roll(150))).await;
        server.kill();
        while callers.join_next().await.is_some() {}
        host.away().await;
        server.start_again();
        host.registered().await;
        check(&client, &host, &told).await;
    }
    let count = told.lock().unwrap().len();
    assert!(count > 500, "{count} tickets are too few to mean anything");
}

async fn check(client: &scheduler::client::Client, host: &FakeHost, told: &Told) {
    let ledger: HashMap<_, _> = all_tickets(client).await.into_iter().map(|t| (t.id.clone(), t)).collect();
    for (id, (state, asked)) in told.lock().unwrap().iter_mut() {
        let ticket = ledger.get(id).unwrap_or_else(|| panic!("{id} was {state:?} and is not there"));
        if *asked {
            // Nobody heard the answer: it may have been done.
            let may = [TicketState::Granted, TicketState::Released, TicketState::Used];
            assert!(may.contains(&ticket.state()), "{ticket:?}");
            (*state, *asked) = (ticket.state(), false);
        }
        // A host that did not hear of its use has no clones: the ledger follows it.
        let ended =
            *state == TicketState::Used && ticket.live == 0 && ticket.state() == TicketState::Released;
        assert!(ticket.state() == *state || ended, "told {state:?}: {ticket:?}");
        *state = ticket.state();
    }
    let whole = |t: &Ticket| t.vms == 2 && t.placements.len() == 1 && t.placements[0].vms == 2;
    assert!(ledger.values().all(whole), "a half ticket");
    let held: u32 = ledger
        .values()
        .map(|t| match t.state() {
            TicketState::Granted => t.vms,
            _ => t.live,
        })
        .sum();
    let live: u32 = ledger.values().map(|t| t.live).sum();
    assert_eq!(live as usize, host.running(), "the ledger and what runs");
    assert_eq!(hosts(client).await[0].held_cpus, held);
}

#[tokio::test]
async fn the_same_request_gives_the_same_ticket_across_a_crash() {
    let mut server = Server::start(&[]);
    let host = FakeHost::start(&server, 4).await;
    let client = server.client();
    let family = family();
    let named = RequestTicketRequest { request_id: "r-1".into(), ..request(&family, 2) };
    let first = client.clone().request_ticket(named.clone()).await.unwrap().into_inner();
    assert_eq!(client.clone().request_ticket(named.clone()).await.unwrap().into_inner(), first);
    server.kill();
    host.away().await;
    server.start_again();
    host.registered().await;
    let again = client.clone().request_ticket(named).await.unwrap().into_inner();
    assert_eq!(again.id, first.id);
    assert_eq!(hosts(&client).await[0].held_cpus, 2);
}

#[tokio::test]
async fn ends_that_were_not_noted_are_said_again() {
    let mut server = Server::start(&[]);
    let host = FakeHost::start(&server, 4).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 3).await.unwrap();
    host.clone_with(&ticket, 0, &[1, 2, 3]).await.unwrap();
    server.kill();
    host.away().await;
    host.end(&ticket.family, 1, VmEnd::Ended);
    host.end(&ticket.family, 2, VmEnd::Killed);
    assert_eq!(host.link().unnoted(), 2);
    server.start_again();
    host.registered().await;
    let mut now = get(&client, &ticket.id).await.unwrap();
    for _ in 0..100 {
        if now.live == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        now = get(&client, &ticket.id).await.unwrap();
    }
    let ends: Vec<_> = now.results.iter().map(|result| (result.vmid, result.end())).collect();
    assert_eq!(ends, [(1, VmEnd::Ended), (2, VmEnd::Killed)], "how they ended is not lost");
    assert_eq!((now.live, now.state()), (1, TicketState::Used));
}
