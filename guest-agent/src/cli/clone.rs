//! `gc clone`: the process that calls is cloned with its machine while it waits for the answer.

use super::words::{Words, looks_like_a_number, number, ticket};
use super::{Output, call, misuse, verbs};
use patina_abi::link::CallError;
use patina_abi::local::{CloneCall, CloneResult, Request, SOCKET};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

pub(super) fn clone(arguments: &[String]) -> Result<Output, CallError> {
    let (request, as_json) = request(arguments)?;
    rehearse(as_json);
    let value = call::call(Path::new(SOCKET), &request)?;
    output(value, as_json)
}

/// The call, and whether all that comes of it is to be printed.
pub(super) fn request(arguments: &[String]) -> Result<(Request, bool), CallError> {
    let words = Words::parse(arguments, &["--no-hold", "--json"], &[])?;
    let [what] = words.at_most(1)? else {
        return Err(misuse("how many clones? `gc clone N`, or `gc clone TICKET`"));
    };
    let (count, ticket) = if looks_like_a_number(what) {
        (Some(number("the number of clones", what, 1, u32::MAX)?), None)
    } else {
        (None, Some(ticket(what)?))
    };
    let call = verbs::request("clone", CloneCall { count, ticket, hold: !words.has("--no-hold") })?;
    Ok((call, words.has("--json")))
}

pub(super) fn output(value: serde_json::Value, as_json: bool) -> Result<Output, CallError> {
    let result: CloneResult = verbs::read("result of a clone", value)?;
    let text = if as_json { format!("{}\n", verbs::value(&result)?) } else { format!("{}\n", result.vmid) };
    let mut warnings = String::new();
    for (vmid, reason) in result.failed {
        // Writing to a String does not fail.
        if writeln!(warnings, "clone: the clone with vmid {vmid} was not started: {reason}").is_err() {
            break;
        }
    }
    Ok(Output { text, warnings, code: 0 })
}

/// Goes through what comes after the answer, so that a clone, which has all of this process's
/// memory, finds the pages of it there. Otherwise each clone would have the page faults.
fn rehearse(as_json: bool) {
    let answer = br#"{"ok":{"vmid":1,"clones":[],"failed":[]}}"#;
    let rehearsed = call::parse(std::hint::black_box(answer)).and_then(|value| output(value, as_json));
    if std::hint::black_box(rehearsed).is_err() || std::io::stdout().flush().is_err() {
        // The real one will say so.
    }
}
