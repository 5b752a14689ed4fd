use super::*;
use crate::{
    core::{
        api::{Beat, CoreError, HostInfo, Present, UseBy},
        ticket::{Policy, State, VmEnd},
    },
    store::memory::MemoryStore,
};
use std::time::Duration;
use tokio::time::{advance, sleep};

const START_MS: u64 = 1_700_000_000_000;

fn options() -> Options {
    Options {
        ttl_ms: 600_000,
        lease_ms: 10_000,
        lost_after_ms: 30_000,
        remember_ms: 3_600_000,
        cpu_percent: 100,
        memory_percent: 100,
        policy: Policy::Pack,
    }
}

/// An engine whose worker is a task among others: one thread, paused time, so each test goes the
/// same way every time.
fn engine(store: &MemoryStore) -> Engine {
    let clock = Clock::starting_at(START_MS);
    let (engine, worker) = prepare(Box::new(store.clone()), options(), clock).unwrap();
    tokio::spawn(worker.run());
    engine
}

fn host(cpus: u32) -> HostInfo {
    HostInfo {
        id: Uuid::from_u128(1),
        name: "one".into(),
        address: String::new(),
        cpus,
        memory_mib: 1 << 20,
        max_vms: None,
        cpu_percent: None,
        memory_percent: None,
        identity: None,
        overlay: String::new(),
        facts: None,
        network: String::new(),
    }
}

fn demand(vms: u32) -> Demand {
    Demand {
        family: Uuid::from_u128(7),
        request_id: None,
        max_cpus: vms,
        min_vms: vms,
        min_cpus_per_vm: 1,
        vcpus: 1,
        memory_mib: 256,
        timeout_ms: 0,
        hosts: Vec::new(),
        prefer: None,
        parent: None,
        needs: None,
        images: std::collections::BTreeSet::new(),
        policy: None,
        ttl_ms: None,
        use_by: None,
    }
}

fn patient(vms: u32) -> Demand {
    Demand { timeout_ms: 60_000, ..demand(vms) }
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_stored_before_it_is_answered_and_shows_its_host() {
    let store = MemoryStore::default();
    let engine = engine(&store);
    let (_, _orders) = engine.host_up(host(4), Present::default()).await.unwrap();
    let seen = engine.request(demand(2)).await.unwrap();
    assert_eq!((seen.ticket.state, seen.host_names.as_slice()), (State::Granted, &["one".to_owned()][..]));
    assert_eq!(store.tickets(), std::slice::from_ref(&seen.ticket));
    assert_eq!(engine.ticket(Named { id: seen.ticket.id, family: None }).await.unwrap(), seen);
}

#[tokio::test(start_paused = true)]
async fn calls_that_come_together_are_stored_together() {
    let store = MemoryStore::default();
    let engine = engine(&store);
    let (_, _orders) = engine.host_up(host(1000), Present::default()).await.unwrap();
    let before = store.commits();
    let calls = (0..200).map(|_| engine.request(demand(1)));
    let granted = futures::future::join_all(calls).await;
    assert!(granted.iter().all(Result::is_ok));
    // tokio makes a task pause now and then, so not all are there at once.
    assert!(store.commits() - before <= 4, "{}", store.commits() - before);
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_leaves_the_queue() {
    let engine = engine(&MemoryStore::default());
    let (_, _orders) = engine.host_up(host(1), Present::default()).await.unwrap();
    let held = engine.request(demand(1)).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(1), engine.request(patient(1))).await;
    assert!(first.is_err(), "there was no room");
    assert_eq!(engine.counts().await.unwrap().waiting, 0);
    let (second, _) = tokio::join!(engine.request(patient(1)), async {
        sleep(Duration::from_secs(1)).await;
        engine.release(Named { id: held.ticket.id, family: None }).await.unwrap()
    });
    assert_eq!(second.unwrap().ticket.state, State::Granted);
}

/// The answer is sent, and dropped unread with its call: nobody else would ever get those VMs
/// before the TTL.
#[tokio::test(start_paused = true)]
async fn a_ticket_that_nobody_hears_of_is_taken_back() {
    let engine = engine(&MemoryStore::default());
    let (_, _orders) = engine.host_up(host(1), Present::default()).await.unwrap();
    let unheard = |demand: Demand| async {
        let mut call = Box::pin(engine.request(demand));
        assert!(futures::poll!(&mut call).is_pending());
        // On this one thread the worker answers now, and the call is not asked again.
        sleep(Duration::from_millis(1)).await;
        assert_eq!(engine.counts().await.unwrap().granted, 1);
        drop(call);
        sleep(Duration::from_millis(1)).await;
        engine.counts().await.unwrap().granted
    };
    assert_eq!(unheard(demand(1)).await, 0);
    // With a request id the caller is expected to ask again.
    let named = Demand { request_id: Some("r".into()), ..demand(1) };
    assert_eq!(unheard(named.clone()).await, 1);
    assert_eq!(engine.request(named).await.unwrap().ticket.state, State::Granted);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_changes_nothing_and_is_tried_again() {
    let store = MemoryStore::default();
    let engine = engine(&store);
    let (_, mut orders) = engine.host_up(host(4), Present::default()).await.unwrap();
    let kept = engine.request(demand(1)).await.unwrap();
    store.fail(true);
    let (waiting, failed) = tokio::join!(engine.request(patient(4)), async {
        sleep(Duration::from_millis(5)).await;
        // Of another family: this one's would wait behind the one that waits.
        engine.request(Demand { family: Uuid::from_u128(8), ..demand(1) }).await
    });
    assert!(matches!(failed, Err(Refusal::Store(_))), "{failed:?}");
    assert!(matches!(waiting, Err(Refusal::Store(_))), "who waits hears of it, too");
    assert_eq!(orders.recv().await, None, "hosts are cut, and register again");
    let again = engine.host_up(host(4), Present::default()).await;
    assert!(matches!(again, Err(Refusal::Store(_))), "not before the pause is over");
    let page = engine.tickets(Listing { most: 10, ..Listing::default() }).await.unwrap();
    assert_eq!(page.tickets.iter().map(|seen| &seen.ticket).collect::<Vec<_>>(), [&kept.ticket]);
    store.fail(false);
    advance(Duration::from_secs(1)).await;
    let (_, _orders) = engine.host_up(host(4), Present::default()).await.unwrap();
    assert_eq!(engine.request(demand(3)).await.unwrap().ticket.vms(), 3);
    assert_eq!(engine.counts().await.unwrap().granted, 2);
}

/// An expiry that cannot be stored must not be tried in a circle.
#[tokio::test(start_paused = true)]
async fn the_cores_own_deadlines_wait_for_the_store() {
    let store = MemoryStore::default();
    let engine = engine(&store);
    let (epoch, _orders) = engine.host_up(host(4), Present::default()).await.unwrap();
    let short = Demand { ttl_ms: Some(1000), ..demand(1) };
    let ticket = engine.request(short).await.unwrap().ticket;
    store.fail(true);
    sleep(Duration::from_millis(4500)).await;
    assert_eq!(
        engine.ticket(Named { id: ticket.id, family: None }).await.unwrap().ticket.state,
        State::Granted
    );
    assert!((1..=4).contains(&store.failures()), "{}", store.failures());
    store.fail(false);
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(
        engine.ticket(Named { id: ticket.id, family: None }).await.unwrap().ticket.state,
        State::Expired
    );
    engine.host_down(Uuid::from_u128(1), epoch);
}

#[tokio::test(start_paused = true)]
async fn changes_reach_those_who_watch() {
    let engine = engine(&MemoryStore::default());
    let (_, _orders) = engine.host_up(host(4), Present::default()).await.unwrap();
    let mut changes = engine.changes();
    let ticket = engine.request(demand(1)).await.unwrap().ticket;
    engine.release(Named { id: ticket.id, family: None }).await.unwrap();
    let mut states = Vec::new();
    while let Ok(change) = changes.try_recv() {
        let Changed::Now(seen) = &change.what else { panic!("nothing was forgotten") };
        states.push((change.batch, seen.ticket.state));
    }
    // The first one was the host's: it reserves epochs.
    assert_eq!(states, [(2, State::Granted), (3, State::Released)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_when_it_stops_is_refused() {
    let engine = engine(&MemoryStore::default());
    let (_, mut orders) = engine.host_up(host(1), Present::default()).await.unwrap();
    let (waiting, ()) = tokio::join!(engine.request(patient(1)), engine.stop());
    // Either it was granted before, or it is refused: not left waiting.
    assert!(matches!(waiting, Ok(_) | Err(Refusal::Stopped)));
    assert!(matches!(engine.request(demand(1)).await, Err(Refusal::Stopped)));
    assert_eq!(orders.recv().await, None);
    engine.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_keep_no_other_family_out_and_nobody_who_does_not_wait() {
    let engine = engine(&MemoryStore::default());
    let (_, _orders) = engine.host_up(host(1), Present::default()).await.unwrap();
    let held = engine.request(demand(1)).await.unwrap().ticket;
    // As if two families had all that they can get.
    let mut rooms = Vec::new();
    for family in [1, 2].map(Uuid::from_u128) {
        while let Ok(room) = engine.shared.waits.enter(Some(family)) {
            rooms.push(room);
        }
    }
    assert_eq!(rooms.len(), WAITS_MAX * 3 / 4);
    for family in [1, 2].map(Uuid::from_u128) {
        let refused = engine.request(Demand { family, ..demand(1) }).await.unwrap_err();
        assert!(matches!(refused, Refusal::Crowded { .. }), "{refused}");
    }
    let waits = tokio::spawn({
        let engine = engine.clone();
        async move { engine.request(patient(1)).await }
    });
    while engine.counts().await.unwrap().waiting < 1 {
        tokio::task::yield_now().await;
    }
    engine.ticket(Named { id: held.id, family: None }).await.unwrap();
    engine.release(Named { id: held.id, family: None }).await.unwrap();
    assert_eq!(waits.await.unwrap().unwrap().ticket.state, State::Granted);
}

/// Each kind of call that waits: nothing of it is left when its future is dropped.
#[tokio::test(start_paused = true)]
async fn who_goes_away_is_waited_for_nowhere() {
    let engine = engine(&MemoryStore::default());
    let (_, _orders) = engine.host_up(host(2), Present::default()).await.unwrap();
    let by = UseBy { parent_vmid: 0, vmids: vec![1, 2], host_epoch: None };
    let ticket = engine.request(Demand { use_by: Some(by), ..demand(2) }).await.unwrap().ticket;
    let named = Named { id: ticket.id, family: Some(ticket.family) };
    let soon = Duration::from_secs(1);
    let targets = || Targets::Vmids(vec![2]);
    for _ in 0..2 {
        assert!(tokio::time::timeout(soon, engine.request(patient(1))).await.is_err());
        assert!(tokio::time::timeout(soon, engine.arrive(named, 1, Some(0), None)).await.is_err());
        assert!(tokio::time::timeout(soon, engine.join(named, Some(0), None)).await.is_err());
        let kill = engine.kill(ticket.family, targets(), "test".into());
        assert!(tokio::time::timeout(soon, kill).await.is_err());
        assert!(engine.shared.waits.is_empty());
        assert_eq!(engine.counts().await.unwrap().waiting, 0);
    }
    // Nobody is taken for there who has gone.
    let late = engine.arrive(named, 0, Some(0), Some(500)).await.unwrap_err();
    let alone = CoreError::BarrierTimeout { arrived: 1, wanted: 3 };
    assert!(matches!(&late, Refusal::Core(error) if *error == alone), "{late}");
}

#[tokio::test(start_paused = true)]
async fn hosts_are_heard_however_many_calls_are_under_way() {
    let engine = engine(&MemoryStore::default());
    let most = |most: usize| u32::try_from(most).unwrap();
    let mut waits = Vec::new();
    for number in 0.. {
        let Ok(room) = engine.shared.waits.enter(Some(Uuid::from_u128(number))) else { break };
        waits.push(room);
    }
    assert_eq!(waits.len(), WAITS_MAX);
    let _calls = engine.shared.calls.acquire_many(most(CALLS_MAX)).await.unwrap();
    let refused = engine.counts().await.unwrap_err();
    assert!(matches!(refused, Refusal::Busy { most: CALLS_MAX }), "{refused}");
    let (epoch, _orders) = engine.host_up(host(1), Present::default()).await.unwrap();
    let host = host(1).id;
    engine.host_beat(host, epoch, Beat::default()).await.unwrap();
    engine.ended(host, epoch, vec![(Uuid::nil(), 1, VmEnd::Ended)], vec![Uuid::nil()]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_takes_the_place_of_what_a_clone_left_before() {
    let store = MemoryStore::default();
    let engine = engine(&store);
    let (_, _orders) = engine.host_up(host(1), Present::default()).await.unwrap();
    let by = UseBy { parent_vmid: 0, vmids: vec![1], host_epoch: None };
    let ticket = engine.request(Demand { use_by: Some(by), ..demand(1) }).await.unwrap().ticket;
    let named = Named { id: ticket.id, family: None };
    for left in [b"first".as_slice(), b"", b"last"] {
        engine.leave(named, 1, 0, left.to_vec(), true).await.unwrap();
        assert_eq!(engine.join_data(named, 1).await.unwrap(), left);
        assert_eq!(engine.ticket(named).await.unwrap().ticket.results[&1].data_bytes, left.len() as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn hosts_have_a_limit() {
    let engine = engine(&MemoryStore::default());
    let numbered = |number: usize| HostInfo { id: Uuid::from_u128(number as u128), ..host(1) };
    let mut all = Vec::new();
    for number in 0..worker::HOSTS_MAX {
        all.push(engine.host_up(numbered(number), Present::default()).await.unwrap());
    }
    let refused = engine.host_up(numbered(worker::HOSTS_MAX), Present::default()).await.unwrap_err();
    assert!(matches!(refused, Refusal::TooManyHosts { most: worker::HOSTS_MAX }), "{refused}");
    // One that is known comes back at any time.
    engine.host_up(numbered(0), Present::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_engine_is_alive_while_its_ledger_answers() {
    let (engine, worker) =
        prepare(Box::new(MemoryStore::default()), options(), Clock::starting_at(START_MS)).unwrap();
    // As many questions as there may be take no room from this one.
    let _calls = engine.shared.calls.try_acquire_many(CALLS_MAX.try_into().unwrap()).unwrap();
    let alive = engine.is_alive();
    tokio::pin!(alive);
    assert!(tokio::time::timeout(Duration::from_secs(100), &mut alive).await.is_err(), "its ledger hangs");
    tokio::spawn(worker.run());
    assert!(alive.await);
    engine.stop().await;
    engine.stopped().await;
    assert!(!engine.is_alive().await);
}
