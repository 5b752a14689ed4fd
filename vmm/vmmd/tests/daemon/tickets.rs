//! What guests ask: tickets, and clones of themselves.

use crate::{
    bench::{Client, get, kill, ready, tell, vm, wait},
    clones::{clone, console},
    streams::ask,
};
use patina_proto::v1::{VmState, wait_vm_request::Until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::Code;

/// The code of the error that a guest's call is answered with.
async fn refused(client: &mut Client, name: &str, verb: &str, args: Value) -> (i64, String) {
    let answer = ask(client, name, verb, &args.to_string()).await;
    let error = &answer["error"];
    (
        error["code"].as_i64().unwrap_or_else(|| panic!("{answer}")),
        error["message"].as_str().unwrap().to_owned(),
    )
}

async fn granted(client: &mut Client, name: &str, max_cpus: u32, min_vms: u32) -> String {
    let args = json!({"max_cpus": max_cpus, "min_vms": min_vms, "min_cpus_per_vm": 1, "timeout_ms": 10_000});
    let answer = ask(client, name, "rt", &args.to_string()).await;
    assert_eq!(answer["ok"]["status"], "granted", "{answer}");
    answer["ok"]["uuid"].as_str().unwrap().to_owned()
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
        assert_eq!(refused(&mut client, "other", "clone", use_it.clone()).await.0, 1);
        assert_eq!(refused(&mut client, "other", "ticket", json!({"uuid": ticket})).await.0, 1);
        let wide = json!({"max_cpus": 9, "min_vms": 1, "min_cpus_per_vm": 2, "timeout_ms": 0});
        let (code, message) = refused(&mut client, "web", "rt", wide).await;
        assert!(code == 22 && message.contains("--vcpus 2"), "{message}");
        let many = json!({"max_cpus": 9, "min_vms": 2, "min_cpus_per_vm": 1, "timeout_ms": 50});
        assert_eq!(refused(&mut client, "other", "rt", many).await.0, 16, "one is left");
        assert_eq!(clone(&mut client, "other", 2).await.unwrap_err().code(), Code::ResourceExhausted);

        let answer = ask(&mut client, "web", "clone", &use_it.to_string()).await;
        assert_eq!(answer["ok"]["vmids"], json!([1, 2, 3]), "{answer}");
        assert!(console(&mut client, "web.2").await.contains(&format!("ticket: {ticket}\n")));
        assert_eq!(refused(&mut client, "web", "clone", use_it.clone()).await.0, 16, "used already");
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
        assert_eq!(refused(&mut client, "web", "clone", use_it).await.0, 16);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn tickets_of_running_clones_outlive_vmmd() {
    tell(|mut bench| async move {
        bench.more = vec!["--max-vms", "3"];
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        let used = granted(&mut client, "web", 2, 2).await;
        let lost = granted(&mut client, "web", 1, 1).await;
        let answer = ask(&mut client, "web", "clone", &json!({"ticket": used}).to_string()).await;
        assert_eq!(answer["ok"]["vmids"], json!([1, 2]));
        bench.stop(Signal::KILL);

        let mut client = bench.start().await;
        wait(&mut client, "web", Until::Ready).await.unwrap();
        assert_eq!(status(&mut client, "web", &used).await, "used");
        assert_eq!(refused(&mut client, "web", "clone", json!({"ticket": lost})).await.0, 2);
        assert_eq!(clone(&mut client, "web", 2).await.unwrap_err().code(), Code::ResourceExhausted);
        for name in ["web.1", "web.2"] {
            assert_eq!(kill(&mut client, name).await.state(), VmState::Ended);
        }
        assert_eq!(status(&mut client, "web", &used).await, "released");
        assert_eq!(clone(&mut client, "web", 3).await.unwrap().len(), 3);
    });
}
