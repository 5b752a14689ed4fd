use super::*;
use patina_abi::LINE_MAX_BYTES;
use serde_json::json;

const CARRIED_ON: Origin = Origin { is_carried_on: true, is_privileged: false };

fn session() -> Session {
    Session::new(Identity {
        vmid: 0,
        family: "f".into(),
        ip: std::net::Ipv4Addr::new(100, 64, 0, 1),
        prefix: 20,
        gateway: std::net::Ipv4Addr::new(100, 64, 15, 254),
        mac: "02:00:00:00:00:01".into(),
        hostname: "a".into(),
        clock_ns: 0,
        seed: String::new(),
        ticket: String::new(),
    })
}

fn say(session: &mut Session, message: serde_json::Value) -> Vec<Effect> {
    session.agent_line(message.to_string().as_bytes(), true, || Fresh { clock_ns: 7, seed: "ab".into() })
}

fn greeted() -> Session {
    let mut session = session();
    let effects = say(&mut session, json!({"t": "hello", "abi": ABI, "agent": "1"}));
    assert!(
        matches!(&effects[..], [Effect::ToAgent(FromHost::Identity(identity))] if identity.clock_ns == 7 && identity.seed == "ab")
    );
    session
}

#[test]
fn hello_brings_the_identity_and_ready_counts_once() {
    let mut session = greeted();
    assert_eq!(say(&mut session, json!({"t": "ready", "vmid": 0})), [Effect::Ready]);
    assert_eq!(say(&mut session, json!({"t": "ready", "vmid": 0})), []);
    session.link_lost();
    assert!(matches!(&say(&mut session, json!({"t": "ready", "vmid": 0}))[..], [Effect::DropLink(_)]));
}

#[test]
fn a_vm_that_cannot_be_who_it_is_ends_unless_it_was_ready() {
    let not_ready = |reason: &str| json!({"t": "not_ready", "reason": reason});
    let mut session = greeted();
    let effects = say(&mut session, not_ready(&format!("no MAC{}", " at all".repeat(100))));
    let [Effect::Unfit(reason)] = &effects[..] else { panic!("{effects:?}") };
    assert!(reason.contains("stayed closed: no MAC at all") && reason.len() < 700, "{reason}");
    say(&mut session, json!({"t": "ready", "vmid": 0}));
    assert!(matches!(&say(&mut session, not_ready("x"))[..], [Effect::DropLink(_)]));
    let effects =
        Session::new(session.identity).agent_line(br#"{"t":"not_ready","reason":"x"}"#, true, Fresh::default);
    assert!(matches!(&effects[..], [Effect::DropLink(_)]), "before hello");
}

#[test]
fn another_abi_no_hello_and_rubbish_end_the_link() {
    for line in [
        r#"{"t":"hello","abi":99,"agent":"x"}"#,
        r#"{"t":"ready","vmid":0}"#,
        "rubbish",
        "",
        "[]",
        r#"{"t":"fly"}"#,
    ] {
        let effects = session().agent_line(line.as_bytes(), true, Fresh::default);
        assert!(matches!(&effects[..], [Effect::DropLink(_)]), "{line}: {effects:?}");
    }
}

#[test]
fn requests_reach_vmmd_and_replies_the_right_caller() {
    let mut session = greeted();
    let mut ids = Vec::new();
    for id in [5, 6] {
        match &say(&mut session, json!({"t": "request", "id": id, "verb": "list"}))[..] {
            [Effect::ToVmmd(FromVmm::GuestRequest { id, verb, .. })] if verb == "list" => ids.push(*id),
            other => panic!("{other:?}"),
        }
    }
    let reply = |id| json!({"t": "guest_reply", "id": id, "ok": ["x"]}).to_string();
    let effects = session.vmmd_line(reply(ids[1]).as_bytes()).expect("a reply");
    assert_eq!(effects, [Effect::ToAgent(FromHost::Reply { id: 6, result: Answer::Ok(json!(["x"])) })]);
    assert_eq!(session.vmmd_line(reply(ids[1]).as_bytes()).expect("a reply"), [], "answered once");
    assert!(matches!(&session.vmmd_lost()[..], [Effect::ToAgent(FromHost::Reply { id: 5, .. })]));
}

#[test]
fn a_request_that_is_taken_back_reaches_vmmd_once_and_has_no_answer() {
    let mut session = greeted();
    let request = |session: &mut Session, id: u64| {
        let effects = say(session, json!({"t": "request", "id": id, "verb": "sync"}));
        let [Effect::ToVmmd(FromVmm::GuestRequest { id, .. })] = &effects[..] else { panic!("{effects:?}") };
        *id
    };
    let (first, second) = (request(&mut session, 5), request(&mut session, 6));
    let cancel = |id: u64| json!({"t": "cancel", "id": id});
    assert_eq!(say(&mut session, cancel(5)), [Effect::ToVmmd(FromVmm::GuestCancel { id: first })]);
    // Again, one that was never made, and vmmd's number instead of the agent's: nothing.
    for id in [5, 99, second + 100] {
        assert_eq!(say(&mut session, cancel(id)), []);
    }
    let reply = |id| json!({"t": "guest_reply", "id": id, "ok": null}).to_string();
    assert_eq!(session.vmmd_line(reply(first).as_bytes()).expect("a reply"), [], "nobody waits for it");
    assert_eq!(session.vmmd_line(reply(second).as_bytes()).expect("a reply").len(), 1);
    assert_eq!(say(&mut session, cancel(6)), [], "it has its answer");
    // What is taken back makes room.
    for id in 0..REQUESTS_MAX as u64 {
        request(&mut session, id);
    }
    say(&mut session, cancel(3));
    request(&mut session, 100);
    // The calls of a link go with it.
    session.link_lost();
    session.link_opened(Origin::default(), Fresh::default);
    assert_eq!(say(&mut session, cancel(7)), []);
}

#[test]
fn an_agent_hears_what_time_it_is_when_it_asks_and_when_the_hosts_clock_was_set() {
    let fresh = || Fresh { clock_ns: 77, seed: "ab".into() };
    let told = Effect::ToAgent(FromHost::Clock { clock_ns: 77 });
    assert_eq!(session().clock_was_set(fresh), None, "nobody has said hello");
    let mut session = greeted();
    assert_eq!(session.agent_line(b"{\"t\":\"clock\"}", false, fresh), std::slice::from_ref(&told));
    assert_eq!(session.clock_was_set(fresh), Some(told));
    session.link_lost();
    assert_eq!(session.clock_was_set(fresh), None);
}

#[test]
fn a_clone_that_is_taken_back_has_an_answer_all_the_same() {
    let mut session = greeted();
    let effects = say(&mut session, json!({"t": "request", "id": 5, "verb": "clone"}));
    let [Effect::ToVmmd(FromVmm::GuestRequest { id, .. })] = &effects[..] else { panic!("{effects:?}") };
    let cancel = json!({"t": "cancel", "id": 5});
    assert_eq!(say(&mut session, cancel), [Effect::ToVmmd(FromVmm::GuestCancel { id: *id })]);
    let error = CallError { code: 125, message: "nobody waits".into() };
    let reply = json!({"t": "guest_reply", "id": id, "error": error}).to_string();
    let told = FromHost::Reply { id: 5, result: Answer::Error(error) };
    assert_eq!(session.vmmd_line(reply.as_bytes()).expect("a reply"), [Effect::ToAgent(told)]);
}

#[test]
fn without_vmmd_or_with_too_many_waiting_a_call_is_refused() {
    let mut session = greeted();
    let request = json!({"t": "request", "id": 1, "verb": "list"}).to_string();
    let refused = |effects: &[Effect], code| matches!(effects, [Effect::ToAgent(FromHost::Reply { result: Answer::Error(error), .. })] if error.code == code);
    assert!(refused(&session.agent_line(request.as_bytes(), false, Fresh::default), ECONNREFUSED));
    for _ in 0..REQUESTS_MAX {
        assert!(!refused(&session.agent_line(request.as_bytes(), true, Fresh::default), EAGAIN));
    }
    assert!(refused(&session.agent_line(request.as_bytes(), true, Fresh::default), EAGAIN));
}

fn refusal_of(code: i32, message: &str) -> serde_json::Value {
    json!({"t": "prepared", "error": {"code": code, "message": message}})
}

#[test]
fn a_prepared_agent_is_frozen_and_a_refusal_is_passed_on() {
    let mut session = greeted();
    let ask = Effect::ToAgent(FromHost::Prepare { hold: true });
    assert_eq!(session.prepare(true), Ok(ask.clone()));
    assert_eq!(session.prepare(true), Err(PrepareError::Busy));
    assert_eq!(say(&mut session, json!({"t": "prepared", "ok": null})), [Effect::Freeze]);
    assert_eq!(session.prepare(true), Ok(ask));
    let effects = say(&mut session, refusal_of(5, "pre-clone: exit code 1"));
    let refusal = CallError { code: 5, message: "pre-clone: exit code 1".into() };
    assert_eq!(effects, [Effect::RefuseFreeze(refusal)], "in its words, with its code");
    let effects = say(&mut session, json!({"t": "prepared", "ok": null}));
    assert!(matches!(&effects[..], [Effect::DropLink(_)]), "nobody asked: {effects:?}");
}

#[test]
fn an_agent_that_is_not_there_is_not_asked() {
    let mut session = session();
    assert_eq!(session.prepare(true), Err(PrepareError::NoAgent));
    let refusal = CallError::from(PrepareError::NoAgent);
    assert!(refusal.message.starts_with("the guest's agent does not answer: "));
    assert_eq!((refusal.code, CallError::from(PrepareError::Busy).code), (libc::ENOTCONN, libc::EBUSY));
    let mut session = greeted();
    assert_eq!(session.link_lost(), None);
    assert_eq!(session.prepare(true), Err(PrepareError::NoAgent));
}

#[test]
fn a_link_that_breaks_ends_the_preparation() {
    let mut session = greeted();
    session.prepare(true).expect("asked");
    let refusal = session.link_lost().expect("a reason");
    assert!(refusal.message.contains("the link to its agent broke") && refusal.code == libc::ENOTCONN);
    assert_eq!(session.link_lost(), None, "told once");
}

#[test]
fn an_agent_that_prepares_for_nobody_is_told_to_go_on() {
    for (answer, effects) in [
        (json!({"t": "prepared", "ok": null}), vec![Effect::ToAgent(FromHost::Resumed { cloned: false })]),
        (refusal_of(16, "busy"), vec![]),
    ] {
        let mut session = greeted();
        session.freeze_unwanted();
        session.prepare(false).expect("asked");
        session.freeze_unwanted();
        // Its answer is still owed: it must not be taken for the answer to another.
        assert_eq!(session.prepare(false), Err(PrepareError::Busy));
        assert_eq!(say(&mut session, answer), effects);
        session.prepare(false).expect("asked again");
    }
}

#[test]
fn the_first_link_of_a_vm_that_boots_waits_for_hello_and_later_ones_do_not() {
    let fresh = || Fresh { clock_ns: 9, seed: "cd".into() };
    let told = |effect: Option<Effect>| matches!(effect, Some(Effect::ToAgent(FromHost::Identity(i))) if i.clock_ns == 9);
    let mut session = session();
    assert_eq!(session.link_opened(Origin::default(), fresh), None);
    assert!(matches!(&say(&mut session, json!({"t": "ready", "vmid": 0}))[..], [Effect::DropLink(_)]));
    let mut session = greeted();
    session.link_lost();
    assert!(told(session.link_opened(Origin::default(), fresh)));
    assert_eq!(say(&mut session, json!({"t": "ready", "vmid": 0})), [Effect::Ready]);
    // An agent that says hello on the same link twice hears nothing new.
    assert_eq!(say(&mut session, json!({"t": "hello", "abi": ABI, "agent": "1"})), []);
}

/// A request's line of exactly so many bytes, newline included.
fn request_line(bytes: usize, id: u64, verb: &str, args: &str) -> Vec<u8> {
    let around = format!(r#"{{"t":"request","id":{id},"verb":"{verb}","args":[{args}"#);
    let mut line = around.into_bytes();
    line.resize(bytes - "]}\n".len(), b' ');
    line.extend(b"]}");
    line
}

#[test]
fn a_call_that_the_agent_may_say_fits_the_line_to_vmmd_or_is_refused() {
    // Numbers that grow when they are written anew, letters that are written as six, and the
    // greatest of all ids.
    for args in ["1e15,1e15", r#""\u0001\u0001""#, "1e999", "", &"[".repeat(300)] {
        let args =
            if args.starts_with("[[") { format!("{args}{}", "]".repeat(300)) } else { args.to_owned() };
        for (agent_id, next_id, verb) in [
            (0, 0, "x"),
            (u64::MAX, 0, "x"),
            (0, u64::MAX - 1, r"\u0001\u0001"),
            (u64::MAX, u64::MAX - 1, ""),
        ] {
            for bytes in [200 + args.len(), CALL_MAX_BYTES - 100, CALL_MAX_BYTES + 100, LINE_MAX_BYTES] {
                let mut session = greeted();
                session.next_id = next_id;
                let line = request_line(bytes, agent_id, verb, &args);
                let effects = session.agent_line(&line, true, Fresh::default);
                match &effects[..] {
                    [Effect::ToVmmd(request)] => {
                        let written = serde_json::to_vec(request).expect("JSON");
                        assert!(written.len() < LINE_MAX_BYTES, "{} bytes of {bytes}", written.len());
                        assert_eq!(serde_json::from_slice::<FromVmm>(&written).ok().as_ref(), Some(request));
                        assert!(bytes <= CALL_MAX_BYTES, "passed on");
                    }
                    [Effect::ToAgent(FromHost::Reply { id, result: Answer::Error(error) })] => {
                        assert_eq!((*id, error.code), (agent_id, 90), "{error}");
                        assert!(bytes > CALL_MAX_BYTES, "refused");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn long_words_of_an_agent_that_could_not_prepare_fit_the_answer() {
    let mut session = greeted();
    session.prepare(true).expect("asked");
    let message = "\u{1}".repeat(12_000);
    let effects = say(&mut session, json!({"t": "prepared", "error": {"code": 125, "message": message}}));
    let [Effect::RefuseFreeze(error)] = &effects[..] else { panic!("{effects:?}") };
    assert!(error.message.len() > 4096, "a hook's output arrives");
    let answer =
        serde_json::to_vec(&patina_control::messages::Opened::NotPrepared(error.clone())).expect("JSON");
    assert!(answer.len() < LINE_MAX_BYTES, "{}", answer.len());
}

#[test]
fn what_the_parent_said_on_a_link_that_was_carried_on_is_not_the_clones() {
    let stale = [
        json!({"t": "request", "id": 5, "verb": "join"}),
        json!({"t": "cancel", "id": 5}),
        json!({"t": "prepared", "ok": null}),
        json!({"t": "hello", "abi": ABI, "agent": "1"}),
        // Of the parent's last identity.
        json!({"t": "ready", "vmid": 7}),
        // Of a VM with the same vmid, which this one was restored from.
        json!({"t": "ready", "vmid": 0, "family": "old", "abi": ABI}),
    ];
    let mut session = session();
    session.started(String::new(), None);
    assert!(matches!(
        session.link_opened(CARRIED_ON, Fresh::default),
        Some(Effect::ToAgent(FromHost::Identity(_)))
    ));
    for message in &stale {
        assert_eq!(say(&mut session, message.clone()), [], "{message}");
    }
    let ready = json!({"t": "ready", "vmid": 0, "family": "f", "abi": ABI});
    assert_eq!(say(&mut session, ready), [Effect::Ready]);
    let request = json!({"t": "request", "id": 6, "verb": "list"});
    assert!(matches!(&say(&mut session, request.clone())[..], [Effect::ToVmmd(_)]));
    // On a link of its own an agent is heard from its first word on.
    session.link_lost();
    session.link_opened(Origin::default(), Fresh::default);
    assert!(matches!(&say(&mut session, request)[..], [Effect::ToVmmd(_)]));
    assert!(matches!(&say(&mut session, stale[4].clone())[..], [Effect::DropLink(_)]));
}

#[test]
fn a_clone_that_cannot_be_who_it_is_says_so_on_the_link_that_it_has() {
    let mut session = session();
    session.started(String::new(), None);
    session.link_opened(CARRIED_ON, Fresh::default);
    let effects = say(&mut session, json!({"t": "not_ready", "reason": "no MAC"}));
    assert!(matches!(&effects[..], [Effect::Unfit(_)]), "{effects:?}");
}

#[test]
fn the_abi_of_the_agent_is_known_from_its_hello_and_in_a_clone_from_its_ready() {
    let mut booted = session();
    assert_eq!(booted.agent_abi(), 0);
    say(&mut booted, json!({"t": "hello", "abi": ABI_OLDEST, "agent": "1"}));
    say(&mut booted, json!({"t": "ready", "vmid": 0}));
    assert_eq!(booted.agent_abi(), ABI_OLDEST);
    let of_clone = |ready: serde_json::Value| {
        let mut clone = session();
        clone.started(String::new(), None);
        clone.link_opened(CARRIED_ON, Fresh::default);
        assert_eq!(say(&mut clone, ready), [Effect::Ready]);
        clone.agent_abi()
    };
    assert_eq!(of_clone(json!({"t": "ready", "vmid": 0, "family": "f", "abi": ABI})), ABI);
    assert_eq!(of_clone(json!({"t": "ready", "vmid": 0})), 3, "it says neither family nor ABI");
    let mut clone = session();
    clone.started(String::new(), None);
    clone.link_opened(Origin::default(), Fresh::default);
    let other = json!({"t": "ready", "vmid": 0, "family": "old", "abi": ABI});
    assert!(matches!(&say(&mut clone, other)[..], [Effect::DropLink(_)]));
    // An agent that is started again there may be another one.
    say(&mut clone, json!({"t": "hello", "abi": ABI_OLDEST, "agent": "1"}));
    assert_eq!(clone.agent_abi(), ABI_OLDEST);
}

/// Its image is older than the host, or newer.
#[test]
fn an_agent_of_any_version_that_the_host_knows_is_served_and_others_hear_what_to_do() {
    let hello = |abi: u32| {
        let line = format!(r#"{{"t":"hello","abi":{abi},"agent":"0.1.0"}}"#);
        session().agent_line(line.as_bytes(), true, Fresh::default)
    };
    for abi in ABI_OLDEST..=ABI {
        assert!(matches!(&hello(abi)[..], [Effect::ToAgent(FromHost::Identity(_))]), "{abi}");
    }
    for (abi, remedy) in
        [(ABI_OLDEST - 1, "rebuild the image"), (ABI + 1, "update the host"), (u32::MAX, "host")]
    {
        let effects = hello(abi);
        let [Effect::DropLink(why)] = &effects[..] else { panic!("{effects:?}") };
        assert!(why.contains(remedy) && why.contains(&format!("ABI {abi}")), "{why}");
    }
    // A clone's agent is its parent's: one that is started again there says hello on a link that is
    // served already.
    let mut clone = session();
    clone.started("t".into(), None);
    clone.link_opened(Origin::default(), Fresh::default);
    let older = json!({"t": "hello", "abi": ABI_OLDEST - 1, "agent": "0"});
    assert!(matches!(&say(&mut clone, older)[..], [Effect::DropLink(_)]));
}

#[test]
fn what_a_newer_agent_adds_is_ignored_and_its_link_stays() {
    let mut session = greeted();
    assert_eq!(say(&mut session, json!({"t": "heat", "celsius": 90})), []);
    assert_eq!(say(&mut session, json!({"t": "heat"})), []);
    assert_eq!(say(&mut session, json!({"t": "ready", "vmid": 0, "since": 1})), [Effect::Ready]);
    let effects = say(&mut session, json!({"t": "request", "id": 5, "verb": "fly", "args": [1], "cost": 1}));
    assert!(matches!(&effects[..], [Effect::ToVmmd(FromVmm::GuestRequest { .. })]), "{effects:?}");
    // Before hello it is nobody's.
    let line = br#"{"t":"heat"}"#;
    assert!(matches!(&self::session().agent_line(line, true, Fresh::default)[..], [Effect::DropLink(_)]));
}

#[test]
fn only_an_agent_with_privileges_says_where_the_kernel_describes_itself() {
    let note = Vmcoreinfo { address: 0x2f4_a000, bytes: 0x1024 };
    let ready = |address: u64| {
        let vmcoreinfo = json!({"address": address, "bytes": 0x1024});
        json!({"t": "ready", "vmid": 0, "family": "f", "abi": ABI, "vmcoreinfo": vmcoreinfo})
    };
    let open = |session: &mut Session, is_privileged| {
        let origin = Origin { is_carried_on: false, is_privileged };
        session.link_opened(origin, Fresh::default);
        say(session, json!({"t": "hello", "abi": ABI, "agent": "1"}));
    };
    let mut session = session();
    open(&mut session, false);
    say(&mut session, ready(0x1000));
    assert_eq!(session.vmcoreinfo(), None, "any program can make such a link");
    open(&mut session, true);
    say(&mut session, ready(0x2f4_a000));
    assert_eq!(session.vmcoreinfo(), Some(note));
    open(&mut session, false);
    say(&mut session, ready(0x1000));
    assert_eq!(session.vmcoreinfo(), Some(note), "what the agent said stays");
    // An agent that another one has replaced.
    open(&mut session, true);
    say(&mut session, json!({"t": "ready", "vmid": 0, "family": "f", "abi": ABI}));
    assert_eq!(session.vmcoreinfo(), None);
}
