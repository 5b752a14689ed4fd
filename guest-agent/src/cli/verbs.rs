//! What each verb does.

use super::{Output, call::call, misuse, usage};
use crate::identity::{lookup, read_small};
use patina_abi::link::{CallError, Member};
use patina_abi::local::{IDENTITY_FILE, IDENTITY_MAX_BYTES, Request, SOCKET};
use std::fmt::Write as _;
use std::path::Path;

pub(super) fn print(text: impl Into<String>) -> Output {
    Output { text: text.into(), ..Output::default() }
}

/// Whether the only argument is `--json`, or there is none.
pub(super) fn wants_json(arguments: &[String]) -> Result<bool, CallError> {
    match arguments {
        [] => Ok(false),
        [flag] if flag == "--json" => Ok(true),
        _ => Err(misuse("the only other argument is --json")),
    }
}

/// Calls a verb of the agent's.
pub(super) fn agent(verb: &str, args: serde_json::Value) -> Result<serde_json::Value, CallError> {
    call(Path::new(SOCKET), &Request { verb: verb.to_owned(), args })
}

/// What a call returned, as what it must be.
pub(super) fn read<T: serde::de::DeserializeOwned>(
    what: &str,
    value: serde_json::Value,
) -> Result<T, CallError> {
    serde_json::from_value(value).map_err(|e| CallError {
        code: libc::EPROTO,
        message: format!("the host's answer is no {what}: {e}"),
    })
}

fn no_arguments(arguments: &[String]) -> Result<(), CallError> {
    match arguments.first() {
        None => Ok(()),
        Some(first) => Err(misuse(format!("unexpected argument {first:?}"))),
    }
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

pub(super) fn vmid(arguments: &[String]) -> Result<Output, CallError> {
    no_arguments(arguments)?;
    Ok(print(identity("vmid")? + "\n"))
}

pub(super) fn my_ip(arguments: &[String]) -> Result<Output, CallError> {
    no_arguments(arguments)?;
    Ok(print(identity("ip")? + "\n"))
}

pub(super) fn ismaster(arguments: &[String]) -> Result<Output, CallError> {
    no_arguments(arguments)?;
    Ok(Output { code: i32::from(identity("vmid")? != "0"), ..Output::default() })
}

pub(super) fn list(arguments: &[String]) -> Result<Output, CallError> {
    let as_json = wants_json(arguments)?;
    let members = agent("list", serde_json::Value::Null)?;
    if as_json { Ok(print(members.to_string() + "\n")) } else { table(members).map(print) }
}

pub(super) fn table(members: serde_json::Value) -> Result<String, CallError> {
    let members: Vec<Member> = read("list of VMs", members)?;
    let mut text = String::new();
    for Member { vmid, ip, state, host } in &members {
        // Writing to a String does not fail.
        if writeln!(text, "{vmid} {ip} {state} {host}").is_err() {
            break;
        }
    }
    Ok(text)
}

pub(super) fn help(_: &[String]) -> Result<Output, CallError> {
    Ok(print(usage()))
}

pub(super) fn version(arguments: &[String]) -> Result<Output, CallError> {
    no_arguments(arguments)?;
    Ok(print(format!("gc {} (abi {})\n", env!("CARGO_PKG_VERSION"), patina_abi::ABI)))
}
