//! `gc clone`: the process that calls is cloned with its machine while it waits for the answer.

use super::words::{Words, looks_like_a_number, number, ticket};
use super::{Output, call, misuse, verbs};
use patina_abi::link::CallError;
use patina_abi::local::{CloneCall, CloneResult, Request, SOCKET};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

pub(super) fn clone(arguments: &[String]) -> Result<Output, CallError> {
    let request = request(arguments)?;
    rehearse();
    let value = call::call(Path::new(SOCKET), &request)?;
    output(value)
}

pub(super) fn request(arguments: &[String]) -> Result<Request, CallError> {
    let words = Words::parse(arguments, &["--no-hold"], &[])?;
    let [what] = words.at_most(1)? else {
        return Err(misuse("how many clones? `gc clone N`, or `gc clone TICKET`"));
    };
    let (count, ticket) = if looks_like_a_number(what) {
        (Some(number("the number of clones", what, 1, u32::MAX)?), None)
    } else {
        (None, Some(ticket(what)?))
    };
    verbs::request("clone", CloneCall { count, ticket, hold: !words.has("--no-hold") })
}

pub(super) fn output(value: serde_json::Value) -> Result<Output, CallError> {
    let CloneResult { vmid, failed, .. } = verbs::read("result of a clone", value)?;
    let mut warnings = String::new();
    for (vmid, reason) in failed {
        // Writing to a String does not fail.
        if writeln!(warnings, "clone: the clone with vmid {vmid} was not started: {reason}").is_err() {
            break;
        }
    }
    Ok(Output { text: format!("{vmid}\n"), warnings, code: 0 })
}

/// Goes through what comes after the answer, so that a clone, which has all of this process's memory, finds the pages of it there.
/// Otherwise each clone would have the page faults.
fn rehearse() {
    let answer = br#"{"ok":{"vmid":1,"clones":[],"failed":[]}}"#;
    let rehearsed = call::parse(std::hint::black_box(answer)).and_then(output);
    if std::hint::black_box(rehearsed).is_err() || std::io::stdout().flush().is_err() {
        // The real one will say so.
    }
}
