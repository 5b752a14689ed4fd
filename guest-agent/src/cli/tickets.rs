//! `gc rt`, `gc lt`, `gc ticket`.

use super::call::Connection;
use super::verbs::{agent, is_master, pages, print, print_json, read, request as call, value};
use super::words::{TIMEOUT_MAX_MS, Words, number, ticket};
use super::{Output, misuse};
use patina_abi::link::{CallError, TicketArgs, TicketName, TicketView, TicketsArgs, TicketsPage};

/// Longest request id, characters.
const REQUEST_ID_MAX: usize = 64;

/// The host knows what is too much of anything; none, or less than itself, is wrong on every host.
fn parse(words: &Words<'_>) -> Result<TicketArgs, CallError> {
    let [max_cpus, min_vms, min_cpus_per_vm, timeout_ms] = words.at_most(4)? else {
        return Err(misuse("four numbers are wanted: MAXCPUS MINVMS MINCPUSPERVM TIMEOUT_MS"));
    };
    let args = TicketArgs {
        max_cpus: number("MAXCPUS", max_cpus, 1, u32::MAX)?,
        min_vms: number("MINVMS", min_vms, 1, u32::MAX)?,
        min_cpus_per_vm: number("MINCPUSPERVM", min_cpus_per_vm, 1, u32::MAX)?,
        timeout_ms: number("TIMEOUT_MS", timeout_ms, 0, TIMEOUT_MAX_MS)?,
        request_id: words.value("--request-id").map(request_id).transpose()?,
    };
    let least_cpus = u64::from(args.min_vms) * u64::from(args.min_cpus_per_vm);
    if least_cpus > u64::from(args.max_cpus) {
        return Err(misuse(format!(
            "MINVMS VMs of MINCPUSPERVM CPUs are {least_cpus} CPUs, which is more than MAXCPUS, {max_cpus}"
        )));
    }
    Ok(args)
}

fn request_id(word: &str) -> Result<String, CallError> {
    let is_one = (1..=REQUEST_ID_MAX).contains(&word.chars().count()) && !word.contains(char::is_control);
    is_one.then(|| word.to_owned()).ok_or_else(|| {
        misuse(format!("--request-id has 1 to {REQUEST_ID_MAX} characters, none of them control"))
    })
}

pub(super) fn parse_request(arguments: &[String]) -> Result<(TicketArgs, bool), CallError> {
    let words = Words::parse(arguments, &["--json"], &["--request-id"])?;
    Ok((parse(&words)?, words.has("--json")))
}

/// A ticket's line.
pub(super) fn line(ticket: &TicketView) -> String {
    let TicketView { uuid, status, cpus, vms, min_cpus_per_vm } = ticket;
    format!("ticket: {uuid} {status} {cpus} {vms} {min_cpus_per_vm}\n")
}

pub(super) fn request(arguments: &[String]) -> Result<Output, CallError> {
    let (args, as_json) = parse_request(arguments)?;
    let granted = agent("rt", args)?;
    if as_json {
        return Ok(print_json(&granted));
    }
    let granted: TicketView = read("ticket", granted)?;
    Ok(print(format!("ticket: {}\n", granted.uuid)))
}

pub(super) fn list(arguments: &[String]) -> Result<Output, CallError> {
    let as_json = Words::json_only(arguments)?;
    let mut agent = Connection::open()?;
    let tickets = pages(String::new(), |from| {
        let args = TicketsArgs { from: Some(from) };
        let TicketsPage { tickets, next } = read("list of tickets", agent.call(&call("lt", args)?)?)?;
        Ok((tickets, next))
    })?;
    if as_json {
        return Ok(print_json(&value(&tickets)?));
    }
    Ok(print(tickets.iter().map(line).collect::<String>()))
}

pub(super) fn one(arguments: &[String]) -> Result<Output, CallError> {
    let words = Words::parse(arguments, &["--json"], &[])?;
    let uuid = words.at_most(1)?.first().map(|uuid| ticket(uuid)).transpose()?;
    if uuid.is_none() && is_master()? {
        return Err(misuse("the master was made under no ticket; say which: `gc ticket UUID`"));
    }
    let found = agent("ticket", TicketName { uuid })?;
    if words.has("--json") {
        return Ok(print_json(&found));
    }
    Ok(print(line(&read("ticket", found)?)))
}
