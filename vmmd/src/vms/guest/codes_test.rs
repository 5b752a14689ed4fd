//! Each reason of the scheduler, for each verb that brings it, is among the numbers that
//! [`patina_abi::codes`] promises.

use super::*;
use crate::vms::remote_data::error::RemoteError;
use patina_abi::codes::{self, VERBS};
use std::{collections::HashMap, sync::Arc};
use tonic_types::ErrorDetails;

const PROTO: &str = include_str!("../../../../proto/patina/v1/scheduler.proto");
const WITH_A_TICKET: &[&str] = &["clone", "ticket", "sync", "leave", "join", "join-data", "kill"];
const ASKS: &[&str] = &["rt", "clone"];
const ALL: &[&str] = &["clone", "rt", "lt", "ticket", "sync", "leave", "join", "join-data", "kill"];

/// What the head of the file lists: codes with their reasons.
fn listed() -> Vec<(Code, String)> {
    let head = PROTO.split("syntax =").next().unwrap().split("Codes and reasons:").nth(1).unwrap();
    let mut code = None;
    let mut reasons = Vec::new();
    for line in head.lines().filter_map(|line| line.strip_prefix("//   ")) {
        let words = line.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
        let mut words = words.filter(|word| word.len() > 3).peekable();
        if !line.starts_with(' ') {
            code = Some(match words.next().unwrap() {
                "INVALID_ARGUMENT" => Code::InvalidArgument,
                "NOT_FOUND" => Code::NotFound,
                "PERMISSION_DENIED" => Code::PermissionDenied,
                "FAILED_PRECONDITION" => Code::FailedPrecondition,
                "ALREADY_EXISTS" => Code::AlreadyExists,
                "RESOURCE_EXHAUSTED" => Code::ResourceExhausted,
                "ABORTED" => Code::Aborted,
                "DEADLINE_EXCEEDED" => Code::DeadlineExceeded,
                "UNAVAILABLE" => Code::Unavailable,
                other => panic!("{other} is new"),
            });
        }
        reasons.extend(words.map(|word| (code.unwrap(), word.to_owned())));
    }
    // The file has no reason for a field that is wrong.
    reasons.push((Code::InvalidArgument, "INVALID_FIELD".to_owned()));
    reasons
}

/// The verbs of guests that a reason comes of.
fn verbs_of(reason: &str) -> &'static [&'static str] {
    match reason {
        "INVALID_FIELD" | "STORE" | "STOPPING" | "TOO_MANY_CALLS" | "TOO_MANY_HOSTS" => ALL,
        "UNKNOWN_TICKET" => WITH_A_TICKET,
        "FOREIGN_TICKET" => &["clone", "ticket", "sync", "join", "join-data", "kill"],
        "DATA_DROPPED" => &["join-data"],
        "UNKNOWN_VM" => &["sync", "join-data", "kill"],
        "UNKNOWN_HOST" | "STALE_EPOCH" | "IMPOSSIBLE" | "NO_CAPACITY" => ASKS,
        "HOST_CORDONED" | "HOST_SILENT" | "HOSTS_DIFFER" => ASKS,
        "TOO_MANY_TICKETS" => ASKS,
        "TOO_MANY_WAITING" => &["rt", "clone", "sync", "join", "kill"],
        "USED" | "SMALL_TICKET" | "OTHER_HOST" | "OTHER_PARENT" => &["clone"],
        "RELEASED" | "EXPIRED" | "FENCED" => &["clone", "sync", "join"],
        "NO_FREE_VMID" | "TOO_MANY_FAMILIES" => &["clone"],
        "NOT_USED" => &["sync", "leave", "join"],
        "NOT_PARENT" => &["join"],
        "NOT_CLONE" | "TOO_MUCH_DATA" => &["leave"],
        "BARRIER_TIMEOUT" => &["sync"],
        "JOIN_TIMEOUT" => &["join"],
        "FOREIGN_HOST" => &["clone"],
        // Its own family: the scheduler does not know yet that it is here.
        "FOREIGN_FAMILY" => ALL,
        // A host may make all the calls of its guests.
        "TOO_MANY_WATCHERS" | "HOST_UP" | "HOST_ID_IN_USE" | "ROLE" => &[],
        other => panic!("{other} is new: say which verbs it comes of, and what `errno` makes of it"),
    }
}

#[test]
fn every_reason_of_the_scheduler_is_a_number_that_its_verb_promises() {
    let listed = listed();
    assert!(listed.len() > 25, "{listed:?}");
    for (code, reason) in listed {
        let details = ErrorDetails::with_error_info(&reason, "patina", HashMap::new());
        let number = errno(&Status::with_error_details(code, "no", details));
        assert_ne!(number, libc::EIO, "{reason}");
        for verb in verbs_of(&reason) {
            assert!(codes::verb(verb).unwrap().may_have(number), "{verb}: {reason} is {number}");
        }
        // To try again helps with these, and with no others.
        let passes = [
            "NO_CAPACITY",
            "HOST_CORDONED",
            "HOST_SILENT",
            "FOREIGN_FAMILY",
            "UNKNOWN_HOST",
            "STALE_EPOCH",
            "STORE",
            "STOPPING",
        ];
        let may_pass = passes.contains(&reason.as_str())
            || (reason.starts_with("TOO_MANY_") && reason != "TOO_MANY_TICKETS");
        assert_eq!([libc::EBUSY, libc::EAGAIN].contains(&number), may_pass, "{reason}");
    }
}

#[test]
fn what_stops_a_clone_is_a_number_that_its_verb_promises() {
    let clone = codes::verb("clone").unwrap();
    let name = || "a".to_owned();
    let unprepared = |code| Error::NotPrepared { name: name(), source: refuse(code, "no".into()) };
    let errors = [
        (Error::CloneUnderWay(name()), libc::EBUSY),
        (Error::Abandoned(name()), libc::ECANCELED),
        (unprepared(libc::ECANCELED), libc::ECANCELED),
        (unprepared(libc::EBUSY), libc::EBUSY),
        (unprepared(libc::ENOTCONN), libc::ENOTCONN),
        (unprepared(libc::ETIMEDOUT), libc::ETIMEDOUT),
        (Error::NotReady { name: name(), state: "booting" }, libc::EAGAIN),
        (Error::NewerVmm { name: name(), problem: name() }, libc::EIO),
        (Error::OlderVmm { name: name(), problem: name() }, libc::EIO),
        (Error::Stopping, libc::EAGAIN),
        (Error::TooMany, libc::ENOSPC),
        (Error::NoVmid { master: name(), count: 2, left: 1 }, libc::ENOSPC),
        (Error::NotFrozen { name: name(), reason: name() }, libc::EIO),
        (Arc::new(RemoteError::NoHost { host: name() }).into(), libc::EREMOTEIO),
    ];
    for (error, wanted) in errors {
        let number = refusal(error).code;
        assert!(number == wanted && clone.may_have(number), "{number}");
    }
}

#[test]
fn the_verbs_that_hosts_answer_are_verbs_of_programs() {
    for verb in ALL {
        assert!(VERBS.iter().any(|known| known.name == *verb), "{verb}");
    }
}
