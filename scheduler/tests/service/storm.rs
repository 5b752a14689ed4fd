//! Many more callers than there is room for, half of whom go away.

use crate::{
    fake::{Dice, FakeHost, all_tickets, family, get, hosts, release, request, why},
    server::{SOON, Server},
};
use patina_proto::v1::{RequestTicketRequest, Ticket, TicketState, VmEnd};
use scheduler::client::Client;
use std::time::Duration;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};

const CALLERS: u32 = 10_000;
const SLOTS: u32 = 100;
const FAMILIES: usize = 10;

/// One that asks, and waits as long as it takes, or goes away after a while. A ticket that it gets
/// is cloned with at once.
async fn caller(
    client: Client,
    request: RequestTicketRequest,
    leaves: Option<Duration>,
    winners: mpsc::Sender<Ticket>,
) {
    let asked = async { client.clone().request_ticket(request).await };
    let answer = match leaves {
        Some(patience) => timeout(patience, asked).await.ok(),
        None => Some(asked.await),
    };
    if let Some(Ok(ticket)) = answer {
        winners.send(ticket.into_inner()).await.unwrap();
    }
}

/// A ticket that was granted to a caller just as it went away comes back by its TTL, and another
/// caller gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_for_a_hundred_slots_half_of_them_given_up() {
    // Long enough for a busy machine to use what it was granted, and over within `SOON`.
    let server = Server::start(&["--ticket-ttl", "15s"]);
    let host = FakeHost::start(&server, SLOTS).await;
    let families: Vec<_> = (0..FAMILIES).map(|_| family()).collect();
    let clients: Vec<_> = (0..8).map(|_| server.client()).collect();
    let (winners, mut won) = mpsc::channel(CALLERS as usize);
    let (mut callers, mut dice) = (JoinSet::new(), Dice(4));
    for number in 0..CALLERS as usize {
        let request =
            RequestTicketRequest { timeout_ms: 120_000, ..request(&families[number % FAMILIES], 1) };
        let leaves = (number % 2 == 1).then(|| Duration::from_millis(dice.roll(3000)));
        callers.spawn(caller(clients[number % clients.len()].clone(), request, leaves, winners.clone()));
    }
    let mut used = Vec::new();
    while used.len() < SLOTS as usize {
        let ticket = timeout(SOON, won.recv()).await.expect("all slots find a caller").unwrap();
        let vmid = u32::try_from(used.len()).unwrap() + 1;
        match host.clone_with(&ticket, 0, &[vmid]).await {
            Ok(ticket) => used.push(ticket),
            // A busy machine took longer than the TTL: another caller gets the slot.
            Err(status) => assert_eq!(why(Err::<(), _>(status)).1, "EXPIRED"),
        }
    }
    let ledger = all_tickets(&clients[0]).await;
    let live: Vec<_> =
        ledger.iter().filter(|t| matches!(t.state(), TicketState::Used | TicketState::Granted)).collect();
    assert_eq!(live.len(), SLOTS as usize);
    assert!(
        live.iter().all(|ticket| used.iter().any(|used| used.id == ticket.id)),
        "each is known to its caller"
    );
    assert_eq!(hosts(&clients[0]).await[0].held_cpus, SLOTS);
    assert!(won.try_recv().is_err(), "nobody else has a ticket");
    // None is lost: each slot that ends goes to a caller who waits, and when all have gone all
    // slots are free.
    host.end(&used[0].family, 1, VmEnd::Ended);
    let next = timeout(SOON, won.recv()).await.expect("another caller gets it").unwrap();
    callers.shutdown().await;
    release(&clients[0], &next.id).await.unwrap();
    for (number, ticket) in used.iter().enumerate().skip(1) {
        host.end(&ticket.family, u32::try_from(number).unwrap() + 1, VmEnd::Ended);
    }
    let mut free = false;
    for _ in 0..SOON.as_millis() / 100 {
        free = hosts(&clients[0]).await[0].held_cpus == 0;
        if free {
            break;
        }
        // Those that were granted as their callers ended have their TTL.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(free, "{:?}", hosts(&clients[0]).await);
    assert_eq!(get(&clients[0], &used[0].id).await.unwrap().state(), TicketState::Released);
}
