//! Lines of older and newer peers on the agent's link, as they are written.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use patina_abi::link::{Answer, CallError, CloneArgs, FromAgent, FromHost, Identity, ListArgs, Vmcoreinfo};
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(line: &str) -> T {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Each is what an agent of version 3 writes: as long as hosts serve it, these lines are
/// understood.
#[test]
fn what_an_agent_of_version_3_says_is_understood() {
    let hello = FromAgent::Hello { abi: 3, agent: "0.1.0".into() };
    assert_eq!(read::<FromAgent>(r#"{"t":"hello","abi":3,"agent":"0.1.0"}"#), hello);
    let ready = FromAgent::Ready { vmid: 4, family: String::new(), abi: 3, vmcoreinfo: None };
    assert_eq!(read::<FromAgent>(r#"{"t":"ready","vmid":4}"#), ready);
    let not_ready = FromAgent::NotReady { reason: "no MAC".into() };
    assert_eq!(read::<FromAgent>(r#"{"t":"not_ready","reason":"no MAC"}"#), not_ready);
    let request =
        FromAgent::Request { id: 7, verb: "clone".into(), args: serde_json::json!({"count":2}).into() };
    let line = r#"{"t":"request","id":7,"verb":"clone","args":{"count":2}}"#;
    assert_eq!(read::<FromAgent>(line), request);
    assert_eq!(read::<CloneArgs>(r#"{"count":2}"#), CloneArgs { count: Some(2), ticket: None });
    assert_eq!(read::<FromAgent>(r#"{"t":"cancel","id":7}"#), FromAgent::Cancel { id: 7 });
    let prepared = FromAgent::Prepared { result: Answer::Ok(serde_json::Value::Null) };
    assert_eq!(read::<FromAgent>(r#"{"t":"prepared","ok":null}"#), prepared);
    let failed = CallError { code: 125, message: "the hook".into() };
    let line = r#"{"t":"prepared","error":{"code":125,"message":"the hook"}}"#;
    assert_eq!(read::<FromAgent>(line), FromAgent::Prepared { result: Answer::Error(failed) });
    assert_eq!(read::<FromAgent>(r#"{"t":"clock"}"#), FromAgent::Clock);
}

/// What is another line than in version 3.
#[test]
fn what_an_agent_of_version_4_says_is_understood() {
    let hello = FromAgent::Hello { abi: 4, agent: "0.1.0".into() };
    assert_eq!(read::<FromAgent>(r#"{"t":"hello","abi":4,"agent":"0.1.0"}"#), hello);
    let mut ready = FromAgent::Ready { vmid: 4, family: "f".into(), abi: 4, vmcoreinfo: None };
    let line = r#"{"t":"ready","vmid":4,"family":"f","abi":4}"#;
    assert_eq!(read::<FromAgent>(line), ready);
    assert_eq!(serde_json::to_string(&ready).unwrap(), line);
    // What later agents of this version add.
    if let FromAgent::Ready { vmcoreinfo, .. } = &mut ready {
        *vmcoreinfo = Some(Vmcoreinfo { address: 49_586_176, bytes: 4132 });
    }
    let note = r#","vmcoreinfo":{"address":49586176,"bytes":4132}}"#;
    let line = line.replace('}', note);
    assert_eq!(read::<FromAgent>(&line), ready);
    assert_eq!(serde_json::to_string(&ready).unwrap(), line);
}

/// Each is what an agent of version 3 expects of its host, however new that is.
#[test]
fn what_a_host_says_is_what_an_agent_of_version_3_expects() {
    let said = |message: &FromHost| serde_json::to_string(message).unwrap();
    assert_eq!(said(&FromHost::Identity(read(IDENTITY))), IDENTITY_LINE);
    assert_eq!(said(&FromHost::Prepare { hold: true }), r#"{"t":"prepare","hold":true}"#);
    assert_eq!(said(&FromHost::Resumed { cloned: true }), r#"{"t":"resumed","cloned":true}"#);
    assert_eq!(said(&FromHost::Clock { clock_ns: 5 }), r#"{"t":"clock","clock_ns":5}"#);
    let reply = FromHost::Reply { id: 7, result: Answer::Ok(serde_json::json!([1])) };
    assert_eq!(said(&reply), r#"{"t":"reply","id":7,"ok":[1]}"#);
}

#[test]
fn what_a_newer_peer_adds_is_ignored() {
    for line in [r#"{"t":"heat"}"#, r#"{"t":"heat","celsius":{"now":[90]}}"#] {
        assert_eq!(read::<FromAgent>(line), FromAgent::Unknown);
        assert_eq!(read::<FromHost>(line), FromHost::Unknown);
    }
    let ready = read::<FromAgent>(r#"{"t":"ready","vmid":4,"since":1}"#);
    assert_eq!(ready, FromAgent::Ready { vmid: 4, family: String::new(), abi: 3, vmcoreinfo: None });
    let identity = IDENTITY.replace(r#"{"vmid""#, r#"{"rack":7,"vmid""#);
    assert_eq!(read::<Identity>(&identity), read::<Identity>(IDENTITY));
    // Nobody can tell what a call means that has more than the host knows: its program hears so.
    assert!(serde_json::from_str::<ListArgs>(r#"{"from":1,"host":"a"}"#).is_err());
    // What has no kind is no line of the link.
    assert!(serde_json::from_str::<FromHost>(r#"{"celsius":90}"#).is_err());
}

#[test]
fn what_an_older_host_leaves_out_is_as_it_was_then() {
    let identity = read::<Identity>(&IDENTITY.replace(r#","ticket":"t""#, "").replace(r#","seed":"ab""#, ""));
    assert_eq!((identity.ticket.as_str(), identity.seed.as_str()), ("", ""));
    assert_eq!(identity.vmid, 1);
}

const IDENTITY: &str = concat!(
    r#"{"vmid":1,"family":"f","ip":"100.64.0.2","prefix":20,"gateway":"100.64.15.254","#,
    r#""mac":"02:00:00:00:00:01","hostname":"web-1","ticket":"t","clock_ns":5,"seed":"ab"}"#
);
const IDENTITY_LINE: &str = concat!(
    r#"{"t":"identity","vmid":1,"family":"f","ip":"100.64.0.2","prefix":20,"gateway":"100.64.15.254","#,
    r#""mac":"02:00:00:00:00:01","hostname":"web-1","ticket":"t","clock_ns":5,"seed":"ab"}"#
);
