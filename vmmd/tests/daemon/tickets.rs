//! What guests ask: tickets, and clones of themselves.

use crate::{
    bench::{Client, get, kill, ready, tell, vm, wait},
    clones::{clone, console},
    streams::{ask, ask_last},
};
use patina_proto::v1::{self, EventKind, VmState, wait_vm_request::Until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

/// The code of the error that a guest's call is answered with.
pub async fn refused(client: &mut Client, name: &str, verb: &str, args: Value) -> (i64, String) {
    let answer = ask(client, name, verb, &args.to_string()).await;
    let error = &answer["error"];
    (
        error["code"].as_i64().unwrap_or_else(|| panic!("{answer}")),
        error["message"].as_str().unwrap().to_owned(),
    )
}

pub async fn granted(client: &mut Client, name: &str, max_cpus: u32, min_vms: u32) -> String {
    let args = json!({"max_cpus": max_cpus, "min_vms": min_vms, "min_cpus_per_vm": 1, "timeout_ms": 10_000});
    let answer = ask(client, name, "rt", &args.to_string()).await;
    assert_eq!(answer["ok"]["status"], "granted", "{answer}");
    answer["ok"]["uuid"].as_str().unwrap().to_owned()
}

/// The ticket of the first two clones of "web", which are ready.
pub async fn two_clones(client: &mut Client) -> String {
    let ticket = granted(client, "web", 2, 2).await;
    ask(client, "web", "clone", &json!({"ticket": ticket}).to_string()).await;
    for name in ["web.1", "web.2"] {
        wait(client, name, Until::Ready).await.unwrap();
    }
    ticket
}

async fn status(client: &mut Client, name: &str, uuid: &str) -> String {
    let answer = ask(client, name, "ticket", &json!({"uuid": uuid}).to_string()).await;
    answer["ok"]["status"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_guest_clones_itself_and_its_clones_are_told_apart() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "refuse=2")).await;
        let answer = ask(&mut client, "web", "clone", r#"{"count":3}"#).await;
        assert_eq!(answer["ok"]["vmids"], json!([1, 3]), "{answer}");
        let (vmid, reason) = (&answer["ok"]["failed"][0][0], &answer["ok"]["failed"][0][1]);
        assert!(*vmid == 2 && reason.as_str().unwrap().contains("restore the vCPU: no"), "{answer}");
        let clone = get(&mut client, "web.3").await;
        assert_eq!((clone.parent_vmid, clone.ip.as_str()), (Some(0), "100.64.0.4"));
        // A clone clones itself.
        wait(&mut client, "web.3", Until::Ready).await.unwrap();
        let answer = ask(&mut client, "web.3", "clone", r#"{"count":1}"#).await;
        assert_eq!(answer["ok"]["vmids"], json!([4]));
        assert_eq!(get(&mut client, "web.4").await.parent_vmid, Some(3));
        // Where all fail, the call does.
        let (code, message) = refused(&mut client, "web", "clone", json!({"count": 257})).await;
        assert!(code == 22 && message.contains("not between 1 and 256"), "{code} {message}");
        assert_eq!(bench.memory_files("generation"), 0);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_call_for_clones_that_all_fail_is_an_error() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "die=1")).await;
        let (code, message) = refused(&mut client, "web", "clone", json!({"count": 1})).await;
        assert!(code == 5 && message.contains("cannot restore, giving up"), "{code} {message}");
        // What they had of the host is free again, and so is the ticket's.
        let ticket = granted(&mut client, "web", 256, 256).await;
        assert_eq!(status(&mut client, "web", &ticket).await, "granted");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_ticket_is_granted_used_and_released() {
    tell(|mut bench| async move {
        bench.more = vec!["--max-vms", "4"];
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        ready(&mut client, vm("other", "")).await;
        let ticket = granted(&mut client, "web", 3, 2).await;
        bench.logged("the pool is as it should be").await;
        assert_eq!(bench.warm_folders(), 3, "as many as the ticket is for");
        let lists = ask(&mut client, "web", "lt", "null").await;
        let view = json!({"uuid": ticket, "status": "granted", "cpus": 3, "vms": 3, "min_cpus_per_vm": 1});
        assert_eq!(lists["ok"], json!([view]));
        assert_eq!(ask(&mut client, "other", "lt", "null").await["ok"], json!([]));

        // What cannot be.
        let use_it = json!({"ticket": ticket});
        let unknown = json!({"ticket": "00000000-0000-0000-0000-000000000001"});
        assert_eq!(refused(&mut client, "web", "clone", unknown).await.0, 2);
        assert_eq!(refused(&mut client, "other", "clone", use_it.clone()).await.0, 13);
        assert_eq!(refused(&mut client, "other", "ticket", json!({"uuid": ticket})).await.0, 13);
        let wide = json!({"max_cpus": 9, "min_vms": 1, "min_cpus_per_vm": 2, "timeout_ms": 0});
        let (code, message) = refused(&mut client, "web", "rt", wide).await;
        assert!(code == 22 && message.contains("2 CPUs per VM are wanted"), "{message}");
        let many = json!({"max_cpus": 9, "min_vms": 2, "min_cpus_per_vm": 1, "timeout_ms": 50});
        assert_eq!(refused(&mut client, "other", "rt", many).await.0, 16, "one is left");
        assert_eq!(clone(&mut client, "other", 2).await.unwrap_err().code(), Code::ResourceExhausted);

        let answer = ask(&mut client, "web", "clone", &use_it.to_string()).await;
        assert_eq!(answer["ok"]["vmids"], json!([1, 2, 3]), "{answer}");
        assert!(console(&mut client, "web.2").await.contains(&format!("ticket: {ticket}\n")));
        assert_eq!(refused(&mut client, "web", "clone", use_it.clone()).await.0, 116, "used already");
        wait(&mut client, "web.1", Until::Ready).await.unwrap();
        assert_eq!(status(&mut client, "web.1", &ticket).await, "used", "its clones are of the family");

        // Somebody waits for what the ticket holds.
        let mut other = client.clone();
        let waits = tokio::spawn(async move { granted(&mut other, "other", 4, 2).await });
        kill(&mut client, "web.1").await;
        waits.await.unwrap();
        for name in ["web.2", "web.3"] {
            assert_eq!(status(&mut client, "web", &ticket).await, "used");
            kill(&mut client, name).await;
        }
        assert_eq!(status(&mut client, "web", &ticket).await, "released");
        assert_eq!(refused(&mut client, "web", "clone", use_it).await.0, 116);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn tickets_outlive_vmmd_used_or_not() {
    tell(|mut bench| async move {
        bench.more = vec!["--max-vms", "3"];
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let used = granted(&mut client, "web", 2, 2).await;
        let kept = granted(&mut client, "web", 1, 1).await;
        let answer = ask(&mut client, "web", "clone", &json!({"ticket": used}).to_string()).await;
        assert_eq!(answer["ok"]["vmids"], json!([1, 2]));
        bench.stop(Signal::KILL);

        let mut client = bench.start().await;
        wait(&mut client, "web", Until::Ready).await.unwrap();
        assert_eq!(status(&mut client, "web", &used).await, "used");
        assert_eq!(clone(&mut client, "web", 1).await.unwrap_err().code(), Code::ResourceExhausted);
        let answer = ask(&mut client, "web", "clone", &json!({"ticket": kept}).to_string()).await;
        assert_eq!(answer["ok"]["vmids"], json!([3]), "{answer}");
        assert_eq!(kill(&mut client, "web.3").await.state(), VmState::Ended);
        assert_eq!(status(&mut client, "web", &kept).await, "released");
        for name in ["web.1", "web.2"] {
            assert_eq!(kill(&mut client, name).await.state(), VmState::Ended);
        }
        assert_eq!(status(&mut client, "web", &used).await, "released");
        assert_eq!(clone(&mut client, "web", 3).await.unwrap().len(), 3);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_clone_leaves_its_result_and_its_parent_has_it() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let ticket = two_clones(&mut client).await;
        let master = refused(&mut client, "web", "leave", json!({"status": 1})).await;
        assert!(master.0 == 22 && master.1.contains("master"), "{master:?}");
        // "aGVsbG8=" is "hello".
        let piece = json!({"offset": 5, "data": "aGVsbG8="});
        assert_eq!(refused(&mut client, "web.1", "leave-data", piece).await.0, 22, "nothing before it");
        for offset in [0, 5] {
            let piece = json!({"offset": offset, "data": "aGVsbG8="});
            assert_eq!(ask(&mut client, "web.1", "leave-data", &piece.to_string()).await["ok"], json!(null));
        }
        let wrong = json!({"offset": 10, "data": "not base64!"});
        assert_eq!(refused(&mut client, "web.1", "leave-data", wrong).await.0, 22);
        ask_last(&mut client, "web.1", "leave", r#"{"status": 3}"#).await;
        let ended = wait(&mut client, "web.1", Until::Ended).await.unwrap();
        assert_eq!((ended.end_kind(), ended.ticket.as_str()), (v1::EndKind::Joined, ticket.as_str()));
        assert!(ended.end_reason.contains("status 3 and 10 bytes"), "{}", ended.end_reason);
        let join = json!({"ticket": ticket, "timeout_ms": 50});
        assert_eq!(refused(&mut client, "web", "join", join).await.0, 62, "one lives");
        kill(&mut client, "web.2").await;
        let joined = ask(&mut client, "web", "join", &json!({"ticket": ticket}).to_string()).await;
        let first = json!({"vmid": 1, "end": "joined", "status": 3, "data_bytes": 10, "reported": true});
        let second = json!({"vmid": 2, "end": "killed", "status": 0, "data_bytes": 0, "reported": false});
        assert_eq!(joined["ok"], json!([first, second]), "{joined}");
        let data = json!({"ticket": ticket, "vmid": 1, "offset": 5});
        let piece = ask(&mut client, "web", "join-data", &data.to_string()).await;
        assert_eq!(piece["ok"], json!({"data": "aGVsbG8=", "bytes": 10}), "{piece}");
    });
}

/// Up to a MiB of each clone: it is the scheduler's once that has it, also while the VM lives on.
#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_a_clone_has_left_stays_with_vmmd_no_longer() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        // It does not end when it is told to: it can be asked what is left.
        ready(&mut client, vm("web", "deaf")).await;
        let ticket = two_clones(&mut client).await;
        let piece = json!({"offset": 0, "data": "aGVsbG8="});
        assert_eq!(ask(&mut client, "web.1", "leave-data", &piece.to_string()).await["ok"], json!(null));
        assert_eq!(ask(&mut client, "web.1", "leave", r#"{"status": 3}"#).await["ok"], json!(null));
        let more = json!({"offset": 5, "data": "aGVsbG8="});
        let (code, message) = refused(&mut client, "web.1", "leave-data", more).await;
        assert!(code == 22 && message.contains("0 bytes were left so far"), "{message}");
        let ended = wait(&mut client, "web.1", Until::Ended).await.unwrap();
        assert!(ended.end_reason.contains("status 3 and 5 bytes"), "{}", ended.end_reason);
        let data = json!({"ticket": ticket, "vmid": 1, "offset": 0});
        let piece = ask(&mut client, "web", "join-data", &data.to_string()).await;
        assert_eq!(piece["ok"], json!({"data": "aGVsbG8=", "bytes": 5}), "{piece}");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn operators_clone_with_tickets_and_see_what_happens() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let past = v1::WatchEventsRequest { past: true, ..Default::default() };
        let mut events = client.watch_events(past).await.unwrap().into_inner();
        let ticket = granted(&mut client, "web", 2, 2).await;
        let request = |count, epoch| v1::CloneVmRequest {
            name: "web".into(),
            count,
            ticket: ticket.clone(),
            ticket_epoch: epoch,
            ..Default::default()
        };
        let wrong = client.clone_vm(request(3, 0)).await.unwrap_err();
        assert!(
            wrong.code() == Code::InvalidArgument && wrong.message().contains("it is for 2"),
            "{wrong:?}"
        );
        let stale = client.clone_vm(request(0, 1)).await.unwrap_err();
        assert!(stale.code() == Code::Aborted && stale.message().contains("epoch"), "{stale:?}");
        assert_eq!(client.clone_vm(request(2, 0)).await.unwrap().into_inner().clones.len(), 2);
        let mut kinds = Vec::new();
        while kinds.last().is_none_or(|kind| *kind != EventKind::Cloned) {
            kinds.push(events.message().await.unwrap().unwrap().kind());
        }
        assert_eq!(kinds[..2], [EventKind::Created, EventKind::Ready], "{kinds:?}");
        // Page by page: it is all of them, by name, each once.
        let (mut usage, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let request = v1::ListUsageRequest { page_size: 2, page_token };
            let page = client.list_usage(request).await.unwrap().into_inner();
            assert!(page.monotonic_us > 0);
            sizes.push(page.vms.len());
            usage.extend(page.vms);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(sizes, [2, 1]);
        assert_eq!(usage.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["web", "web.1", "web.2"]);
        assert!(usage.iter().all(|vm| vm.private_kib > 0), "{usage:?}");
        let all = client.list_usage(v1::ListUsageRequest::default()).await.unwrap().into_inner();
        assert_eq!((all.vms.len(), all.next_page_token.as_str()), (3, ""));
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn metrics_tell_what_happened_and_what_there_is() {
    tell(|mut bench| async move {
        bench.more = vec!["--metrics", "127.0.0.1:9464"];
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        clone(&mut client, "web", 2).await.unwrap();
        let mut stream = tokio::net::TcpStream::connect("127.0.0.1:9464").await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        for line in [
            "patina_clones_total{result=\"made\"} 2",
            "patina_clone_pause_seconds_count 1",
            "patina_clone_stage_seconds_count{stage=\"executing\"} 2",
            "patina_vms{state=\"ended\"} 0",
            "patina_scheduler_",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1, "{text}");
    });
}
