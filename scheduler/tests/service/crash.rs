//! A scheduler that is killed while it works.

use crate::{
    fake::{Dice, FakeHost, all_tickets, family, get, grant, hosts, release, request, still},
    server::Server,
};
use patina_proto::v1::{RequestTicketRequest, Ticket, TicketState, VmEnd, VmResult};
use scheduler::client::Client;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::task::JoinSet;

/// How many rounds the test has at least.
const ROUNDS: u64 = 12;
/// Tickets that have to be granted at least.
const ENOUGH: usize = 1000;
const CALLERS: u64 = 24;

/// What a caller was told of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// The ticket was in this state.
    Is(TicketState),
    /// Something was asked since, and not answered.
    Asked,
    /// It was cloned with, and all its clones were killed.
    Killed,
}

type Book = Arc<Mutex<HashMap<String, Told>>>;

/// Until the scheduler is gone: a ticket, sometimes given back, sometimes clones, which are
/// sometimes killed.
async fn caller(host: Arc<FakeHost>, client: Client, book: Book, seed: u64) {
    let (mut dice, family) = (Dice(seed), family());
    let tell = |ticket: &Ticket, told| book.lock().unwrap().insert(ticket.id.clone(), told);
    for round in 0.. {
        let Ok(ticket) = grant(&client, &family, 2).await else { return };
        tell(&ticket, Told::Is(TicketState::Granted));
        let choice = dice.roll(4);
        if choice == 0 {
            continue;
        }
        tell(&ticket, Told::Asked);
        if choice == 1 {
            let Ok(released) = release(&client, &ticket.id).await else { return };
            tell(&released, Told::Is(TicketState::Released));
            continue;
        }
        let vmids = [round * 2 + 1, round * 2 + 2];
        let Ok(used) = host.clone_with(&ticket, 0, &vmids).await else { return };
        tell(&used, Told::Is(TicketState::Used));
        if choice == 3 {
            tell(&used, Told::Killed);
            for vmid in vmids {
                host.end(&family, vmid, VmEnd::Killed);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there_after_a_kill_at_any_point() {
    let mut server = Server::start(&["--lease", "60s"]);
    let host = FakeHost::start(&server, 60_000).await;
    let client = server.client();
    let book = Book::default();
    let mut dice = Dice(11);
    for round in 0..10 * ROUNDS {
        // A slow machine needs more of them until enough has happened.
        if round >= ROUNDS && book.lock().unwrap().len() > ENOUGH {
            break;
        }
        let mut callers = JoinSet::new();
        for number in 0..CALLERS {
            callers.spawn(caller(
                Arc::clone(&host),
                server.client(),
                Arc::clone(&book),
                round * CALLERS + number,
            ));
        }
        // Not to wait for anything: the kill comes at a random point of the work.
        tokio::time::sleep(Duration::from_millis(1 + dice.roll(400))).await;
        server.kill();
        while callers.join_next().await.is_some() {}
        host.away().await;
        server.start_again();
        host.registered().await;
        host.all_noted().await;
        check(&client, &host, &book).await;
    }
    let count = book.lock().unwrap().len();
    assert!(count > ENOUGH, "{count} tickets are too few to mean anything");
}

async fn check(client: &Client, host: &FakeHost, book: &Book) {
    let ledger: HashMap<_, _> = all_tickets(client).await.into_iter().map(|t| (t.id.clone(), t)).collect();
    for (id, told) in book.lock().unwrap().iter_mut() {
        let ticket = ledger.get(id).unwrap_or_else(|| panic!("{id} was {told:?} and is not there"));
        let state = ticket.state();
        match told {
            Told::Is(was) => assert_eq!(state, *was, "{ticket:?}"),
            // Nobody heard the answer. A host that did not hear of its use has no clones: the
            // ledger follows it.
            Told::Asked => {
                assert!(matches!(state, TicketState::Granted | TicketState::Released), "{ticket:?}");
                *told = Told::Is(state);
            }
            Told::Killed => {
                let ends: Vec<_> = ticket.results.iter().map(VmResult::end).collect();
                assert_eq!((state, ends), (TicketState::Released, vec![VmEnd::Killed; 2]), "{ticket:?}");
            }
        }
    }
    let whole = |t: &Ticket| t.vms == 2 && t.placements.len() == 1 && t.placements[0].vms == 2;
    assert!(ledger.values().all(whole), "a half ticket");
    let live: u32 = ledger.values().map(|ticket| ticket.live).sum();
    assert_eq!(live as usize, host.running(), "the ledger and what runs");
    let granted = ledger.values().filter(|t| t.state() == TicketState::Granted).map(|t| t.vms);
    assert_eq!(hosts(client).await[0].held_cpus, granted.sum::<u32>() + live);
}

#[tokio::test]
async fn the_same_request_gives_the_same_ticket_across_a_crash() {
    let mut server = Server::start(&[]);
    let host = FakeHost::start(&server, 4).await;
    let client = server.client();
    let family = family();
    let named = RequestTicketRequest { request_id: "r-1".into(), ..request(&family, 2) };
    let first = still(client.clone().request_ticket(named.clone()).await.unwrap());
    assert_eq!(still(client.clone().request_ticket(named.clone()).await.unwrap()), first);
    server.kill();
    host.away().await;
    server.start_again();
    host.registered().await;
    let again = still(client.clone().request_ticket(named).await.unwrap());
    assert_eq!(again.id, first.id);
    assert_eq!(hosts(&client).await[0].held_cpus, 2);
}

#[tokio::test]
async fn parts_and_vmids_outlive_a_crash() {
    let mut server = Server::start(&[]);
    let (home, other) = (FakeHost::start(&server, 2).await, FakeHost::start(&server, 2).await);
    let client = server.client();
    let ticket = grant(&client, &family(), 4).await.unwrap();
    let first = home.reserve(&ticket.family, 2, "a").await.unwrap();
    let used = home.clone_part(&ticket, home.id, &[first, first + 1]).await.unwrap();
    assert_eq!(used.unused_host_ids, [other.id.to_string()]);
    assert!(used.state() == TicketState::Used && used.expires_in_ms > 0 && used.expires_unix_ms > 0);
    server.kill();
    home.away().await;
    other.away().await;
    server.start_again();
    home.registered().await;
    other.registered().await;
    assert_eq!(still(get(&client, &ticket.id).await.unwrap().into()), still(used.into()));
    assert_eq!(home.reserve(&ticket.family, 2, "a").await.unwrap(), first);
    let second = other.reserve(&ticket.family, 2, "a").await.unwrap();
    assert_eq!(second, first + 2);
    let all = other.clone_part(&ticket, home.id, &[second, second + 1]).await.unwrap();
    assert_eq!((all.live, all.unused_host_ids.len(), all.expires_in_ms), (4, 0, 0));
    assert_eq!(hosts(&client).await.iter().map(|host| host.held_cpus).collect::<Vec<_>>(), [2, 2]);
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
