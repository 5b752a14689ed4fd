//! The program itself: its lock, its end, health, reflection, metrics.

use crate::{
    fake::{FakeHost, all_tickets, family, get, grant, release, request, why},
    server::{SOON, Server},
};
use patina_proto::v1::{
    JoinRequest, JoinWait, KillRequest, RequestTicketRequest, SyncRequest, Ticket, TicketState,
    WatchTicketsRequest, join_request::Side,
};
use scheduler::{client::Client, host::Registration};
use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Stdio,
    time::{Duration, Instant},
};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

#[tokio::test]
async fn two_do_not_share_a_ledger() {
    let server = Server::start(&[]);
    let mut second = server.command();
    second.stderr(Stdio::piped());
    let output = second.output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("another scheduler (pid ") && text.contains("--state-dir"), "{text}");
    grant(&server.client(), &family(), 1).await.expect_err("the first one answers: there is no host");
}

/// Whoever waits is told why; a watcher and a host are let go with the same words.
#[tokio::test]
async fn a_stop_refuses_what_waits_and_keeps_the_ledger() {
    let mut server = Server::start(&[]);
    let host = FakeHost::start(&server, 4).await;
    let client = server.client();
    let family = family();
    let kept = grant(&client, &family, 1).await.unwrap();
    let used = grant(&client, &family, 2).await.unwrap();
    host.clone_with(&used, 0, &[1, 2]).await.unwrap();
    host.obeys(false);
    let before = all_tickets(&client).await;
    let mut events = client.clone().watch_tickets(WatchTicketsRequest::default()).await.unwrap().into_inner();
    let watching = tokio::spawn(async move {
        loop {
            match events.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(status),
            }
        }
    });
    let waiting = wait_for_everything(&client, &used);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begun = Instant::now();
    let (status, mut server) = tokio::task::spawn_blocking(move || (server.stop(), server)).await.unwrap();
    let took = begun.elapsed();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    assert!(!server.socket().exists());
    let stopping = (Code::Unavailable, "STOPPING".to_owned());
    for (number, call) in waiting.into_iter().enumerate() {
        assert_eq!(why(call.await.unwrap()), stopping, "call {number}");
    }
    assert_eq!(why(watching.await.unwrap()), stopping);
    let Registration::Away { why: words } = host.away().await else { panic!("it is registered") };
    assert!(words.contains("it is stopping"), "{words}");
    assert_eq!(why(get(&client, &kept.id).await).0, Code::Unavailable);
    // Nothing is left to be mended: the ledger is one whole file.
    let ledger = rusqlite::Connection::open(server.state().join("scheduler.db")).unwrap();
    let sound: String = ledger.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    drop(ledger);
    server.start_again();
    host.registered().await;
    assert_eq!(all_tickets(&client).await, before);
}

type Waits = tokio::task::JoinHandle<Result<(), Status>>;

/// A request, a VM at a barrier, a join and a kill.
fn wait_for_everything(client: &Client, used: &Ticket) -> Vec<Waits> {
    let (ticket, family) = (used.id.clone(), used.family.clone());
    let ask = RequestTicketRequest { timeout_ms: 60_000, ..request(&crate::fake::family(), 4) };
    let sync =
        SyncRequest { ticket: ticket.clone(), family: family.clone(), vmid: 1, ..SyncRequest::default() };
    let side = Some(Side::Wait(JoinWait { vmid: 0, timeout_ms: 0 }));
    let join = JoinRequest { ticket: ticket.clone(), family, side };
    let kill = KillRequest { ticket, ..KillRequest::default() };
    let [mut first, mut second, mut third, mut fourth] = std::array::from_fn(|_| client.clone());
    vec![
        tokio::spawn(async move { first.request_ticket(ask).await.map(drop) }),
        tokio::spawn(async move { second.sync(sync).await.map(drop) }),
        tokio::spawn(async move { third.join(join).await.map(drop) }),
        tokio::spawn(async move { fourth.kill(kill).await.map(drop) }),
    ]
}

/// Each line of a ticket's life has its family, its ticket, and the VM that cloned with it.
#[tokio::test]
async fn the_log_tells_what_became_of_a_ticket() {
    let server = Server::start(&["--lease", "300ms", "--lost-after", "300ms", "--ticket-ttl", "200ms"]);
    let host = FakeHost::start(&server, 8).await;
    let client = server.client();
    let family = family();
    let used = grant(&client, &family, 2).await.unwrap();
    host.clone_with(&used, 3, &[5, 6]).await.unwrap();
    let released = grant(&client, &family, 1).await.unwrap();
    release(&client, &released.id).await.unwrap();
    let expired = grant(&client, &family, 1).await.unwrap();
    let mut now = TicketState::Granted;
    for _ in 0..SOON.as_millis() / 50 {
        now = get(&client, &expired.id).await.unwrap().state();
        if now == TicketState::Expired {
            host.link().stop();
            now = get(&client, &used.id).await.unwrap().state();
        }
        if now == TicketState::Fenced {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(now, TicketState::Fenced);
    let log = server.log();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |ticket: &Ticket| {
        let fields = lines.iter().map(|line| &line["fields"]).filter(|fields| fields["ticket"] == ticket.id);
        fields
            .map(|fields| {
                assert_eq!(fields["family"], family);
                let message = fields["message"].as_str().unwrap();
                (message.to_owned(), fields["vmid"].as_u64(), fields["vmids"].as_str().map(str::to_owned))
            })
            .collect::<Vec<_>>()
    };
    let line =
        |message: &str, vmid, vmids: Option<&str>| (message.to_owned(), vmid, vmids.map(str::to_owned));
    let granted = || line("ticket granted", None, None);
    assert_eq!(
        of(&used),
        [
            granted(),
            line("ticket used", Some(3), Some("[5, 6]")),
            line("ticket fenced: its host is given up", Some(3), None)
        ]
    );
    assert_eq!(of(&released), [granted(), line("ticket released", None, None)]);
    assert_eq!(of(&expired), [granted(), line("ticket expired", None, None)]);
}

#[tokio::test]
async fn it_says_that_it_is_healthy() {
    let server = Server::start(&[]);
    let channel = server.channel(|endpoint| endpoint).await;
    for service in ["", "patina.v1.Scheduler", "patina.v1.HostScheduler"] {
        let request = HealthCheckRequest { service: service.into() };
        let answer = HealthClient::new(channel.clone()).check(request).await.expect(service).into_inner();
        assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    }
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
        "patina_scheduler_hosts_by_state{state=\"up\"} 1",
        "patina_scheduler_hosts_by_state{state=\"suspect\"} 0",
        "patina_scheduler_hosts_by_state{state=\"lost\"} 0",
        "patina_scheduler_hosts_cordoned 0",
        "patina_scheduler_capacity{resource=\"cpus\"} 8",
        "patina_scheduler_held{resource=\"vms\"} 3",
        // The host's registration reserves epochs.
        "patina_scheduler_commit_seconds_count 2",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

/// A full disk, and a pipe whose reader has ended: what is logged is lost, and the scheduler goes
/// on.
#[tokio::test]
async fn a_log_that_cannot_be_written_does_not_end_it() {
    let full = Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    let closed = Stdio::from(std::io::pipe().unwrap().1);
    for log in [full, closed] {
        let mut server = Server::start(&[]);
        assert!(server.stop().success());
        server.start_with_log(log);
        let host = FakeHost::start(&server, 4).await;
        // Each of these is a line in the log.
        let ticket = grant(&server.client(), &family(), 1).await.unwrap();
        release(&server.client(), &ticket.id).await.unwrap();
        drop(host);
        let status = tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
        assert!(status.success(), "{status}");
    }
}

/// Without the right to it, it says so and goes on.
#[tokio::test]
async fn the_oom_killer_takes_the_scheduler_last_or_it_says_why_not() {
    let own = "/proc/self/oom_score_adj";
    let before = std::fs::read_to_string(own).unwrap();
    let may = std::fs::write(own, "-900").is_ok();
    // A score of its own: what is found is what the scheduler has set.
    std::fs::write(own, "300").unwrap();
    let server = Server::start(&[]);
    std::fs::write(own, before.trim()).ok();
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", server.pid())).unwrap();
    assert_eq!(score.trim(), if may { "-900" } else { "300" });
    assert_eq!(server.log().contains("OOM killer may take the scheduler first"), !may, "{}", server.log());
}
