//! Lines of older and newer peers, as they are written: what is understood of them, and what is
//! refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use patina_abi::link::CallError;
use patina_control::{
    CLONABLE_OLDEST, VERSION,
    config::{Start, VmConfig},
    end::{End, EndKind},
    messages::{FromVmm, Frozen, Open, Opened, Prepare, State, ToVmm},
};
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(line: &str) -> T {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn refused<T: DeserializeOwned + std::fmt::Debug>(line: &str) -> String {
    serde_json::from_str::<T>(line).expect_err(line).to_string()
}

#[test]
fn a_vmm_says_its_version_in_the_first_line() {
    let hello = serde_json::to_string(&FromVmm::Hello { version: VERSION }).unwrap();
    assert_eq!(hello, format!(r#"{{"t":"hello","version":{VERSION}}}"#));
    assert_eq!(read::<FromVmm>(r#"{"t":"hello","version":7,"more":[1]}"#), FromVmm::Hello { version: 7 });
}

/// Each is what version 1 writes. A change of what stands here needs a new version.
#[test]
fn what_version_1_writes_is_understood() {
    assert_eq!(read::<Open>(r#""control""#), Open::Control);
    assert_eq!(read::<Open>(r#"{"dial":{"port":1025}}"#), Open::Dial { port: 1025 });
    assert_eq!(read::<Open>(r#""console""#), Open::Console);
    assert_eq!(read::<Open>(r#"{"freeze":{"prepare":null}}"#), Open::Freeze { prepare: None });
    let hold = Open::Freeze { prepare: Some(Prepare::Ask { hold: true, agent_abi_min: 0 }) };
    assert_eq!(read::<Open>(r#"{"freeze":{"prepare":{"ask":{"hold":true}}}}"#), hold);
    let not = Open::Freeze { prepare: Some(Prepare::Not) };
    assert_eq!(read::<Open>(r#"{"freeze":{"prepare":"not"}}"#), not);
    assert_eq!(
        read::<Open>(r#"{"start":{"ticket":"t"}}"#),
        Open::Start { ticket: "t".into(), filling: Vec::new(), member: None }
    );
    assert_eq!(read::<Open>(r#""touched""#), Open::PrefaultList);
    let frozen = Opened::Frozen(Frozen {
        pause_us: 9,
        copied_pages: 2,
        copied_beside_pages: 3,
        agent_abi: 4,
        number: 0,
    });
    let line = r#"{"frozen":{"pause_us":9,"copied_pages":2,"copied_beside_pages":3,"agent_abi":4}}"#;
    assert_eq!(read::<Opened>(line), frozen);
    assert_eq!(read::<Opened>(r#"{"started":{"entered_ns":5}}"#), Opened::Started { entered_ns: 5 });
    assert_eq!(read::<Opened>(r#"{"error":"no"}"#), Opened::Error("no".into()));
    assert_eq!(read::<Opened>(r#""ok""#), Opened::Ok);
    let busy = Opened::NotPrepared(CallError { code: 16, message: "busy".into() });
    assert_eq!(read::<Opened>(r#"{"not_prepared":{"code":16,"message":"busy"}}"#), busy);
    let ended = End { kind: EndKind::PoweredOff, reason: "off".into() };
    for (line, state) in [
        (r#"{"t":"state","warm":null}"#, State::Warm),
        (r#"{"t":"state","booting":null}"#, State::Booting),
        (r#"{"t":"state","ready":{"after_us":5}}"#, State::Ready { after_us: 5 }),
        (r#"{"t":"state","ended":{"kind":"powered_off","reason":"off"}}"#, State::Ended(ended)),
    ] {
        assert_eq!(read::<FromVmm>(line), FromVmm::State(state.clone()));
        assert_eq!(serde_json::to_string(&FromVmm::State(state)).unwrap(), line);
    }
    let call = FromVmm::GuestRequest { id: 1, verb: "list".into(), args: serde_json::json!([2]).into() };
    assert_eq!(read::<FromVmm>(r#"{"t":"guest_request","id":1,"verb":"list","args":[2]}"#), call);
    assert_eq!(read::<FromVmm>(r#"{"t":"guest_cancel","id":1}"#), FromVmm::GuestCancel { id: 1 });
    let kill = ToVmm::Kill { reason: "enough".into() };
    assert_eq!(read::<ToVmm>(r#"{"t":"kill","reason":"enough"}"#), kill);
    assert!(matches!(
        read::<ToVmm>(r#"{"t":"guest_reply","id":1,"ok":[]}"#),
        ToVmm::GuestReply { id: 1, .. }
    ));
}

/// Version 2 has the lines of version 1. What is in a state has changed, which has versions of its
/// own.
#[test]
fn version_2_says_so_and_a_state_of_version_1_is_not_for_it() {
    assert_eq!(
        serde_json::to_string(&FromVmm::Hello { version: 2 }).unwrap(),
        r#"{"t":"hello","version":2}"#
    );
    let config = CONFIG.replace(r#"{"name""#, r#"{"version":2,"name""#);
    assert_eq!(read::<VmConfig>(&config).version, 2);
    assert_eq!((VERSION, CLONABLE_OLDEST), (3, 2));
}

/// Each is what version 2 added.
#[test]
fn what_version_2_writes_is_understood() {
    let start = Open::Start { ticket: "t".into(), filling: vec![0, 2], member: None };
    let lost = EndKind::DataLoss;
    for (open, line) in [(start, r#"{"start":{"ticket":"t","filling":[0,2]}}"#), (Open::Pager, r#""pager""#)]
    {
        assert_eq!(read::<Open>(line), open);
        assert_eq!(serde_json::to_string(&open).unwrap(), line);
    }
    assert_eq!(serde_json::to_string(&lost).unwrap(), r#""data_loss""#);
    assert_eq!(read::<EndKind>(r#""data_loss""#), lost);
}

/// A name that changes here is not understood by vmms that run already.
#[test]
fn what_vmmd_asks_of_a_vmm_is_called_as_ever() {
    let start = Open::Start { ticket: "t".into(), filling: Vec::new(), member: None };
    for (asked, line) in [
        (Open::Control, r#""control""#),
        (Open::Dial { port: 1025 }, r#"{"dial":{"port":1025}}"#),
        (Open::Console, r#""console""#),
        (Open::Freeze { prepare: Some(Prepare::Not) }, r#"{"freeze":{"prepare":"not"}}"#),
        (Open::Freeze { prepare: None }, r#"{"freeze":{"prepare":null}}"#),
        (start, r#"{"start":{"ticket":"t"}}"#),
        (Open::PrefaultList, r#""touched""#),
    ] {
        assert_eq!(serde_json::to_string(&asked).unwrap(), line);
    }
}

/// Of peers that are older than versions.
#[test]
fn what_an_older_peer_leaves_out_is_as_it_was_then() {
    assert_eq!(
        read::<Open>(r#"{"start":{}}"#),
        Open::Start { ticket: String::new(), filling: Vec::new(), member: None }
    );
    let frozen = Opened::Frozen(Frozen {
        pause_us: 9,
        copied_pages: 2,
        copied_beside_pages: 0,
        agent_abi: 0,
        number: 0,
    });
    assert_eq!(read::<Opened>(r#"{"frozen":{"pause_us":9,"copied_pages":2}}"#), frozen);
    let config = read::<VmConfig>(CONFIG);
    assert_eq!((config.version, config.start), (0, Start::Warm));
    assert!(config.neighbours.is_none() && config.kvm_kind.is_none());
}

#[test]
fn what_a_newer_peer_adds_is_ignored_or_refused_in_words() {
    assert_eq!(read::<Open>(r#"{"dial":{"port":5,"speed":9}}"#), Open::Dial { port: 5 });
    let frozen = r#"{"frozen":{"pause_us":9,"copied_pages":2,"copied_beside_pages":0,"heat":1}}"#;
    assert!(matches!(read::<Opened>(frozen), Opened::Frozen(_)));
    let ready = FromVmm::State(State::Ready { after_us: 5 });
    assert_eq!(read::<FromVmm>(r#"{"t":"state","ready":{"after_us":5,"since":1}}"#), ready);
    let config = CONFIG.replace(r#"{"name""#, r#"{"version":1,"disks":[1,2],"name""#);
    assert_eq!(read::<VmConfig>(&config).version, 1);
    let end = read::<End>(r#"{"kind":"migrated","reason":"it lives elsewhere"}"#);
    assert_eq!(end, End { kind: EndKind::Other, reason: "it lives elsewhere".into() });
    for unknown in [
        refused::<Open>(r#"{"migrate":{"to":"x"}}"#),
        refused::<Open>(r#"{"freeze":{"prepare":"dance"}}"#),
        refused::<Opened>(r#"{"moved":1}"#),
        refused::<FromVmm>(r#"{"t":"heat","celsius":90}"#),
        refused::<FromVmm>(r#"{"t":"state","paused":{"since":1}}"#),
        refused::<ToVmm>(r#"{"t":"pause"}"#),
    ] {
        assert!(unknown.contains("unknown variant") && unknown.contains("expected"), "{unknown}");
    }
}

/// As a `vmmd` of before versions writes it, for a warm VM.
const CONFIG: &str = concat!(
    r#"{"name":"web.1","vcpus":1,"memory_mib":256,"kvm_fd":3,"start":"warm","rootfs_fd":4,"tap_fd":5,"#,
    r#""console_fd":6,"control_fd":7,"end_fd":8,"identity":{"vmid":1,"family":"f","ip":"100.64.0.2","#,
    r#""prefix":20,"gateway":"100.64.15.254","mac":"02:00:00:00:00:01","hostname":"web-1","clock_ns":1}}"#
);
