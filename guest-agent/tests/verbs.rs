//! The command with the real agent, and a host played by the test: what the host hears, what the
//! command prints, and what happens when somebody goes away in between.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::gc::{done, end, expect, gc, refuse, reply, shell};
use common::{Fixture, Host, identity, said_ready};
use patina_abi::link::{Answer, FromAgent, FromHost, Identity, PIECE_MAX_BYTES};
use serde_json::{Value, json};
use std::io::BufRead;
use std::process::Child;

const TICKET: &str = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";
const MIB: usize = 1 << 20;

#[test]
fn a_ticket_is_asked_for_with_a_request_id() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let child = gc(&fixture, "rt 8 2 1 500 --request-id job-7 --json");
    let (id, args) = expect(&mut host, "rt");
    let wanted =
        json!({"max_cpus": 8, "min_vms": 2, "min_cpus_per_vm": 1, "timeout_ms": 500, "request_id": "job-7"});
    assert_eq!(args, wanted);
    let ticket = json!({"uuid": TICKET, "status": "granted", "cpus": 8, "vms": 8, "min_cpus_per_vm": 1});
    reply(&mut host, id, ticket.clone());
    let (code, stdout, _) = end(child);
    assert_eq!((code, serde_json::from_str::<Value>(&stdout).unwrap()), (Some(0), ticket));
    let child = gc(&fixture, "rt 8 2 1 500");
    let (id, _) = expect(&mut host, "rt");
    refuse(&mut host, id, 16, "no room for 2 VMs; try again later");
    assert_eq!(end(child), (Some(16), String::new(), "gc: rt: no room for 2 VMs; try again later\n".into()));
}

#[test]
fn a_barrier_prints_nothing_and_says_when_not_all_came() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let child = gc(&fixture, &format!("sync {TICKET} 60000"));
    let (id, args) = expect(&mut host, "sync");
    assert_eq!(args, json!({"ticket": TICKET, "timeout_ms": 60000, "after_round": 0}));
    reply(&mut host, id, json!({"round": 1, "arrived": 3}));
    assert_eq!(end(child), done(0, ""));
    let child = gc(&fixture, &format!("sync {TICKET} 1 --json"));
    let (id, _) = expect(&mut host, "sync");
    refuse(&mut host, id, 62, "2 of 3 VMs came within 1 ms");
    assert_eq!(end(child), (Some(62), String::new(), "gc: sync: 2 of 3 VMs came within 1 ms\n".into()));
    // The master was made under no ticket.
    for arguments in ["sync", "sync 500"] {
        let (code, _, words) = end(gc(&fixture, arguments));
        assert!(code == Some(22) && words.contains("`gc sync TICKET"), "{words}");
    }
    drop(host);
    let mut host = fixture.ready(4);
    for (arguments, wanted) in [("sync", json!({})), ("sync 500", json!({"timeout_ms": 500}))] {
        let child = gc(&fixture, arguments);
        let (id, args) = expect(&mut host, "sync");
        assert_eq!(args, wanted);
        reply(&mut host, id, json!({"round": 2, "arrived": 3}));
        assert_eq!(end(child), done(0, ""));
    }
}

/// The host knows from that whether it was at a meeting whose answer was lost.
#[test]
fn a_sync_whose_answer_is_lost_is_made_again_after_the_same_meeting() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let sync = format!("sync {TICKET}");
    for (after, is_lost) in [(0, true), (0, false), (1, true), (1, false)] {
        let child = gc(&fixture, &sync);
        let (id, args) = expect(&mut host, "sync");
        assert_eq!(args, json!({"ticket": TICKET, "after_round": after}));
        if is_lost {
            drop(host);
            host = fixture.ready(0);
            assert_eq!(end(child).0, Some(107));
        } else {
            reply(&mut host, id, json!({"round": after + 1, "arrived": 3}));
            assert_eq!(end(child), done(0, ""));
        }
    }
    // A clone that asks for the ticket that it was made under.
    drop(host);
    let mut host = fixture.accept();
    host.say(&FromHost::Identity(Identity { ticket: TICKET.into(), ..identity(0) }));
    assert_eq!(host.next(), said_ready(0));
    let mut program = fixture.program();
    program.send("{\"verb\":\"sync\"}\n");
    assert_eq!(expect(&mut host, "sync").1, json!({"after_round": 2}));
}

#[test]
fn a_clone_leaves_its_data_in_pieces_and_never_comes_back() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(4);
    let data: Vec<u8> = (0..MIB as u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(fixture.path("data"), &data).unwrap();
    let mut child = gc(&fixture, "join --status 3 --data data");
    let mut left = Vec::new();
    while left.len() < MIB {
        let (id, args) = expect(&mut host, "leave-data");
        assert_eq!(args["offset"], left.len());
        let piece = base64(&args["data"]);
        assert!(piece.len() <= PIECE_MAX_BYTES);
        left.extend(piece);
        reply(&mut host, id, Value::Null);
    }
    assert!(left == data);
    let (id, args) = expect(&mut host, "leave");
    assert_eq!(args, json!({"status": 3, "noreport": false}));
    reply(&mut host, id, Value::Null);
    // It waits for the machine's end: the agent takes its leaving only after the reply.
    fixture.program().call("vmid");
    assert_eq!(child.try_wait().unwrap(), None, "it came back");
    child.kill().unwrap();
    child.wait().unwrap();

    // Nothing is left, in which case it begins anew at the host; and noreport.
    let child = gc(&fixture, "join");
    let (id, args) = expect(&mut host, "leave-data");
    assert_eq!(args, json!({"offset": 0, "data": ""}));
    reply(&mut host, id, Value::Null);
    let (id, args) = expect(&mut host, "leave");
    assert_eq!(args, json!({"status": 0, "noreport": false}));
    refuse(&mut host, id, 111, "the scheduler does not answer; try again");
    assert_eq!(
        end(child),
        (Some(111), String::new(), "gc: join: the scheduler does not answer; try again\n".into())
    );
    let child = gc(&fixture, "join noreport");
    let (id, args) = expect(&mut host, "leave");
    assert_eq!(args, json!({"status": 0, "noreport": true}));
    refuse(&mut host, id, 5, "no");
    assert_eq!(end(child).0, Some(5));
    // From standard input.
    let child = shell(&fixture, "printf abc | gc join --data -").spawn().unwrap();
    let (id, args) = expect(&mut host, "leave-data");
    assert_eq!(args, json!({"offset": 0, "data": "YWJj"}));
    refuse(&mut host, id, 90, "too much");
    assert_eq!(end(child).0, Some(90));
}

#[test]
fn what_cannot_be_left_is_said_before_the_host_hears_of_it() {
    let fixture = Fixture::new();
    let host = fixture.ready(4);
    std::fs::write(fixture.path("data"), vec![0; MIB + 1]).unwrap();
    let (code, _, words) = end(gc(&fixture, "join --data data"));
    assert!(code == Some(27) && words.contains("data has more than 1048576 bytes"), "{words}");
    let (code, _, words) = end(gc(&fixture, "join --data nothing"));
    assert!(code == Some(2) && words.starts_with("gc: join: read nothing: "), "{words}");
    drop(host);
    let mut host = fixture.ready(0);
    for arguments in ["join", "join noreport", "join --status 1"] {
        let (code, _, words) = end(gc(&fixture, arguments));
        assert!(code == Some(22) && words.contains("`gc join TICKET`"), "{words}");
    }
    assert_eq!(fixture.program().call("vmid"), r#"{"ok":0}"#);
    host.say(&FromHost::Prepare { hold: false });
    assert!(matches!(host.next(), FromAgent::Prepared { .. }), "nothing was said before");
}

fn base64(text: &Value) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap()
}

fn encoded(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[test]
fn a_parent_has_a_line_a_clone_and_the_data_in_files() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let data: Vec<u8> = (0..70_000_u32).map(|i| (i % 253) as u8).collect();
    let clone = |vmid, end, status, bytes, reported| json!({"vmid": vmid, "end": end, "status": status, "data_bytes": bytes, "reported": reported});
    let ended = json!([
        clone(1, "joined", 3, data.len(), true),
        clone(2, "joined", 0, 0, false),
        clone(3, "killed", 0, 0, false),
    ]);
    let child = gc(&fixture, &format!("join {TICKET} 60000 --data-dir out/data"));
    let (id, args) = expect(&mut host, "join");
    assert_eq!(args, json!({"ticket": TICKET, "timeout_ms": 60000}));
    reply(&mut host, id, ended.clone());
    for offset in (0..data.len()).step_by(PIECE_MAX_BYTES) {
        let (id, args) = expect(&mut host, "join-data");
        assert_eq!(args, json!({"ticket": TICKET, "vmid": 1, "offset": offset}));
        let piece = &data[offset..data.len().min(offset + PIECE_MAX_BYTES)];
        reply(&mut host, id, json!({"data": encoded(piece), "bytes": data.len()}));
    }
    assert_eq!(end(child), done(0, "1 joined 3\n2 joined -\n3 killed 0\n"));
    assert!(std::fs::read(fixture.path("out/data/1")).unwrap() == data);
    assert_eq!(
        std::fs::read_dir(fixture.path("out/data")).unwrap().count(),
        1,
        "who left nothing has no file"
    );

    let child = gc(&fixture, &format!("join {TICKET} --json"));
    let (id, args) = expect(&mut host, "join");
    assert_eq!(args, json!({"ticket": TICKET}));
    reply(&mut host, id, ended.clone());
    let (code, stdout, _) = end(child);
    assert_eq!((code, serde_json::from_str::<Value>(&stdout).unwrap()), (Some(0), ended));
    let child = gc(&fixture, &format!("join {TICKET} 5"));
    let (id, _) = expect(&mut host, "join");
    refuse(&mut host, id, 62, "1 of 3 clones has not ended within 5 ms");
    assert_eq!(end(child).0, Some(62));
}

#[test]
fn pieces_that_make_no_sense_are_not_believed() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let pieces = [
        json!({"data": "", "bytes": 9}),
        json!({"data": encoded(b"more than that"), "bytes": 9}),
        json!({"data": "~", "bytes": 9}),
        json!({"data": encoded(b"x"), "bytes": MIB + 1}),
        json!("no"),
    ];
    for piece in pieces {
        let child = gc(&fixture, &format!("join {TICKET} --data-dir out"));
        let (id, _) = expect(&mut host, "join");
        reply(
            &mut host,
            id,
            json!([{"vmid": 1, "end": "joined", "status": 0, "data_bytes": 9, "reported": true}]),
        );
        let (id, _) = expect(&mut host, "join-data");
        reply(&mut host, id, piece.clone());
        let (code, stdout, words) = end(child);
        assert_eq!((code, stdout.as_str()), (Some(71), ""), "{piece}: {words}");
    }
}

#[test]
fn clones_are_killed_by_number_or_by_ticket() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let by_ticket = format!("kill --ticket {TICKET} --json");
    let cases = [
        ("kill 3 5", json!({"vmids": [3, 5]}), ""),
        (by_ticket.as_str(), json!({"ticket": TICKET}), "[3,5]\n"),
    ];
    for (arguments, wanted, printed) in cases {
        let child = gc(&fixture, arguments);
        let (id, args) = expect(&mut host, "kill");
        assert_eq!(args, wanted);
        reply(&mut host, id, json!([3, 5]));
        assert_eq!(end(child), done(0, printed));
    }
    let child = gc(&fixture, "kill 9");
    let (id, _) = expect(&mut host, "kill");
    refuse(&mut host, id, 1, "clone 9 belongs to another family");
    assert_eq!(end(child).0, Some(13), "EPERM must not look like ismaster's 1");
}

#[test]
fn the_host_is_told_when_who_waits_goes_away() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let waits = [
        ("rt", "rt 8 2 1 60000".to_owned()),
        ("sync", format!("sync {TICKET}")),
        ("join", format!("join {TICKET}")),
        ("kill", "kill 7".to_owned()),
    ];
    for (verb, arguments) in waits {
        let mut child = gc(&fixture, &arguments);
        let (id, _) = expect(&mut host, verb);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(host.next(), FromAgent::Cancel { id });
        // An answer that was on its way already goes to nobody.
        reply(&mut host, id, json!(1));
        assert_eq!(fixture.program().call("vmid"), r#"{"ok":0}"#);
    }
    // One that only sends no more waits on.
    let mut program = fixture.program();
    program.send("{\"verb\":\"list\"}\n");
    program.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let (id, _) = expect(&mut host, "list");
    fixture.program().call("vmid");
    reply(&mut host, id, json!([]));
    assert_eq!(program.line(), r#"{"ok":[]}"#);
}

/// Programs that wait in a barrier, a queue and a join.
fn waiting(fixture: &Fixture, host: &mut Host) -> Vec<(Child, u64)> {
    let arguments = [
        ("sync", format!("sync {TICKET}")),
        ("rt", "rt 8 2 1 60000".to_owned()),
        ("join", format!("join {TICKET}")),
    ];
    arguments.map(|(verb, arguments)| (gc(fixture, &arguments), expect(host, verb).0)).into()
}

#[test]
fn who_waits_goes_on_waiting_in_the_parent() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let children = waiting(&fixture, &mut host);
    host.say(&FromHost::Prepare { hold: true });
    assert!(matches!(host.next(), FromAgent::Prepared { result: Answer::Ok(_) }));
    host.say(&FromHost::Resumed { cloned: true });
    let values = [
        json!({"round": 1, "arrived": 2}),
        json!({"uuid": TICKET, "status": "granted", "cpus": 8, "vms": 8, "min_cpus_per_vm": 1}),
        json!([]),
    ];
    let printed = [String::new(), format!("ticket: {TICKET}\n"), String::new()];
    for (((child, id), value), printed) in children.into_iter().zip(values).zip(printed) {
        reply(&mut host, id, value);
        assert_eq!(end(child), done(0, &printed));
    }
}

#[test]
fn who_waits_is_told_in_the_clone() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let children = waiting(&fixture, &mut host);
    host.say(&FromHost::Prepare { hold: true });
    assert!(matches!(host.next(), FromAgent::Prepared { result: Answer::Ok(_) }));
    drop(host);
    let mut host = fixture.ready(5);
    for (child, _) in children {
        let (code, stdout, words) = end(child);
        assert_eq!((code, stdout.as_str()), (Some(107), ""), "{words}");
        assert!(words.contains("the link to the host broke"), "{words}");
    }
    // The host of the clone has never heard of those calls, and does not hear that they are over.
    let child = gc(&fixture, "sync");
    let (id, _) = expect(&mut host, "sync");
    reply(&mut host, id, json!({"round": 1, "arrived": 2}));
    assert_eq!(end(child), done(0, ""));
}

#[test]
fn calls_that_come_and_go_do_not_pile_up_for_a_host_that_does_not_read() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let call = format!("{{\"verb\":\"leave-data\",\"args\":\"{}\"}}\n", "x".repeat(60_000));
    let mut good = fixture.program();
    let refused = (0..20).find_map(|_| {
        let mut programs: Vec<_> = (0..20).map(|_| fixture.program()).collect();
        for program in &mut programs {
            program.send(&call);
        }
        // Each answer is a turn of the agent's, which accepts one program and reads 16 KiB of each:
        // then all calls are taken or refused.
        for _ in 0..25 {
            assert_eq!(good.call("vmid"), r#"{"ok":0}"#);
        }
        programs.iter_mut().find_map(|program| {
            program.stream.get_ref().set_nonblocking(true).unwrap();
            let mut line = String::new();
            program.stream.read_line(&mut line).ok().map(|_| line)
        })
    });
    let line = refused.expect("the agent takes calls without end");
    assert!(line.contains("\"code\":11") && line.contains("slow to take calls"), "{line}");
    // A host that reads in the end finds each call and its end.
    let (mut calls, mut cancels) = (0, 0);
    while calls < 64 || cancels < calls {
        match host.next() {
            FromAgent::Request { .. } => calls += 1,
            FromAgent::Cancel { .. } => cancels += 1,
            other => panic!("{other:?}"),
        }
    }
}
