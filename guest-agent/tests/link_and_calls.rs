//! The agent's link to the host and the socket for programs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Fixture, identity, said_ready};
use patina_abi::LINE_MAX_BYTES;
use patina_abi::link::{Answer, CallError, FromAgent, FromHost, REQUESTS_MAX};
use std::io::{ErrorKind, Write};

#[test]
fn an_identity_is_put_in_place_and_answered() {
    let fixture = Fixture::new();
    let mut program = fixture.program();
    assert!(program.call("vmid").contains("\"code\":107"), "there is no identity yet");

    let mut host = fixture.ready(0);
    assert_eq!(*fixture.applied.lock().unwrap(), [identity(0)]);
    assert!(
        std::fs::read_to_string(fixture.path("identity")).unwrap().starts_with("vmid=0\nip=100.64.0.1\n")
    );
    assert!(std::fs::read_to_string(fixture.path("hosts")).unwrap().contains("100.64.0.1 vm-0"));
    assert_eq!(program.call("vmid"), r#"{"ok":0}"#);
    assert_eq!(*fixture.said.lock().unwrap(), ["vmid 0 100.64.0.1 ready"]);
    assert_eq!(program.call("my-ip"), r#"{"ok":"100.64.0.1"}"#);
    assert_eq!(program.call("ismaster"), r#"{"ok":true}"#);

    // The same VM becomes another one: a clone.
    host.say(&FromHost::Identity(identity(5)));
    assert_eq!(host.next(), said_ready(5));
    assert_eq!(program.call("vmid"), r#"{"ok":5}"#);
    assert_eq!(program.call("ismaster"), r#"{"ok":false}"#);
    assert!(std::fs::read_to_string(fixture.path("identity")).unwrap().starts_with("vmid=5\n"));
}

#[test]
fn calls_are_answered_by_the_host_in_any_order() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (mut one, mut two) = (fixture.program(), fixture.program());
    one.send("{\"verb\":\"list\"}\n");
    let (first, verb) = host.request();
    assert_eq!(verb, "list");
    two.send("{\"verb\":\"fly\",\"args\":{\"to\":\"moon\"}}\n");
    let (second, verb) = host.request();
    assert_eq!(verb, "fly");

    let refusal = CallError { code: 22, message: "unknown verb \"fly\"".into() };
    host.say(&FromHost::Reply { id: second, result: Answer::Error(refusal) });
    assert_eq!(two.line(), r#"{"error":{"code":22,"message":"unknown verb \"fly\""}}"#);
    // An answer that nobody asked for is nothing.
    host.say(&FromHost::Reply { id: 999, result: Answer::Ok(1.into()) });
    host.say(&FromHost::Reply { id: first, result: Answer::Ok(serde_json::json!([])) });
    assert_eq!(one.line(), r#"{"ok":[]}"#);
}

#[test]
fn a_broken_link_answers_what_waits_and_is_made_again_at_once() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let mut program = fixture.program();
    program.send("{\"verb\":\"list\"}\n{\"verb\":\"vmid\"}\n");
    host.request();
    drop(host);
    assert!(program.line().contains("\"code\":107"));
    assert_eq!(program.line(), r#"{"ok":0}"#);
    // The identity stays while there is no link; the next host may change it.
    let host = fixture.ready(3);
    assert_eq!(program.call("vmid"), r#"{"ok":3}"#);
    // A reset on purpose is no news for people, and a console is slow for a clone.
    assert_eq!(*fixture.said.lock().unwrap(), ["vmid 0 100.64.0.1 ready"]);

    // A host that does not listen: the agent goes on trying, and calls say so.
    std::fs::remove_file(fixture.path("host")).unwrap();
    drop(host);
    assert!(program.call("list").contains("\"code\":107"));
    let again = std::os::unix::net::UnixListener::bind(fixture.path("host")).unwrap();
    let mut fds = [rustix::event::PollFd::new(&again, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&common::patience())), Ok(1));
}

#[test]
fn a_host_that_talks_rubbish_loses_its_link_only() {
    let fixture = Fixture::new();
    let mut program = fixture.program();
    let rubbish: [&[u8]; 3] = [b"rubbish\n", b"{\"t\":\"reply\"}\n", &[b'x'; LINE_MAX_BYTES + 1]];
    for bytes in rubbish {
        let mut host = fixture.accept();
        assert!(matches!(host.next(), FromAgent::Hello { .. }));
        host.stream.get_mut().write_all(bytes).unwrap();
        // A reset is as good: the agent leaves what it did not want to read.
        let mut line = String::new();
        match std::io::BufRead::read_line(&mut host.stream, &mut line) {
            Ok(count) => assert_eq!(count, 0, "{line}"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
        }
    }
    let mut host = fixture.accept();
    host.next();
    let mut waiting = fixture.program();
    waiting.send("{\"verb\":\"list\"}\n");
    host.request();
    let mut forged = identity(0);
    forged.hostname = "a\nvmid=9".into();
    host.say(&FromHost::Identity(forged));
    assert!(matches!(host.next(), FromAgent::NotReady { reason } if reason.contains("invalid host name")));
    assert!(fixture.applied.lock().unwrap().is_empty());
    assert!(!fixture.path("identity").exists());
    assert!(program.call("vmid").contains("\"code\":107"));
    drop(host);
    assert!(waiting.line().contains("\"code\":107"));
    fixture.ready(0);
}

#[test]
fn one_program_too_many_is_told() {
    let fixture = Fixture::new();
    let _host = fixture.ready(0);
    let mut programs: Vec<_> = (0..64).map(|_| fixture.program()).collect();
    for program in &mut programs {
        assert_eq!(program.call("vmid"), r#"{"ok":0}"#);
    }
    let mut one_too_many = fixture.program();
    assert!(one_too_many.line().contains("\"code\":11"));
    assert_eq!(one_too_many.line(), "");
    // A call between makes sure that the agent has seen the other go.
    drop(programs.pop());
    assert_eq!(programs[0].call("vmid"), r#"{"ok":0}"#);
    assert_eq!(fixture.program().call("vmid"), r#"{"ok":0}"#);
}

#[test]
fn rubbish_ends_its_sender_with_a_word_and_nobody_else() {
    let fixture = Fixture::new();
    let _host = fixture.ready(0);
    let mut good = fixture.program();
    for rubbish in ["rubbish\n", "\n", "{}\n", "{\"verb\":7}\n", "[]\n{\"verb\":\"vmid\"}\n", "\u{0}\n"] {
        let mut bad = fixture.program();
        bad.send(rubbish);
        assert!(bad.line().contains("\"code\":22"), "{rubbish:?}");
        assert_eq!(bad.line(), "", "{rubbish:?}");
    }
    // A flood that never reads and never ends a line.
    let mut flood = fixture.program();
    let stream = flood.stream.get_mut();
    let bytes = [b'x'; 4096];
    let mut sent_bytes = 0;
    let end = loop {
        match stream.write(&bytes) {
            Ok(count) => sent_bytes += count,
            Err(e) => break e,
        }
        assert!(sent_bytes < 64 * LINE_MAX_BYTES, "the flood is never cut off");
    };
    assert!(matches!(end.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{end}");
    assert_eq!(good.call("vmid"), r#"{"ok":0}"#);
}

#[test]
fn a_program_that_does_not_read_waits_alone_and_loses_nothing() {
    let fixture = Fixture::new();
    let _host = fixture.ready(0);
    let mut slow = fixture.program();
    slow.stream.get_mut().set_nonblocking(true).unwrap();
    let call = b"{\"verb\":\"my-ip\"}\n";
    let mut sent_bytes = 0;
    let calls = call.repeat(1024);
    // Until its own socket buffer is full: the agent does not take more in.
    loop {
        match slow.stream.get_mut().write(&calls[sent_bytes % call.len()..]) {
            Ok(count) => sent_bytes += count,
            Err(e) => break assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent_bytes < 64 << 20, "the agent takes calls without end");
    }
    let mut good = fixture.program();
    assert_eq!(good.call("vmid"), r#"{"ok":0}"#);
    slow.stream.get_mut().set_nonblocking(false).unwrap();
    for _ in 0..sent_bytes / call.len() {
        assert_eq!(slow.line(), r#"{"ok":"100.64.0.1"}"#);
    }
}

#[test]
fn the_host_never_has_more_calls_than_it_takes() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    // As many as may be connected.
    let mut programs: Vec<_> = (0..REQUESTS_MAX).map(|_| fixture.program()).collect();
    let mut ids = Vec::new();
    for program in &mut programs {
        program.send("{\"verb\":\"list\"}\n");
        ids.push(host.request().0);
    }
    // One that leaves without its answer takes its call along, and another has its place.
    drop(programs.pop());
    assert_eq!(host.next(), FromAgent::Cancel { id: ids[REQUESTS_MAX - 1] });
    let mut another = fixture.program();
    another.send("{\"verb\":\"list\"}\n");
    let (id, _) = host.request();
    assert!(!ids.contains(&id));
    host.say(&FromHost::Reply { id, result: Answer::Ok(1.into()) });
    assert_eq!(another.line(), r#"{"ok":1}"#);
}

#[test]
fn a_program_that_closed_its_half_still_gets_its_answer() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let mut program = fixture.program();
    program.send("{\"verb\":\"list\"}\n{\"verb\":\"vmid\"}\n");
    program.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let (id, _) = host.request();
    host.say(&FromHost::Reply { id, result: Answer::Ok("yes".into()) });
    assert_eq!(program.line(), r#"{"ok":"yes"}"#);
    assert_eq!(program.line(), r#"{"ok":0}"#);
    assert_eq!(program.line(), "");
}

#[test]
fn a_clock_that_somebody_sets_is_the_hosts_again() {
    let fixture = Fixture::new();
    // Before there is a host nobody can be asked.
    fixture.set_clock();
    let mut host = fixture.ready(0);
    assert_eq!(host.next(), FromAgent::Clock);
    host.say(&FromHost::Clock { clock_ns: 5 });
    // Set all the time, it is asked for now and then.
    let begin = std::time::Instant::now();
    for _ in 0..100 {
        fixture.set_clock();
    }
    assert_eq!(host.next(), FromAgent::Clock);
    fixture.set_clock();
    assert_eq!(host.next(), FromAgent::Clock);
    assert!(begin.elapsed() >= std::time::Duration::from_secs(1));
    // The host says it unasked, too.
    host.say(&FromHost::Clock { clock_ns: 6 });
    fixture.program().send("{\"verb\":\"list\"}\n");
    assert_eq!(host.request().1, "list");
    assert_eq!(fixture.log(), ["clock 5", "clock 6"]);
}

/// The agent of an image that is older than its host.
#[test]
fn what_a_newer_host_adds_is_ignored_and_the_link_stays() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let mut program = fixture.program();
    program.send("{\"verb\":\"list\"}\n");
    let (id, _) = host.request();
    host.say_line(r#"{"t":"heat","celsius":90}"#);
    host.say_line(r#"{"t":"heat"}"#);
    host.say_line(&format!(r#"{{"t":"reply","id":{id},"ok":["x"],"cost":1}}"#));
    assert_eq!(program.line(), r#"{"ok":["x"]}"#, "over the same link");
    let mut line = serde_json::to_value(FromHost::Identity(identity(5))).unwrap();
    line["rack"] = 7.into();
    host.say_line(&line.to_string());
    assert_eq!(host.next(), said_ready(5));
}
