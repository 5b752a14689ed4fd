//! The program itself: its lock, its end, health, reflection, metrics.

use crate::{
    fake::{FakeHost, family, get, grant, request, why},
    server::Server,
};
use patina_proto::v1::RequestTicketRequest;
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::test]
async fn two_do_not_share_a_ledger() {
    let server = Server::start(&[]);
    let mut second = server.command();
    second.stderr(std::process::Stdio::piped());
    let output = second.output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("another scheduler (pid ") && text.contains("--state-dir"), "{text}");
    grant(&server.client(), &family(), 1).await.expect_err("the first one answers: there is no host");
}

#[tokio::test]
async fn a_stop_refuses_what_waits_and_keeps_the_ledger() {
    let mut server = Server::start(&[]);
    let host = FakeHost::start(&server, 1).await;
    let client = server.client();
    let kept = grant(&client, &family(), 1).await.unwrap();
    let waits = RequestTicketRequest { timeout_ms: 60_000, ..request(&family(), 1) };
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.request_ticket(waits).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let status = tokio::task::spawn_blocking(move || (server.stop(), server)).await.unwrap();
    let (status, mut server) = status;
    assert!(status.success(), "{status}");
    assert!(!server.socket().exists());
    assert_eq!(why(waiting.await.unwrap()).0, Code::Unavailable);
    assert_eq!(why(get(&client, &kept.id).await).0, Code::Unavailable);
    server.start_again();
    host.registered().await;
    assert_eq!(get(&client, &kept.id).await.unwrap().id, kept.id);
}

#[tokio::test]
async fn it_says_that_it_is_healthy() {
    let server = Server::start(&[]);
    let channel = server.channel(|endpoint| endpoint).await;
    let request = HealthCheckRequest { service: "patina.v1.Scheduler".into() };
    let answer = HealthClient::new(channel).check(request).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
}

#[tokio::test]
async fn metrics_follow_the_ledger() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let server = Server::start(&["--metrics", &address.to_string()]);
    let _host = FakeHost::start(&server, 8).await;
    let client = server.client();
    grant(&client, &family(), 3).await.unwrap();
    grant(&client, &family(), 6).await.expect_err("there is no room");
    let text = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    let text = text.await.unwrap();
    for line in [
        "patina_scheduler_grants_total 1",
        "patina_scheduler_refusals_total{reason=\"NO_CAPACITY\"} 1",
        "patina_scheduler_tickets{state=\"granted\"} 1",
        "patina_scheduler_hosts_alive 1",
        "patina_scheduler_capacity{resource=\"cpus\"} 8",
        "patina_scheduler_held{resource=\"vms\"} 3",
        "patina_scheduler_commit_seconds_count 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}
