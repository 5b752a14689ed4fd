//! Whatever cannot be is refused with code and reason.

use crate::{
    fake::{FakeHost, all_tickets, family, get, grant, release, request, still, why},
    server::Server,
};
use patina_proto::v1::{
    AdmitClonesRequest, GetJoinDataRequest, GetTicketRequest, HostMessage, JoinLeave, JoinRequest, JoinWait,
    KillRequest, RequestTicketRequest, SyncRequest, TicketState, UnuseTicketRequest, host_message::Message,
    join_request::Side,
};
use tonic::Code;
use uuid::Uuid;

fn refused(code: Code, reason: &str) -> (Code, String) {
    (code, reason.to_owned())
}

fn invalid() -> (Code, String) {
    refused(Code::InvalidArgument, "INVALID_FIELD")
}

#[tokio::test]
async fn requests_that_cannot_be_met() {
    let server = Server::start(&[]);
    let _host = FakeHost::start(&server, 4).await;
    let client = server.client();
    let family = family();
    let ask = |request: RequestTicketRequest| async { why(client.clone().request_ticket(request).await) };
    assert_eq!(ask(RequestTicketRequest::default()).await, invalid());
    assert_eq!(ask(RequestTicketRequest { max_cpus: 1, ..request(&family, 2) }).await, invalid());
    assert_eq!(ask(RequestTicketRequest { min_cpus_per_vm: 2, ..request(&family, 1) }).await, invalid());
    assert_eq!(ask(request(&family, 5)).await, refused(Code::FailedPrecondition, "IMPOSSIBLE"));
    let held = grant(&client, &family, 3).await.unwrap();
    assert_eq!(ask(request(&family, 2)).await, refused(Code::ResourceExhausted, "NO_CAPACITY"));
    let waits = RequestTicketRequest { timeout_ms: 50, ..request(&family, 2) };
    assert_eq!(ask(waits).await, refused(Code::ResourceExhausted, "NO_CAPACITY"));
    release(&client, &held.id).await.unwrap();
    grant(&client, &family, 4).await.unwrap();
}

#[tokio::test]
async fn tickets_that_are_unknown_foreign_spent_or_too_small() {
    let server = Server::start(&["--ticket-ttl", "1s"]);
    let host = FakeHost::start(&server, 8).await;
    let client = server.client();
    let family = family();
    assert_eq!(why(get(&client, "x").await), invalid());
    let unknown = Uuid::new_v4().to_string();
    assert_eq!(why(get(&client, &unknown).await), refused(Code::NotFound, "UNKNOWN_TICKET"));
    let ticket = grant(&client, &family, 2).await.unwrap();
    let foreign = GetTicketRequest { id: ticket.id.clone(), family: Uuid::new_v4().to_string() };
    let foreign = client.clone().get_ticket(foreign).await;
    assert_eq!(why(foreign), refused(Code::PermissionDenied, "FOREIGN_TICKET"));
    let small = host.clone_with(&ticket, 0, &[1, 2, 3]).await;
    assert_eq!(why(small), refused(Code::FailedPrecondition, "SMALL_TICKET"));
    assert_eq!(why(host.clone_with(&ticket, 0, &[]).await).0, Code::InvalidArgument);
    assert_eq!(why(host.clone_with(&ticket, 0, &[0]).await).0, Code::InvalidArgument);
    let mut stale = ticket.clone();
    stale.epoch += 1;
    assert_eq!(why(host.clone_with(&stale, 0, &[1]).await), refused(Code::Aborted, "STALE_EPOCH"));
    let other = FakeHost::start(&server, 8).await;
    let elsewhere = other.clone_with(&ticket, 0, &[1]).await;
    assert_eq!(why(elsewhere), refused(Code::FailedPrecondition, "OTHER_HOST"));
    host.clone_with(&ticket, 0, &[1, 2]).await.unwrap();
    let twice = host.clone_with(&ticket, 0, &[3, 4]).await;
    assert!(matches!(why(twice), (Code::FailedPrecondition | Code::Aborted, _)));
    let expired = grant(&client, &family, 1).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    let late = host.clone_with(&expired, 0, &[9]).await;
    assert!(
        matches!(why(late), (Code::FailedPrecondition | Code::Aborted, reason) if reason == "EXPIRED" || reason == "STALE_EPOCH")
    );
}

#[tokio::test]
async fn barriers_and_joins_of_the_wrong_side() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 8).await;
    let client = server.client();
    let ticket = grant(&client, &family(), 2).await.unwrap();
    let sync = |vmid, family: &str| {
        let request = SyncRequest {
            ticket: ticket.id.clone(),
            family: family.into(),
            vmid,
            timeout_ms: 100,
            after_round: None,
        };
        let mut client = client.clone();
        async move { why(client.sync(request).await) }
    };
    let join = |side: Option<Side>| {
        let request = JoinRequest { ticket: ticket.id.clone(), family: ticket.family.clone(), side };
        let mut client = client.clone();
        async move { why(client.join(request).await) }
    };
    assert_eq!(sync(0, "").await, refused(Code::FailedPrecondition, "NOT_USED"));
    host.clone_with(&ticket, 0, &[1, 2]).await.unwrap();
    assert_eq!(sync(0, &family()).await, refused(Code::PermissionDenied, "FOREIGN_TICKET"));
    assert_eq!(sync(7, "").await, refused(Code::NotFound, "UNKNOWN_VM"));
    assert_eq!(sync(0, "").await, refused(Code::DeadlineExceeded, "BARRIER_TIMEOUT"));
    let leave = |vmid, bytes| JoinLeave { vmid, status: 0, data: vec![0; bytes], noreport: false };
    assert_eq!(join(None).await, invalid());
    assert_eq!(join(Some(Side::Leave(leave(0, 0)))).await, refused(Code::FailedPrecondition, "NOT_CLONE"));
    let long = Some(Side::Leave(leave(1, (1 << 20) + 1)));
    assert_eq!(join(long).await, refused(Code::ResourceExhausted, "TOO_MUCH_DATA"));
    // What is longer than any message does not even reach the service.
    let (code, _) = join(Some(Side::Leave(leave(1, 3 << 20)))).await;
    assert_eq!(code, Code::OutOfRange);
    let wait = |vmid| Some(Side::Wait(JoinWait { vmid, timeout_ms: 50 }));
    assert_eq!(join(wait(1)).await, refused(Code::FailedPrecondition, "NOT_PARENT"));
    assert_eq!(join(wait(0)).await, refused(Code::DeadlineExceeded, "JOIN_TIMEOUT"));
    let data = GetJoinDataRequest { ticket: ticket.id.clone(), family: String::new(), vmid: 9 };
    let data = client.clone().get_join_data(data).await;
    assert_eq!(why(data), refused(Code::NotFound, "UNKNOWN_VM"));
    let kill = KillRequest { family: ticket.family.clone(), vmids: vec![9], ..KillRequest::default() };
    assert_eq!(why(client.clone().kill(kill).await), refused(Code::NotFound, "UNKNOWN_VM"));
    let kill = KillRequest { ticket: Uuid::new_v4().to_string(), ..KillRequest::default() };
    assert_eq!(why(client.clone().kill(kill).await), refused(Code::NotFound, "UNKNOWN_TICKET"));
}

#[tokio::test]
async fn hosts_that_say_the_wrong_thing() {
    let server = Server::start(&[]);
    let client = server.host_client();
    let say = |messages: Vec<Message>| {
        let messages = messages.into_iter().map(|message| HostMessage { message: Some(message) });
        let messages: Vec<_> = messages.collect();
        let mut client = client.clone();
        async move {
            let mut orders = client.register_host(tokio_stream::iter(messages)).await?.into_inner();
            while orders.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        }
    };
    assert_eq!(why(say(vec![]).await), invalid());
    assert_eq!(why(say(vec![Message::Beat(patina_proto::v1::Beat::default())]).await), invalid());
    let nobody = Message::Register(patina_proto::v1::Register::default());
    assert_eq!(why(say(vec![nobody]).await), invalid());
    let unuse = UnuseTicketRequest { id: "x".into(), ..UnuseTicketRequest::default() };
    assert_eq!(why(client.clone().unuse_ticket(unuse).await), invalid());
}

#[tokio::test]
async fn clones_that_are_not_admitted_leave_no_ticket() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 2).await;
    let host_epoch = host.registered().await;
    let client = server.host_client();
    let admit = |request: AdmitClonesRequest| {
        let mut client = client.clone();
        async move { client.admit_clones(request).await.map(still) }
    };
    let good = |vmids: &[u32]| AdmitClonesRequest {
        family: Uuid::from_u128(1).to_string(),
        request_id: format!("{vmids:?}"),
        host_id: host.id.to_string(),
        host_epoch,
        vmids: vmids.to_vec(),
        vcpus: 1,
        memory_mib: 1,
        ..AdmitClonesRequest::default()
    };
    assert_eq!(why(admit(AdmitClonesRequest::default()).await), invalid());
    let stale = AdmitClonesRequest { host_epoch: host_epoch + 1, ..good(&[1]) };
    assert_eq!(why(admit(stale.clone()).await), refused(Code::Aborted, "STALE_EPOCH"));
    let elsewhere = AdmitClonesRequest { host_id: Uuid::new_v4().to_string(), ..good(&[1]) };
    assert_eq!(why(admit(elsewhere).await), refused(Code::Aborted, "STALE_EPOCH"));
    assert!(all_tickets(&server.client()).await.is_empty());

    let ticket = admit(good(&[1])).await.unwrap();
    assert_eq!((ticket.state(), ticket.vms, ticket.live, ticket.loose), (TicketState::Used, 1, 1, true));
    assert_eq!(admit(stale).await.unwrap(), ticket, "the request that was answered has its ticket");
    assert_eq!(why(admit(good(&[0])).await), invalid());
    // There is room for one: the answer does not wait for more.
    assert_eq!(why(admit(good(&[2, 3])).await), refused(Code::ResourceExhausted, "NO_CAPACITY"));
    assert_eq!(all_tickets(&server.client()).await.len(), 1);
}
