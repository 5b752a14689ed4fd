//! `gc rt`, `gc lt`, `gc ticket`.

use super::verbs::{agent, print, read, wants_json};
use super::{Output, misuse};
use patina_abi::link::{CallError, TicketArgs, TicketView};
use patina_abi::local::TicketName;
use serde_json::Value;
use std::str::FromStr;

fn to_json(args: impl serde::Serialize) -> Result<Value, CallError> {
    serde_json::to_value(args).map_err(|e| misuse(e.to_string()))
}

fn number<T: FromStr>(name: &str, word: &str) -> Result<T, CallError> {
    word.parse().map_err(|_| misuse(format!("{name} is a number, not {word:?}")))
}

pub(super) fn parse_request(arguments: &[String]) -> Result<TicketArgs, CallError> {
    let [max_cpus, min_vms, min_cpus_per_vm, timeout_ms] = arguments else {
        return Err(misuse("four numbers are wanted: MAXCPUS MINVMS MINCPUSPERVM TIMEOUT_MS"));
    };
    Ok(TicketArgs {
        max_cpus: number("MAXCPUS", max_cpus)?,
        min_vms: number("MINVMS", min_vms)?,
        min_cpus_per_vm: number("MINCPUSPERVM", min_cpus_per_vm)?,
        timeout_ms: number("TIMEOUT_MS", timeout_ms)?,
        request_id: None,
    })
}

/// A ticket's line.
pub(super) fn line(ticket: &TicketView) -> String {
    let TicketView { uuid, status, cpus, vms, min_cpus_per_vm } = ticket;
    format!("ticket: {uuid} {status} {cpus} {vms} {min_cpus_per_vm}\n")
}

pub(super) fn request(arguments: &[String]) -> Result<Output, CallError> {
    let ticket: TicketView = read("ticket", agent("rt", to_json(parse_request(arguments)?)?)?)?;
    Ok(print(format!("ticket: {}\n", ticket.uuid)))
}

pub(super) fn list(arguments: &[String]) -> Result<Output, CallError> {
    let as_json = wants_json(arguments)?;
    let tickets = agent("lt", Value::Null)?;
    if as_json {
        return Ok(print(tickets.to_string() + "\n"));
    }
    let tickets: Vec<TicketView> = read("list of tickets", tickets)?;
    Ok(print(tickets.iter().map(line).collect::<String>()))
}

pub(super) fn one(arguments: &[String]) -> Result<Output, CallError> {
    let Some((uuid, rest)) = arguments.split_first() else {
        return Err(misuse("which ticket? `gc ticket UUID`"));
    };
    let as_json = wants_json(rest)?;
    let ticket = agent("ticket", to_json(TicketName { uuid: uuid.clone() })?)?;
    if as_json {
        return Ok(print(ticket.to_string() + "\n"));
    }
    Ok(print(line(&read("ticket", ticket)?)))
}
