//! A real service on a store in memory, and a network that breaks when a test wants it to.

use super::*;
use crate::{
    client,
    core::{
        api::Options,
        ticket::{Policy, State},
    },
    engine::{self, clock::Clock},
    grpc,
    host::Clones as _,
    store::memory::MemoryStore,
};
use patina_proto::v1::{KillClones, KillRequest, RequestTicketRequest};
use std::{collections::BTreeSet, io};
use tokio::{
    io::{DuplexStream, copy_bidirectional, duplex},
    sync::{mpsc, watch},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::transport::Server;

const HOST: Uuid = Uuid::from_u128(1);
const FAMILY: Uuid = Uuid::from_u128(7);

/// What stands between host and scheduler.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Open,
    /// What the scheduler answers is lost with its connection.
    Deaf,
    Cut,
}

/// A host of which a test sees everything.
struct Story {
    store: MemoryStore,
    way: watch::Sender<Way>,
    admission: Admission,
    running: Arc<Mutex<BTreeMap<u32, Reservation>>>,
}

struct Running(Arc<Mutex<BTreeMap<u32, Reservation>>>);

impl Vms for Running {
    fn running(&self) -> Vec<RunningClone> {
        self.0.lock().unwrap().values().map(|reservation| reservation.of().clone()).collect()
    }

    fn masters(&self) -> Vec<String> {
        vec![FAMILY.to_string()]
    }

    fn end(&self, _: &str, ticket: &str, vmids: &[u32], _: &str) {
        for vmid in vmids {
            let mut running = self.0.lock().unwrap();
            let reservation = running.get(vmid).is_some_and(|reservation| reservation.of().ticket == ticket);
            let reservation = reservation.then(|| running.remove(vmid)).flatten();
            drop(running);
            if let Some(mut reservation) = reservation {
                reservation.ended(VmEnd::Killed);
            }
        }
    }
}

fn serve(store: &MemoryStore) -> mpsc::Sender<DuplexStream> {
    let options = Options {
        ttl_ms: 600_000,
        lease_ms: 0,
        lost_after_ms: 0,
        remember_ms: 3_600_000,
        cpu_percent: 100,
        memory_percent: 100,
        policy: Policy::Pack,
    };
    let (engine, worker) =
        engine::prepare(Box::new(store.clone()), options, Clock::starting_at(1_700_000_000_000)).unwrap();
    tokio::spawn(worker.run());
    let (connections, incoming) = mpsc::channel(16);
    let incoming = ReceiverStream::new(incoming).map(Ok::<_, io::Error>);
    let server =
        Server::builder().add_service(grpc::server(engine.clone())).add_service(grpc::host_server(engine));
    tokio::spawn(server.serve_with_incoming(incoming));
    connections
}

/// Carries bytes as long as the way is what it was at the beginning.
async fn carry(mut near: DuplexStream, mut far: DuplexStream, mut way: watch::Receiver<Way>) {
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => return,
        _ = way.wait_for(|way| *way != Way::Open) => {}
    }
    if *way.borrow() == Way::Deaf {
        // What was said still arrives.
        let (mut from, mut to, mut nowhere) =
            (tokio::io::split(near), tokio::io::split(far), tokio::io::sink());
        tokio::select! {
            _ = tokio::io::copy(&mut from.0, &mut to.1) => {}
            _ = tokio::io::copy(&mut to.0, &mut nowhere) => {}
            _ = way.wait_for(|way| *way == Way::Cut) => {}
        }
    }
}

impl Story {
    async fn begin() -> Self {
        let (store, (way, _)) = (MemoryStore::default(), watch::channel(Way::Open));
        let connections = serve(&store);
        let seen = way.clone();
        let connection = client::over(move || {
            let (connections, way) = (connections.clone(), seen.subscribe());
            async move {
                if *way.borrow() != Way::Open {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let ((near, carried), (carrying, far)) = (duplex(1 << 16), duplex(1 << 16));
                tokio::spawn(carry(carried, carrying, way));
                connections.send(far).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
                Ok(near)
            }
        });
        let info = HostInfo {
            id: HOST.to_string(),
            name: "one".into(),
            cpus: 8,
            memory_mib: 1 << 20,
            ..HostInfo::default()
        };
        let (admission, running) = (Admission::new(connection, info), Arc::default());
        admission.register(Running(Arc::clone(&running)));
        assert!(admission.registered(PATIENCE).await);
        Self { store, way, admission, running }
    }

    async fn granted(&self, vms: u32) -> Ticket {
        let ticket = self.admission.request(request(vms)).await.unwrap();
        assert_eq!(ticket.state(), TicketState::Granted);
        ticket
    }

    /// They run.
    fn start(&self, admitted: Admitted) -> Vec<Option<String>> {
        let start = |reservation: Reservation| {
            let vmid = reservation.of().vmid;
            self.running.lock().unwrap().insert(vmid, reservation);
            self.admission.started(&FAMILY.to_string(), vmid)
        };
        admitted.into_reservations().into_iter().map(start).collect()
    }

    /// The connection breaks and is made anew: the scheduler is asked what there is.
    async fn register_anew(&self) {
        let before = self.admission.epoch().await;
        self.way.send_replace(Way::Cut);
        until(|| self.admission.epoch_now() != Some(before)).await;
        self.way.send_replace(Way::Open);
        assert_ne!(self.admission.epoch().await, before);
    }

    async fn noted(&self) {
        until(|| self.admission.link().unwrap().unnoted() == 0).await;
    }

    /// The clones that live by the ledger, and the states of its tickets.
    fn ledger(&self) -> (Vec<u32>, Vec<State>) {
        let mut tickets = self.store.tickets();
        let used = tickets.iter().filter(|ticket| ticket.state == State::Used);
        let live: BTreeSet<u32> = used.flat_map(|ticket| ticket.live().map(|(vmid, _)| vmid)).collect();
        tickets.sort_by_key(|ticket| ticket.clones.len());
        (live.into_iter().collect(), tickets.iter().map(|ticket| ticket.state).collect())
    }
}

/// Waits for something that comes, or does not: the clock is a simulated one.
async fn until(is_so: impl Fn() -> bool) {
    let turns = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(Duration::from_secs(60), turns).await.is_ok(), "it does not come");
}

fn request(vms: u32) -> RequestTicketRequest {
    RequestTicketRequest {
        family: FAMILY.to_string(),
        max_cpus: vms,
        min_vms: vms,
        min_cpus_per_vm: 1,
        vcpus: 1,
        memory_mib: 256,
        ..RequestTicketRequest::default()
    }
}

fn clone_request(vmids: &[u32]) -> CloneRequest {
    CloneRequest {
        family: FAMILY.to_string(),
        parent_vmid: 0,
        vcpus: 1,
        memory_mib: 256,
        vmids: vmids.to_vec(),
    }
}

fn of(ticket: &Ticket) -> Authorization {
    Authorization::Ticket { id: ticket.id.clone(), epoch: 0 }
}

#[tokio::test(start_paused = true)]
async fn clones_are_made_run_and_end_and_the_ledger_follows() {
    let story = Story::begin().await;
    let ticket = story.granted(2).await;
    let admitted = story.admission.admit(&clone_request(&[1, 2]), &of(&ticket)).await.unwrap();
    assert_eq!(story.start(admitted), [None, None]);
    let immediate = story
        .admission
        .admit(&clone_request(&[3]), &Authorization::Immediate(Uuid::from_u128(9)))
        .await
        .unwrap();
    story.start(immediate);
    story.register_anew().await;
    assert_eq!(story.ledger().0, [1, 2, 3]);
    story.running.lock().unwrap().remove(&2);
    story.noted().await;
    assert_eq!(story.ledger().0, [1, 3]);
    assert_eq!(story.admission.0.making().len(), 2);
    story.running.lock().unwrap().clear();
    assert!(story.admission.0.making().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_use_leaves_that_of_others_in_the_making() {
    let story = Story::begin().await;
    let ticket = story.granted(1).await;
    let first = story.admission.admit(&clone_request(&[1]), &of(&ticket)).await.unwrap();
    let second = story.admission.admit(&clone_request(&[2]), &of(&ticket)).await.unwrap_err();
    assert!(second.is_unused(), "{second}");
    // The first one's clone is being made: the scheduler must not take it for ended.
    story.register_anew().await;
    assert_eq!(story.ledger().0, [1]);
    story.start(first);
    story.register_anew().await;
    assert_eq!(story.ledger().0, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_is_killed_while_it_is_made_ends_and_its_killer_hears_so() {
    let story = Story::begin().await;
    let ticket = story.granted(2).await;
    let admitted = story.admission.admit(&clone_request(&[1, 2]), &of(&ticket)).await.unwrap();
    let mut client = story.admission.client();
    let kill = KillRequest { family: FAMILY.to_string(), vmids: vec![1, 2], ..KillRequest::default() };
    let killed = tokio::spawn(async move { client.kill(kill).await });
    let mut reservations = admitted.into_reservations();
    until(|| reservations.iter().all(|reservation| reservation.kill_requested().is_some())).await;
    // One is not started, the other one runs already.
    let second = reservations.pop().unwrap();
    drop(reservations);
    story.running.lock().unwrap().insert(2, second);
    assert!(story.admission.started(&FAMILY.to_string(), 2).is_some());
    assert!(!killed.is_finished());
    story.running.lock().unwrap().remove(&2);
    assert_eq!(killed.await.unwrap().unwrap().into_inner().ended, [1, 2]);
    assert_eq!(story.ledger(), (vec![], vec![State::Released]));
}

/// An order of a clone that was not made is still on its way when its vmid is another clone's.
#[tokio::test(start_paused = true)]
async fn an_order_names_its_ticket_and_passes_by_a_later_clone_of_that_vmid() {
    let story = Story::begin().await;
    let (vms, shared) = (Running(Arc::clone(&story.running)), Arc::downgrade(&story.admission.0));
    let clones = making::HostClones { shared, vms };
    let order = |ticket: &Ticket| KillClones {
        family: FAMILY.to_string(),
        vmids: vec![1],
        reason: "not wanted".into(),
        ticket: ticket.id.clone(),
        epoch: ticket.epoch,
    };
    let first = story.granted(1).await;
    let admitted = story.admission.admit(&clone_request(&[1]), &of(&first)).await.unwrap();
    let old = order(admitted.ticket());
    assert!(admitted.give_back().await);

    // The same ticket, granted again; another one; one by number.
    let other = story.granted(1).await;
    for authorization in [of(&first), of(&other), Authorization::Immediate(Uuid::from_u128(9))] {
        let admitted = story.admission.admit(&clone_request(&[1]), &authorization).await.unwrap();
        let own = order(admitted.ticket());
        clones.kill(old.clone());
        assert_eq!(admitted.reservations[0].kill_requested(), None, "{authorization:?}");
        assert_eq!(story.start(admitted), [None]);
        clones.kill(old.clone());
        assert!(story.running.lock().unwrap().contains_key(&1), "{authorization:?}");
        clones.kill(own);
        assert!(story.running.lock().unwrap().is_empty(), "{authorization:?}");
    }
}

/// Orders may overtake the answer of the use that they are about.
#[tokio::test(start_paused = true)]
async fn an_order_before_the_answer_to_a_use_is_for_that_use_or_for_an_earlier_one() {
    let story = Story::begin().await;
    let clones =
        making::HostClones { shared: Arc::downgrade(&story.admission.0), vms: Running(Arc::default()) };
    let ticket = Ticket { id: Uuid::from_u128(3).to_string(), epoch: 70, ..Ticket::default() };
    for (epoch, is_requested) in [(69, false), (70, true), (71, true)] {
        let reservations = story.admission.begin(&clone_request(&[1]), &ticket.id, "");
        let family = FAMILY.to_string();
        clones.kill(KillClones {
            family,
            vmids: vec![1],
            reason: "no".into(),
            ticket: ticket.id.clone(),
            epoch,
        });
        let admitted = story.admission.used(ticket.clone(), reservations);
        assert_eq!(admitted.reservations[0].kill_requested().is_some(), is_requested, "{epoch}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_before_the_host_is_registered() {
    let story = Story::begin().await;
    let ticket = story.granted(1).await;
    story.way.send_replace(Way::Cut);
    until(|| story.admission.epoch_now().is_none()).await;
    for authorization in [of(&ticket), Authorization::Immediate(Uuid::from_u128(9))] {
        let refused = story.admission.admit(&clone_request(&[1]), &authorization).await.unwrap_err();
        assert!(matches!(refused, NotAdmitted::Registering { is_unused: true }), "{refused}");
    }
    // One that waits goes on as soon as it is.
    let admission = story.admission.clone();
    let waits = tokio::spawn(async move { admission.admit(&clone_request(&[1]), &of(&ticket)).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    story.way.send_replace(Way::Open);
    story.start(waits.await.unwrap().unwrap());
    assert_eq!(story.ledger().0, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_use_whose_answer_is_lost_is_said_again_and_is_the_same() {
    let story = Story::begin().await;
    let ticket = story.granted(1).await;
    story.way.send_replace(Way::Deaf);
    let (admission, authorization) = (story.admission.clone(), of(&ticket));
    let used = tokio::spawn(async move { admission.admit(&clone_request(&[1]), &authorization).await });
    until(|| !story.ledger().0.is_empty()).await;
    assert!(!used.is_finished());
    story.way.send_replace(Way::Cut);
    tokio::time::sleep(Duration::from_millis(100)).await;
    story.way.send_replace(Way::Open);
    story.start(used.await.unwrap().unwrap());
    assert_eq!(story.ledger().0, [1]);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_knows_whether_a_ticket_was_used_its_clones_are_told_as_ended() {
    let story = Story::begin().await;
    let ticket = story.granted(1).await;
    story.way.send_replace(Way::Deaf);
    let refused = story.admission.admit(&clone_request(&[1]), &of(&ticket)).await.unwrap_err();
    assert!(!refused.is_unused(), "{refused}");
    assert_eq!(story.ledger().0, [1], "it was used");
    story.way.send_replace(Way::Cut);
    tokio::time::sleep(Duration::from_millis(100)).await;
    story.way.send_replace(Way::Open);
    story.noted().await;
    assert_eq!(story.ledger(), (vec![], vec![State::Released]));
}

#[tokio::test(start_paused = true)]
async fn what_was_not_made_is_given_back_once() {
    let story = Story::begin().await;
    let ticket = story.granted(1).await;
    let admitted = story.admission.admit(&clone_request(&[1]), &of(&ticket)).await.unwrap();
    assert!(admitted.give_back().await);
    assert_eq!(story.ledger(), (vec![], vec![State::Granted]));
    // The same vmid is another clone's now.
    let again = story.admission.admit(&clone_request(&[1]), &of(&ticket)).await.unwrap();
    story.start(again);
    story.noted().await;
    assert_eq!(story.ledger().0, [1]);

    let immediate = story
        .admission
        .admit(&clone_request(&[2]), &Authorization::Immediate(Uuid::from_u128(9)))
        .await
        .unwrap();
    assert!(immediate.give_back().await);
    assert_eq!(story.ledger(), (vec![1], vec![State::Released, State::Used]));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_any_more_goes_back() {
    let story = Story::begin().await;
    story.way.send_replace(Way::Deaf);
    let gone = timeout(Duration::from_secs(1), story.admission.request(request(8))).await;
    assert!(gone.is_err());
    assert_eq!(story.ledger().1, [State::Granted], "nobody knows of it");
    story.way.send_replace(Way::Cut);
    tokio::time::sleep(Duration::from_millis(100)).await;
    story.way.send_replace(Way::Open);
    until(|| story.ledger().1 == [State::Released]).await;
    // What has a number may be asked for again, and is kept.
    let named = RequestTicketRequest { request_id: "mine".into(), ..request(8) };
    story.way.send_replace(Way::Deaf);
    let asked = story.admission.request(named.clone());
    assert!(timeout(Duration::from_secs(1), asked).await.is_err());
    story.way.send_replace(Way::Cut);
    tokio::time::sleep(Duration::from_millis(100)).await;
    story.way.send_replace(Way::Open);
    assert_eq!(story.admission.request(named).await.unwrap().state(), TicketState::Granted);
}

#[tokio::test(start_paused = true)]
async fn clones_by_number_whose_answer_is_lost_hold_nothing() {
    let story = Story::begin().await;
    story.way.send_replace(Way::Deaf);
    let refused = story
        .admission
        .admit(&clone_request(&[1]), &Authorization::Immediate(Uuid::from_u128(9)))
        .await
        .unwrap_err();
    assert!(!refused.is_unused(), "{refused}");
    story.way.send_replace(Way::Cut);
    tokio::time::sleep(Duration::from_millis(100)).await;
    story.way.send_replace(Way::Open);
    until(|| story.ledger() == (vec![], vec![State::Released])).await;
}
