//! Verbs about this VM and its family, and what all verbs need.

use super::call::Connection;
use super::words::{Words, ticket};
use super::{Output, misuse};
use crate::identity::{lookup, read_small};
use patina_abi::link::{CallError, ListArgs, Member, MembersPage};
use patina_abi::local::{IDENTITY_FILE, IDENTITY_MAX_BYTES, Request};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;

/// Most pages of a list: a family has at most 4,093 VMs in its life, and a page hundreds.
const PAGES_MAX: usize = 64;

pub(super) fn print(text: impl Into<String>) -> Output {
    Output { text: text.into(), ..Output::default() }
}

/// Prints what a call returned as it is.
pub(super) fn print_json(value: &Value) -> Output {
    print(value.to_string() + "\n")
}

/// A verb's call with its arguments.
pub(super) fn request(verb: &str, args: impl serde::Serialize) -> Result<Request, CallError> {
    Ok(Request { verb: verb.to_owned(), args: value(&args)? })
}

/// Calls a verb of the agent's.
pub(super) fn agent(verb: &str, args: impl serde::Serialize) -> Result<Value, CallError> {
    let request = request(verb, args)?;
    Connection::open()?.call(&request)
}

/// What a call returned, as what it must be.
pub(super) fn read<T: serde::de::DeserializeOwned>(what: &str, value: Value) -> Result<T, CallError> {
    serde_json::from_value(value).map_err(|e| CallError {
        code: libc::EPROTO,
        message: format!("the host's answer is no {what}: {e}"),
    })
}

fn identity(key: &str) -> Result<String, CallError> {
    identity_in(Path::new(IDENTITY_FILE), key)
}

pub(super) fn identity_in(file: &Path, key: &str) -> Result<String, CallError> {
    let text = read_small(file, IDENTITY_MAX_BYTES).map_err(|e| CallError {
        code: e.raw_os_error(),
        message: format!("read {}: {e}", file.display()),
    })?;
    lookup(&text, key).map(str::to_owned).ok_or_else(|| CallError {
        code: libc::ENOTCONN,
        message: "the host has not told this VM who it is yet; is gc-agent running?".to_owned(),
    })
}

pub(super) fn is_master() -> Result<bool, CallError> {
    Ok(identity("vmid")? == "0")
}

pub(super) fn vmid(arguments: &[String]) -> Result<Output, CallError> {
    Words::none(arguments)?;
    Ok(print(identity("vmid")? + "\n"))
}

pub(super) fn my_ip(arguments: &[String]) -> Result<Output, CallError> {
    Words::none(arguments)?;
    Ok(print(identity("ip")? + "\n"))
}

pub(super) fn ismaster(arguments: &[String]) -> Result<Output, CallError> {
    Words::none(arguments)?;
    Ok(Output { code: i32::from(!is_master()?), ..Output::default() })
}

pub(super) fn list(arguments: &[String]) -> Result<Output, CallError> {
    let words = Words::parse(arguments, &["--json"], &["--ticket"])?;
    words.at_most(0)?;
    let ticket = words.value("--ticket").map(ticket).transpose()?;
    let mut agent = Connection::open()?;
    let mut members = pages(0, |from| {
        let args = ListArgs { from: Some(from) };
        let MembersPage { members, next } = read("list of VMs", agent.call(&request("list", args)?)?)?;
        Ok((members, next))
    })?;
    if ticket.is_some() {
        members.retain(|member| member.ticket == ticket);
    }
    if words.has("--json") { Ok(print_json(&value(&members)?)) } else { Ok(print(table(&members))) }
}

/// All pages of a list, from the first place on.
pub(super) fn pages<T, Place>(
    first: Place,
    mut page: impl FnMut(Place) -> Result<(Vec<T>, Option<Place>), CallError>,
) -> Result<Vec<T>, CallError> {
    let mut all = Vec::new();
    let mut next = Some(first);
    let mut left = PAGES_MAX;
    while let Some(from) = next {
        if left == 0 {
            let message = format!("the host's list has more than {PAGES_MAX} pages");
            return Err(CallError { code: libc::EPROTO, message });
        }
        left -= 1;
        let (values, after) = page(from)?;
        all.extend(values);
        next = after;
    }
    Ok(all)
}

/// What is printed with `--json`.
pub(super) fn value(answer: &impl serde::Serialize) -> Result<Value, CallError> {
    serde_json::to_value(answer).map_err(|e| misuse(e.to_string()))
}

pub(super) fn table(members: &[Member]) -> String {
    let mut text = String::new();
    for Member { vmid, ip, state, host, .. } in members {
        // Writing to a String does not fail.
        if writeln!(text, "{vmid} {ip} {state} {host}").is_err() {
            break;
        }
    }
    text
}

pub(super) fn version(arguments: &[String]) -> Result<Output, CallError> {
    Words::none(arguments)?;
    Ok(print(format!("gc {} (abi {})\n", env!("CARGO_PKG_VERSION"), patina_abi::ABI)))
}
