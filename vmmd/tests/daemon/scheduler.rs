//! vmmd and its scheduler: what is asked of it when it is away or full, and what it orders.

use crate::{
    bench::{self, Client, get, kill, ready, tell, vm},
    clones::{self, clones},
    steps::{Hold, running, until},
    streams::{ask, run},
    tickets::{granted, refused, two_clones},
};
use futures::future::join_all;
use patina_proto::v1::{
    self, CloneVmRequest, GetHostRequest, KillRequest, ListHostsRequest, ListTicketsRequest, Prepare,
    ReleaseTicketRequest, RequestTicketRequest, TicketState, UseTicketRequest, VmState,
    host_scheduler_client::HostSchedulerClient, scheduler_client::SchedulerClient, vmmd_client::VmmdClient,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};
use tokio::time::{sleep, timeout};
use tonic::Code;

const SOON: Duration = Duration::from_secs(10);

/// A call of a guest beside what else happens.
pub fn asking(client: &Client, name: &str, verb: &str, args: Value) -> tokio::task::JoinHandle<Value> {
    let (mut client, name, verb) = (client.clone(), name.to_owned(), verb.to_owned());
    tokio::spawn(async move { ask(&mut client, &name, &verb, &args.to_string()).await })
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_guest_that_waits_for_a_ticket_gets_it_though_the_scheduler_is_killed_meanwhile() {
    tell(|mut bench| async move {
        bench.more = vec!["--max-vms", "2"];
        bench.start_scheduler().await;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let first = granted(&mut client, "web", 2, 2).await;
        let args = json!({"max_cpus": 2, "min_vms": 2, "min_cpus_per_vm": 1, "timeout_ms": 15_000});
        let waits = asking(&client, "web", "rt", args);
        sleep(Duration::from_millis(300)).await;
        bench.signal_scheduler(Signal::KILL);
        bench.start_scheduler().await;
        assert!(!waits.is_finished());
        let mut scheduler = bench.scheduler().await;
        let release = ReleaseTicketRequest { id: first, family: String::new() };
        scheduler.release_ticket(release).await.unwrap();
        let answer = waits.await.unwrap();
        assert_eq!(answer["ok"]["status"], "granted", "{answer}");
        let all = scheduler.list_tickets(ListTicketsRequest::default()).await.unwrap().into_inner().tickets;
        let granted = all.iter().filter(|ticket| ticket.state() == TicketState::Granted);
        assert_eq!(granted.count(), 1, "once only: {all:?}");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn nobody_misses_a_meeting_though_the_scheduler_or_vmmd_is_killed() {
    tell(|mut bench| async move {
        bench.start_scheduler().await;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let ticket = two_clones(&mut client).await;
        let after = |round: u64| json!({"ticket": ticket, "after_round": round, "timeout_ms": 20_000});
        let come = |client: &Client, names: &[&str], round| {
            names.iter().map(|name| asking(client, name, "sync", after(round))).collect::<Vec<_>>()
        };
        // Two wait while the scheduler is killed. They need not know of it.
        let mut first = come(&client, &["web", "web.1"], 0);
        sleep(Duration::from_millis(300)).await;
        bench.signal_scheduler(Signal::KILL);
        bench.start_scheduler().await;
        first.extend(come(&client, &["web.2"], 0));
        for met in join_all(first).await {
            assert_eq!(met.unwrap()["ok"], json!({"round": 1, "arrived": 3}));
        }
        // The answers of two are lost: they come again when the third one has gone on.
        let ahead = come(&client, &["web.2"], 1);
        for met in join_all(come(&client, &["web", "web.1"], 0)).await {
            assert_eq!(met.unwrap()["ok"], json!({"round": 1, "arrived": 3}));
        }
        assert!(!ahead[0].is_finished());
        // All of them are cut off when vmmd is killed, with that one's call.
        bench.stop(Signal::KILL);
        ahead.into_iter().for_each(|call| call.abort());
        client = bench.start().await;
        for name in ["web", "web.1", "web.2"] {
            bench::wait(&mut client, name, v1::wait_vm_request::Until::Ready).await.unwrap();
        }
        for met in join_all(come(&client, &["web", "web.1", "web.2"], 1)).await {
            assert_eq!(met.unwrap()["ok"], json!({"round": 2, "arrived": 3}));
        }
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_scheduler_that_is_away_is_an_error_in_bounded_time_for_whoever_asks() {
    tell(|mut bench| async move {
        bench.start_scheduler().await;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let ticket = granted(&mut client, "web", 1, 1).await;
        bench.signal_scheduler(Signal::STOP);
        // It does not answer, and nobody closes the connection: of that only time tells.
        let calls = [
            ("clone", json!({"ticket": ticket})),
            ("ticket", json!({"uuid": ticket})),
            ("rt", json!({"max_cpus": 1, "min_vms": 1, "min_cpus_per_vm": 1, "timeout_ms": 0})),
        ];
        let calls = calls.map(|(verb, args)| asking(&client, "web", verb, args));
        for answer in join_all(calls).await {
            let answer = answer.unwrap();
            assert_eq!(answer["error"]["code"], 11, "{answer}");
        }
        bench.signal_scheduler(Signal::CONT);
        let answer = ask(&mut client, "web", "clone", &json!({"ticket": ticket}).to_string()).await;
        assert_eq!(answer["ok"]["vmids"].as_array().map(Vec::len), Some(1), "{answer}");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn clones_that_are_killed_while_they_are_made_do_not_run() {
    tell(|mut bench| async move {
        bench.start_scheduler().await;
        let mut client = bench.start().await;
        let family = ready(&mut client, vm("web", &words(&bench))).await.family;
        let (freeze, start) = (Hold::new(bench.path("freeze")), Hold::new(bench.path("start")));
        for hold in [&freeze, &start] {
            let ticket = granted(&mut client, "web", 2, 2).await;
            hold.lock();
            let call = asking(&client, "web", "clone", json!({"ticket": ticket}));
            hold.reached(if std::ptr::eq(hold, &freeze) { 1 } else { 2 }).await;
            let mut scheduler = bench.scheduler().await;
            let kill =
                KillRequest { family: family.clone(), ticket: ticket.clone(), ..KillRequest::default() };
            let killed = tokio::spawn(async move { scheduler.kill(kill).await });
            bench.logged("the scheduler ends clones").await;
            assert!(!killed.is_finished());
            hold.unlock();
            let ended = timeout(SOON, killed).await.expect("it does not wait for ever").unwrap();
            assert_eq!(ended.unwrap().into_inner().ended.len(), 2);
            let answer = call.await.unwrap();
            if std::ptr::eq(hold, &freeze) {
                let message = answer["error"]["message"].as_str().unwrap_or_default();
                assert!(message.contains("killed before it ran"), "{answer}");
            }
            // A clone that had its generation has run for a moment: vmmd writes its end down.
            until("none of them runs", async || running(&bench, &mut client).await == Some(0)).await;
        }
        granted(&mut client, "web", 256, 256).await;
    });
}

fn words(bench: &crate::bench::Bench) -> String {
    ["freeze", "start"].map(|name| format!("hold-{name}={}", bench.path(name).display())).join(" ")
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_guest_that_takes_its_calls_for_clones_back_has_one_at_a_time_all_the_same() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", &words(&bench))).await;
        let (freeze, _start) = (Hold::new(bench.path("freeze")), Hold::new(bench.path("start")));
        freeze.lock();
        let mark = bench.path("freeze.0");
        let dropped = ["drop", "clone", r#"{"count":1}"#, mark.to_str().unwrap()];
        assert_eq!(run(&mut client, "web", &dropped).await, (String::new(), 0));
        let (code, message) = refused(&mut client, "web", "clone", json!({"count": 1})).await;
        assert!(code == 16 && message.contains("under way"), "{code} {message}");
        freeze.unlock();
        until("the first clone is made", async || is_there(&mut client, "web.1").await).await;
        until("there is a turn again", async || {
            ask(&mut client, "web", "clone", r#"{"count":1}"#).await["ok"]["vmids"] == json!([2])
        })
        .await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn calls_for_clones_that_are_given_up_in_line_make_none() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", &words(&bench))).await;
        let (freeze, _start) = (Hold::new(bench.path("freeze")), Hold::new(bench.path("start")));
        freeze.lock();
        let mark = bench.path("freeze.0");
        let clone =
            |mut client: Client| tokio::spawn(async move { clones::clone(&mut client, "web", 1).await });
        let first = clone(client.clone());
        until("the first is being frozen for", async || mark.exists()).await;
        let given_up = clone(client.clone());
        // The guest's comes after it, and so is known to be in line behind it.
        let dropped = ["drop", "clone", r#"{"count":1}"#, mark.to_str().unwrap()];
        assert_eq!(run(&mut client, "web", &dropped).await, (String::new(), 0));
        given_up.abort();
        assert!(given_up.await.is_err());
        // vmmd has heard of that once it has answered what was asked afterwards.
        assert!(is_there(&mut client, "web").await);
        freeze.unlock();
        assert_eq!(first.await.unwrap().unwrap().len(), 1);
        until("there is a turn again", async || {
            ask(&mut client, "web", "clone", r#"{"count":1}"#).await["ok"]["vmids"] == json!([2])
        })
        .await;
        assert_eq!(bench.vm_folders().len(), 3);
    });
}

/// A ready VM `web` and a scheduler that is stopped; the file that appears when the VM is frozen.
async fn with_a_scheduler_that_stands_still(bench: &mut bench::Bench) -> (Client, PathBuf, [Hold; 2]) {
    bench.start_scheduler().await;
    let mut client = bench.start().await;
    ready(&mut client, vm("web", &words(bench))).await;
    let holds = ["freeze", "start"].map(|name| Hold::new(bench.path(name)));
    bench.signal_scheduler(Signal::STOP);
    (client, bench.path("freeze.0"), holds)
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_is_frozen_while_the_scheduler_decides_and_again_where_that_takes_long() {
    tell(|mut bench| async move {
        let (client, mark, _holds) = with_a_scheduler_that_stands_still(&mut bench).await;
        let mut caller = client;
        let clone = tokio::spawn(async move {
            let request = CloneVmRequest {
                name: "web".into(),
                count: 1,
                prepare: Prepare::None.into(),
                ..Default::default()
            };
            caller.clone_vm(request).await
        });
        until("it is frozen though nothing is granted", async || mark.exists()).await;
        std::fs::remove_file(&mark).unwrap();
        // So long that the machine has gone on.
        sleep(Duration::from_millis(300)).await;
        assert!(!mark.exists(), "once, until the grant");
        bench.signal_scheduler(Signal::CONT);
        assert_eq!(clone.await.unwrap().unwrap().into_inner().clones.len(), 1);
        assert!(mark.exists(), "its clone is of the machine as it was when it was granted");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_vm_whose_agent_is_told_of_the_freeze_is_frozen_only_when_its_clones_are_granted() {
    tell(|mut bench| async move {
        let (client, mark, _holds) = with_a_scheduler_that_stands_still(&mut bench).await;
        let clone = asking(&client, "web", "clone", json!({"count": 1}));
        sleep(Duration::from_millis(300)).await;
        assert!(!mark.exists(), "its agent would go on as one that was cloned");
        bench.signal_scheduler(Signal::CONT);
        let answer = clone.await.unwrap();
        assert_eq!(answer["ok"]["vmids"], json!([1]), "{answer}");
        assert!(mark.exists());
    });
}

async fn is_there(client: &mut Client, name: &str) -> bool {
    client.get_vm(v1::GetVmRequest { name: name.into() }).await.is_ok()
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn calls_that_wait_for_the_scheduler_keep_no_others_out() {
    tell(|mut bench| async move {
        bench.more = vec!["--max-vms", "1"];
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        granted(&mut client, "web", 1, 1).await;
        let channel = bench.channel("vmmd.sock").await;
        let waiting = (1..=600_u128).map(|number| {
            let request = RequestTicketRequest {
                family: uuid::Uuid::from_u128(number).to_string(),
                max_cpus: 1,
                min_vms: 1,
                min_cpus_per_vm: 1,
                vcpus: 1,
                memory_mib: 128,
                timeout_ms: 60_000,
                ..RequestTicketRequest::default()
            };
            let mut scheduler = SchedulerClient::new(channel.clone());
            tokio::spawn(async move { scheduler.request_ticket(request).await })
        });
        let waiting: Vec<_> = waiting.collect();
        let mut scheduler = SchedulerClient::new(channel.clone());
        let hosts = timeout(SOON, scheduler.list_hosts(ListHostsRequest::default())).await;
        assert!(hosts.expect("the scheduler answers").is_ok());
        let host = timeout(SOON, VmmdClient::new(channel).get_host(GetHostRequest {})).await;
        assert!(host.expect("vmmd answers").is_ok());
        assert!(waiting.iter().all(|call| !call.is_finished()), "all of them wait");
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn operators_of_a_standalone_host_are_not_offered_the_calls_of_hosts() {
    tell(|mut bench| async move {
        drop(bench.start().await);
        let channel = bench.channel("vmmd.sock").await;
        let mut hosts = HostSchedulerClient::new(channel.clone());
        let used = hosts.use_ticket(UseTicketRequest::default()).await.unwrap_err();
        assert_eq!(used.code(), Code::Unimplemented, "{used}");
        let mut scheduler = SchedulerClient::new(channel);
        assert!(scheduler.list_hosts(ListHostsRequest::default()).await.is_ok());
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn warm_vms_for_a_ticket_that_expires_go() {
    tell(|mut bench| async move {
        bench.more = vec!["--ticket-ttl", "2s"];
        bench.warm = 1;
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        bench.logged("the pool is as it should be").await;
        granted(&mut client, "web", 3, 3).await;
        bench.logged("the pool is as it should be").await;
        assert_eq!(bench.warm_folders(), 3);
        // Nothing happens but that time passes.
        until("it is as it was", async || bench.warm_folders() == 1).await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn clones_for_a_host_that_refuses_them_fail_and_those_here_run() {
    tell(|mut bench| async move {
        bench.start_scheduler().await;
        let mut client = bench.start().await;
        let family = ready(&mut client, vm("web", "")).await.family;
        let (mut other, mut elsewhere) = bench.start_another("other", "other.sock").await;
        let there = elsewhere.get_host(GetHostRequest {}).await.unwrap().into_inner();
        let here = client.get_host(GetHostRequest {}).await.unwrap().into_inner();
        let mut scheduler = bench.scheduler().await;
        let mut ask_for = async |host_ids: Vec<String>, vms: u32, policy| {
            let request = RequestTicketRequest {
                family: family.clone(),
                max_cpus: vms,
                min_vms: vms,
                min_cpus_per_vm: 1,
                vcpus: 1,
                memory_mib: 256,
                host_ids,
                policy,
                ..RequestTicketRequest::default()
            };
            scheduler.request_ticket(request).await.unwrap().into_inner()
        };
        let pack = v1::PlacementPolicy::Pack.into();
        let away = ask_for(vec![there.id.clone()], 2, pack).await;
        let (code, message) = refused(&mut client, "web", "clone", json!({"ticket": away.id})).await;
        // Two vmmds of one network namespace cannot share a family, and the other one says so.
        let why = "hosts that share a network namespace cannot share a family";
        assert_eq!(code, 121, "{message}");
        assert!(message.contains(&format!("on host {}: ", there.hostname)), "{message}");
        assert!(message.contains(why), "{message}");
        // Of one for both hosts as many are made as are for this one.
        let both = ask_for(vec![here.id.clone(), there.id], 4, v1::PlacementPolicy::Spread.into()).await;
        let part = both.placements.iter().find(|place| place.host_id == here.id).unwrap().vms;
        assert!(part < 4, "{both:?}");
        let answer = ask(&mut client, "web", "clone", &json!({"ticket": both.id}).to_string()).await;
        assert_eq!(answer["ok"]["vmids"].as_array().map(Vec::len), Some(part as usize), "{answer}");
        let failed = answer["ok"]["failed"].as_array().unwrap();
        assert_eq!(failed.len(), 4 - part as usize, "{answer}");
        assert!(failed.iter().all(|failed| failed[1].as_str().unwrap().contains(why)), "{answer}");
        other.kill().unwrap();
        other.wait().unwrap();
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn clones_do_not_wait_for_a_master_that_has_ended() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        two_clones(&mut client).await;
        let meet =
            ["web.1", "web.2"].map(|name| asking(&client, name, "sync", json!({"timeout_ms": 15_000})));
        sleep(Duration::from_millis(300)).await;
        assert!(!meet.iter().any(tokio::task::JoinHandle::is_finished), "they wait for their parent");
        kill(&mut client, "web").await;
        for met in join_all(meet).await {
            let met = met.unwrap();
            assert_eq!(met["ok"]["arrived"], 2, "{met}");
        }
        assert_eq!(get(&mut client, "web.1").await.state(), VmState::Ready);
        assert_eq!(clones(&mut client, "web.1", 1).await.len(), 1);
    });
}
