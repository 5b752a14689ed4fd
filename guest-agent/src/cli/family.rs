//! `gc sync` and `gc kill`: what the VMs of a ticket do together.

use super::verbs::{agent, is_master, print_json, read};
use super::words::{Words, looks_like_a_number, number, ticket, timeout_ms};
use super::{Output, misuse};
use patina_abi::link::{CallError, KillArgs, SyncArgs, Synced};

/// Most VMs that one call ends.
const KILL_MAX: usize = 1024;

pub(super) fn parse_sync(words: &Words<'_>) -> Result<SyncArgs, CallError> {
    Ok(match words.at_most(2)? {
        [] => SyncArgs::default(),
        [time] if looks_like_a_number(time) => {
            SyncArgs { timeout_ms: Some(timeout_ms(time)?), ..SyncArgs::default() }
        }
        [name] => SyncArgs { ticket: Some(ticket(name)?), ..SyncArgs::default() },
        [name, time, ..] => SyncArgs {
            ticket: Some(ticket(name)?),
            timeout_ms: Some(timeout_ms(time)?),
            ..SyncArgs::default()
        },
    })
}

pub(super) fn sync(arguments: &[String]) -> Result<Output, CallError> {
    let words = Words::parse(arguments, &["--json"], &[])?;
    let args = parse_sync(&words)?;
    if args.ticket.is_none() && is_master()? {
        return Err(misuse("the master was made under no ticket; say which: `gc sync TICKET [TIMEOUT_MS]`"));
    }
    let met = agent("sync", args)?;
    if words.has("--json") {
        return Ok(print_json(&met));
    }
    read::<Synced>("meeting", met)?;
    Ok(Output::default())
}

pub(super) fn parse_kill(words: &Words<'_>) -> Result<KillArgs, CallError> {
    let vmids = words.at_most(KILL_MAX)?;
    let vmids = vmids.iter().map(|word| match *word {
        "0" => Err(misuse("0 is the master, which its clones do not end; it ends itself with `poweroff`")),
        word => number("VMID", word, 1, u32::MAX),
    });
    let vmids = vmids.collect::<Result<Vec<u32>, _>>()?;
    let ticket = words.value("--ticket").map(ticket).transpose()?;
    if vmids.is_empty() == ticket.is_none() {
        return Err(misuse("which clones? either `gc kill VMID...` or `gc kill --ticket TICKET`"));
    }
    Ok(KillArgs { vmids, ticket })
}

pub(super) fn kill(arguments: &[String]) -> Result<Output, CallError> {
    let words = Words::parse(arguments, &["--json"], &["--ticket"])?;
    let ended = agent("kill", parse_kill(&words)?)?;
    if words.has("--json") {
        return Ok(print_json(&ended));
    }
    read::<Vec<u32>>("list of vmids", ended)?;
    Ok(Output::default())
}
