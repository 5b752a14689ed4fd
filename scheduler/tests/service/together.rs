//! What the VMs of a ticket do together: meet, join, end.

use crate::{
    fake::{FakeHost, family, get, grant, hosts, request, why},
    server::{SOON, Server},
};
use patina_proto::v1::{
    self, GetJoinDataRequest, HostScheduling, HostState, JoinLeave, JoinRequest, JoinWait, KillRequest,
    RequestTicketRequest, RunningClone, SyncRequest, Ticket, TicketState, VmEnd, join_request::Side,
};
use scheduler::client::Client;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

async fn sync(client: &Client, ticket: &Ticket, vmid: u32) -> Result<(u64, u32), Status> {
    let request = SyncRequest {
        ticket: ticket.id.clone(),
        family: ticket.family.clone(),
        vmid,
        ..SyncRequest::default()
    };
    let met = timeout(SOON, client.clone().sync(request)).await.expect("all come")?.into_inner();
    Ok((met.round, met.arrived))
}

fn join(ticket: &Ticket, side: Side) -> JoinRequest {
    JoinRequest { ticket: ticket.id.clone(), family: ticket.family.clone(), side: Some(side) }
}

#[tokio::test]
async fn a_barrier_works_again_after_deaths() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 8).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 3).await.unwrap();
    host.clone_with(&ticket, 0, &[1, 2, 3]).await.unwrap();
    for round in 1..=3 {
        let met = futures::future::join_all((0..=3).map(|vmid| sync(&client, &ticket, vmid))).await;
        assert!(met.into_iter().all(|met| met.unwrap() == (round, 4)));
    }
    let (parent, one, two, ()) = tokio::join!(
        sync(&client, &ticket, 0),
        sync(&client, &ticket, 1),
        sync(&client, &ticket, 2),
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            host.end(&ticket.family, 3, VmEnd::Ended);
        }
    );
    assert_eq!([parent.unwrap(), one.unwrap(), two.unwrap()], [(4, 3); 3]);
}

#[tokio::test]
async fn a_join_brings_every_clones_status_and_data() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 8).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 3).await.unwrap();
    host.clone_with(&ticket, 0, &[1, 2, 3]).await.unwrap();
    let data = vec![0xa5; 1 << 20];
    let leaves = [
        JoinLeave { vmid: 1, status: 7, data: data.clone(), noreport: false },
        JoinLeave { vmid: 2, status: -1, data: Vec::new(), noreport: true },
    ];
    let wait = join(&ticket, Side::Wait(JoinWait { vmid: 0, timeout_ms: 0 }));
    let mut waiting = client.clone();
    let (joined, ()) = tokio::join!(timeout(SOON, waiting.join(wait)), async {
        for leave in leaves {
            let vmid = leave.vmid;
            client.clone().join(join(&ticket, Side::Leave(leave))).await.unwrap();
            host.end(&ticket.family, vmid, VmEnd::Joined);
        }
        host.end(&ticket.family, 3, VmEnd::Ended);
    });
    let results = joined.expect("all end").unwrap().into_inner().results;
    let seen: Vec<_> =
        results.iter().map(|r| (r.vmid, r.end(), r.status, r.data_bytes, r.reported)).collect();
    let expected = [
        (1, VmEnd::Joined, 7, 1 << 20, true),
        (2, VmEnd::Joined, -1, 0, false),
        (3, VmEnd::Ended, 0, 0, false),
    ];
    assert_eq!(seen, expected);
    let left = async |vmid| {
        let request = GetJoinDataRequest { ticket: ticket.id.clone(), family: ticket.family.clone(), vmid };
        client.clone().get_join_data(request).await.unwrap().into_inner().data
    };
    assert_eq!((left(1).await, left(2).await), (data, Vec::new()));
    assert_eq!(get(&client, &ticket.id).await.unwrap().state(), TicketState::Released);
}

#[tokio::test]
async fn a_kill_ends_clones_and_gives_their_room_back() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 8).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 4).await.unwrap();
    host.clone_with(&ticket, 0, &[1, 2, 3, 4]).await.unwrap();
    let some = KillRequest { family: ticket.family.clone(), vmids: vec![2, 4], ..KillRequest::default() };
    let ended = timeout(SOON, client.clone().kill(some)).await.unwrap().unwrap().into_inner().ended;
    assert_eq!(ended, [2, 4]);
    assert_eq!(hosts(&client).await[0].held_vms, 2);
    let all = KillRequest { ticket: ticket.id.clone(), reason: "a test".into(), ..KillRequest::default() };
    let rest = timeout(SOON, client.clone().kill(all)).await.unwrap().unwrap();
    assert_eq!(rest.into_inner().ended, [1, 2, 3, 4], "of the ticket, those before included");
    let after = get(&client, &ticket.id).await.unwrap();
    assert_eq!((after.state(), host.running()), (TicketState::Released, 0));
    assert!(after.results.iter().all(|result| result.end() == VmEnd::Killed));
    assert_eq!(hosts(&client).await[0].held_vms, 0);
}

/// Its kill orders are lost with its connection; it hears of them when it comes back.
#[tokio::test]
async fn a_host_that_did_not_obey_is_told_again() {
    let mut server = Server::start(&["--lease", "60s"]);
    let host = FakeHost::start(&server, 8).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 1).await.unwrap();
    host.clone_with(&ticket, 0, &[1]).await.unwrap();
    host.obeys(false);
    let kill = KillRequest { ticket: ticket.id.clone(), ..KillRequest::default() };
    let unanswered = timeout(Duration::from_millis(300), client.clone().kill(kill.clone())).await;
    assert!(unanswered.is_err(), "the clone runs on");
    host.obeys(true);
    server.kill();
    host.away().await;
    server.start_again();
    host.registered().await;
    let ended = timeout(SOON, client.clone().kill(kill)).await.unwrap().unwrap().into_inner().ended;
    assert_eq!(ended, [1]);
}

/// A caller that goes takes its call along: it is not counted at a barrier, and keeps no place in
/// the queue.
#[tokio::test]
async fn a_call_whose_caller_has_gone_is_dropped() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 2).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 2).await.unwrap();
    host.clone_with(&ticket, 0, &[1, 2]).await.unwrap();
    let soon = Duration::from_millis(200);
    let come = |vmid, timeout_ms| SyncRequest {
        ticket: ticket.id.clone(),
        family: ticket.family.clone(),
        vmid,
        timeout_ms,
        after_round: Some(0),
    };
    let (mut one, mut two, mut three) = (client.clone(), client.clone(), client.clone());
    let patient = RequestTicketRequest { timeout_ms: 60_000, ..request(&ticket.family, 1) };
    let wait = join(&ticket, Side::Wait(JoinWait { vmid: 0, timeout_ms: 0 }));
    let (sync, asked, joined) = tokio::join!(
        timeout(soon, one.sync(come(1, 0))),
        timeout(soon, two.request_ticket(patient)),
        timeout(soon, three.join(wait)),
    );
    assert!(sync.is_err() && asked.is_err() && joined.is_err(), "all of them wait");
    let late = client.clone().sync(come(0, 500)).await.unwrap_err();
    assert!(late.message().contains("1 of 3 VMs arrived"), "{late}");
    host.end(&ticket.family, 1, VmEnd::Ended);
    host.all_noted().await;
    // Whoever waited would have it.
    assert_eq!(grant(&client, &family(), 1).await.unwrap().state(), TicketState::Granted);
}

/// What its family has read is not kept for ever, and what was dropped is not taken for nothing.
#[tokio::test]
async fn what_a_clone_left_goes_when_its_master_has_ended() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 2).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 1).await.unwrap();
    host.clone_with(&ticket, 0, &[1]).await.unwrap();
    let leave = JoinLeave { vmid: 1, status: 7, data: vec![1; 1 << 20], noreport: false };
    client.clone().join(join(&ticket, Side::Leave(leave))).await.unwrap();
    host.end(&ticket.family, 1, VmEnd::Joined);
    host.all_noted().await;
    let read = GetJoinDataRequest { ticket: ticket.id.clone(), family: ticket.family.clone(), vmid: 1 };
    for _ in 0..2 {
        let data = client.clone().get_join_data(read.clone()).await.unwrap().into_inner().data;
        assert_eq!(data.len(), 1 << 20, "an answer may be lost");
    }
    let master = RunningClone { family: ticket.family.clone(), ..RunningClone::default() };
    host.link().ended(master, VmEnd::Ended);
    host.all_noted().await;
    let gone = client.clone().get_join_data(read).await;
    assert_eq!(why(gone), (Code::NotFound, "DATA_DROPPED".to_owned()));
    let result = &get(&client, &ticket.id).await.unwrap().results[0];
    assert_eq!((result.status, result.data_bytes, result.data_dropped), (7, 1 << 20, true));
}

#[tokio::test]
async fn a_host_that_is_silent_is_suspect_then_lost_and_keeps_its_clones_when_it_is_back() {
    // A busy machine must not make a host silent that is not.
    let server = Server::start(&["--lease", "3s", "--lost-after", "6s"]);
    let host = FakeHost::start(&server, 8).await;
    let stays = FakeHost::start(&server, 1).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 2).await.unwrap();
    host.clone_with(&ticket, 0, &[1, 2]).await.unwrap();
    host.link().stop();
    let id = host.id.to_string();
    let suspect = host_until(&client, &id, HostState::Suspect).await;
    assert!(!suspect.alive && suspect.lost_unix_ms > suspect.state_unix_ms);
    let still = get(&client, &ticket.id).await.unwrap();
    assert_eq!((still.state(), still.live), (TicketState::Used, 2), "nothing is ended for that");
    let lost = host_until(&client, &id, HostState::Lost).await;
    assert!(lost.state_unix_ms >= suspect.state_unix_ms + 3_000 && lost.lost_unix_ms == 0);
    let fenced = get(&client, &ticket.id).await.unwrap();
    assert_eq!((fenced.state(), fenced.live), (TicketState::Fenced, 0));
    assert!(fenced.results.iter().all(|result| result.end() == VmEnd::Lost));
    stays.registered().await;
    let others: Vec<_> = hosts(&client).await.iter().map(v1::HostStatus::state).collect();
    assert!(others.contains(&HostState::Up) && others.contains(&HostState::Lost));

    let again = host.starts_again(&server).await;
    let kept = get(&client, &ticket.id).await.unwrap();
    assert_eq!((kept.state(), kept.live, again.running()), (TicketState::Used, 2, 2));
    assert!(kept.epoch > fenced.epoch && kept.results.is_empty());
    again.all_noted().await;
}

async fn set(client: &Client, host: &FakeHost, scheduling: HostScheduling) -> Result<v1::HostChange, Status> {
    let request =
        v1::SetHostSchedulingRequest { host_id: host.id.to_string(), scheduling: scheduling.into() };
    client.clone().set_host_scheduling(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn what_an_operator_wants_of_a_host_outlives_the_scheduler() {
    let mut server = Server::start(&[]);
    let host = FakeHost::start(&server, 4).await;
    let client = server.client();
    let used = grant(&client, &family(), 2).await.unwrap();
    host.clone_with(&used, 0, &[1, 2]).await.unwrap();
    let granted = grant(&client, &family(), 1).await.unwrap();
    let drained = set(&client, &host, HostScheduling::Draining).await.unwrap();
    assert_eq!((drained.released_tickets, drained.clones.len()), (1, 2));
    assert_eq!(get(&client, &granted.id).await.unwrap().state(), TicketState::Released);
    assert!(server.stop().success());
    host.away().await;
    server.start_again();
    host.registered().await;
    let client = server.client();
    let there = RequestTicketRequest { host_ids: vec![host.id.to_string()], ..request(&family(), 1) };
    let refused = client.clone().request_ticket(there.clone()).await;
    assert_eq!(why(refused), (Code::FailedPrecondition, "HOST_CORDONED".into()));
    let by_number = host.admit(&family(), 9).await;
    assert_eq!(why(by_number), (Code::FailedPrecondition, "HOST_CORDONED".into()));
    assert_eq!(get(&client, &used.id).await.unwrap().live, 2, "what runs runs on");
    let unspecified = set(&client, &host, HostScheduling::Unspecified).await;
    assert_eq!(why(unspecified).0, Code::InvalidArgument);
    let opened = set(&client, &host, HostScheduling::Open).await.unwrap();
    assert_eq!(opened.host.unwrap().scheduling(), HostScheduling::Open);
    client.clone().request_ticket(there).await.expect("it is granted again");
}

#[tokio::test]
async fn draining_names_the_masters_that_came_and_went_since_the_host_registered() {
    let server = Server::start(&["--lease", "300ms"]);
    let host = FakeHost::start(&server, 4).await;
    let client = server.client();
    let (one, other) = (family(), family());
    for masters in [vec![one.clone()], vec![other.clone()], vec![]] {
        *host.masters.lock().unwrap() = Some(masters.clone());
        let told = async {
            while set(&client, &host, HostScheduling::Draining).await.unwrap().masters != masters {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, told).await.expect("the host says it with a beat");
    }
}

#[tokio::test]
async fn an_operator_fences_a_silent_host_and_no_other() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 4).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 2).await.unwrap();
    host.clone_with(&ticket, 0, &[1, 2]).await.unwrap();
    let id = host.id.to_string();
    let fence = async || {
        let request = v1::FenceHostRequest { host_id: id.clone() };
        client.clone().fence_host(request).await.map(tonic::Response::into_inner)
    };
    assert_eq!(why(fence().await), (Code::FailedPrecondition, "HOST_UP".into()));
    host.link().stop();
    host_until(&client, &id, HostState::Suspect).await;
    let there = RequestTicketRequest { host_ids: vec![id.clone()], ..request(&family(), 1) };
    let refused = client.clone().request_ticket(there).await;
    assert_eq!(why(refused), (Code::Unavailable, "HOST_SILENT".into()));
    assert_eq!(fence().await.unwrap().host.unwrap().state(), HostState::Lost);
    assert_eq!(get(&client, &ticket.id).await.unwrap().state(), TicketState::Fenced);
}

/// A host, once its state is that.
async fn host_until(client: &Client, id: &str, state: HostState) -> v1::HostStatus {
    for _ in 0..SOON.as_millis() / 20 {
        let found = hosts(client).await.into_iter().find(|host| host.info.as_ref().unwrap().id == id);
        if let Some(host) = found.filter(|host| host.state() == state) {
            return host;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{id} is not {state:?}");
}
