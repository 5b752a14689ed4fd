//! What README.md shows is what the types read and write, and what it says of errors is what
//! [`codes`] says.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use patina_abi::LINE_MAX_BYTES;
use patina_abi::codes::{self, VERBS};
use patina_abi::local::{
    Answer, CloneCall, CloneResult, JoinArgs, JoinData, JoinDataArgs, JoinedClone, KillArgs, LeaveArgs,
    LeaveData, ListArgs, Member, MembersPage, Request, SyncArgs, Synced, TicketArgs, TicketName, TicketView,
    TicketsArgs, TicketsPage,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const README: &str = include_str!("../README.md");

/// The value as the type has it: nothing is lost, nothing is added.
fn read<T: DeserializeOwned + Serialize>(value: &Value) {
    let read: T = serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"));
    assert_eq!(serde_json::to_value(read).unwrap(), *value);
}

/// Arguments that can all be left out, or not.
fn arguments<T: DeserializeOwned + Serialize>(args: &Value) {
    if !args.is_null() {
        read::<T>(args);
    }
}

fn check_call(call: &Request) {
    let args = &call.args;
    match call.verb.as_str() {
        "vmid" | "my-ip" | "ismaster" | "fly" => assert!(args.is_null()),
        "list" => arguments::<ListArgs>(args),
        "clone" => read::<CloneCall>(args),
        "rt" => read::<TicketArgs>(args),
        "lt" => arguments::<TicketsArgs>(args),
        "ticket" => arguments::<TicketName>(args),
        "sync" => arguments::<SyncArgs>(args),
        "leave-data" => read::<LeaveData>(args),
        "leave" => arguments::<LeaveArgs>(args),
        "join" => read::<JoinArgs>(args),
        "join-data" => read::<JoinDataArgs>(args),
        "kill" => read::<KillArgs>(args),
        other => panic!("{other} is no verb"),
    }
}

fn check_answer(call: &Request, value: &Value) {
    let paged = call.args.get("from").is_some();
    match call.verb.as_str() {
        "vmid" => read::<u32>(value),
        "my-ip" => read::<Ipv4Addr>(value),
        "ismaster" => read::<bool>(value),
        "list" if paged => read::<MembersPage>(value),
        "list" => read::<Vec<Member>>(value),
        "clone" => read::<CloneResult>(value),
        "rt" | "ticket" => read::<TicketView>(value),
        "lt" if paged => read::<TicketsPage>(value),
        "lt" => read::<Vec<TicketView>>(value),
        "sync" => read::<Synced>(value),
        "leave-data" | "leave" => assert!(value.is_null()),
        "join" => read::<Vec<JoinedClone>>(value),
        "join-data" => read::<JoinData>(value),
        "kill" => read::<Vec<u32>>(value),
        other => panic!("{other} returns something"),
    }
}

#[test]
fn every_line_is_one_of_the_types() {
    let mut shown = BTreeSet::new();
    let mut call = None;
    for line in README.lines() {
        assert!(line.len() < LINE_MAX_BYTES);
        if let Some(text) = line.strip_prefix("→ ") {
            let read: Request = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            check_call(&read);
            call = Some(read);
        } else if let Some(text) = line.strip_prefix("← ") {
            let call = call.as_ref().unwrap();
            match serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}")) {
                Answer::Ok(value) => {
                    check_answer(call, &value);
                    shown.insert(call.verb.clone());
                }
                Answer::Error(error) => assert!(codes::COMMON.contains(&error.code), "{error}"),
            }
        }
    }
    let all: BTreeSet<String> = VERBS.iter().map(|verb| verb.name.to_owned()).collect();
    assert_eq!(shown, all, "each verb is shown with an answer");
}

#[test]
fn every_error_is_in_the_table_with_its_verbs() {
    let mut listed = BTreeSet::new();
    for line in README.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [code, _, _, verbs] = cells[..] else { continue };
        let Ok(code) = code.parse::<i32>() else { continue };
        listed.insert(code);
        if verbs == "all" {
            assert!(codes::COMMON.contains(&code), "{line}");
            continue;
        }
        let verbs: BTreeSet<&str> = verbs.split(", ").collect();
        let promised: BTreeSet<&str> =
            VERBS.iter().filter(|verb| verb.codes.contains(&code)).map(|verb| verb.name).collect();
        assert_eq!(verbs, promised, "{code}");
    }
    let all = VERBS.iter().flat_map(|verb| verb.codes).chain(codes::COMMON);
    assert_eq!(listed, all.copied().collect());
}
