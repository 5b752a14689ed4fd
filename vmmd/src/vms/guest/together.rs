//! What the VMs of a ticket do together: barriers, results, joins and kills.

use super::{Answered, optional, parse, refusal, refuse, ticket, write};
use crate::vms::{
    host::Host,
    tickets::{WAIT_MAX, ticket_of},
    vm::Vm,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use patina_abi::args::Args;
use patina_abi::link::{
    CallError, JoinArgs, JoinData, JoinDataArgs, JoinedClone, KillArgs, LEAVE_MAX_BYTES, LeaveArgs,
    LeaveData, PIECE_MAX_BYTES, SyncArgs, Synced,
};
use patina_proto::v1::{
    GetJoinDataRequest, JoinLeave, JoinRequest, JoinWait, KillRequest, SyncRequest, VmEnd, VmResult,
    join_request::Side,
};
use scheduler::client::Client;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// How long who joins without a time waits: longer than any VM runs.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long the end of killed clones may take; those that are being made end when they run, after
/// their parent's pre-clone hook.
const KILL_WAIT: Duration = Duration::from_secs(150);

/// The ticket that this VM was cloned with.
pub(super) fn own_ticket(vm: &Vm, verb: &str) -> Result<Uuid, CallError> {
    ticket_of(&vm.record).ok_or_else(|| {
        let message =
            format!("{verb}: this VM is the master, no clone; say which ticket: `gc {verb} TICKET`");
        refuse(libc::EINVAL, message)
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn most_wait(timeout_ms: Option<u64>) -> u64 {
    let most = milliseconds(WAIT_MAX);
    // 0 is for ever in the scheduler's words, and no time at all in a guest's.
    timeout_ms.map_or(0, |ms| ms.clamp(1, most))
}

pub(super) async fn sync(host: &Host, vm: &Vm, args: &Args) -> Answered {
    let SyncArgs { ticket: named, timeout_ms, after_round } = optional(args)?;
    let ticket = match named {
        Some(text) => ticket(&text)?,
        None => own_ticket(vm, "sync")?,
    };
    let request = |timeout_ms| SyncRequest {
        ticket: ticket.to_string(),
        family: vm.record.family.to_string(),
        vmid: vm.record.vmid,
        timeout_ms: most_wait(timeout_ms),
        after_round,
    };
    let met = if after_round.is_some() {
        // A meeting that took place meanwhile is answered when it is asked for again.
        let wait = timeout_ms.map_or(FOR_EVER, |_| Duration::from_millis(most_wait(timeout_ms)));
        let sync = |mut client: Client, left| {
            let request = request(timeout_ms.map(|_| milliseconds(left)));
            async move { client.sync(request).await }
        };
        host.tickets.ask("sync", wait, sync).await
    } else {
        // Once: an agent that does not say at which meeting it was would wait for the next one.
        let wait = timeout_ms.map(|_| Duration::from_millis(most_wait(timeout_ms)));
        let mut client = host.tickets.client();
        host.tickets.ask_once("sync", wait, client.sync(request(timeout_ms))).await
    };
    let met = met.map_err(refusal)?;
    write(&Synced { round: met.round, arrived: met.arrived })
}

pub(super) fn leave_data(vm: &Vm, args: &Args) -> Answered {
    let LeaveData { offset, data } = parse(args)?;
    own_ticket(vm, "join")?;
    let data = BASE64.decode(data).map_err(|error| refuse(libc::EINVAL, format!("read a piece: {error}")))?;
    if data.len() > PIECE_MAX_BYTES {
        return Err(refuse(libc::EMSGSIZE, format!("a piece has at most {PIECE_MAX_BYTES} bytes")));
    }
    let mut pieces = vm.pieces();
    if offset == 0 {
        pieces.leaving.clear();
    }
    if offset != pieces.leaving.len() as u64 {
        let message =
            format!("a piece from byte {offset} on: {} bytes were left so far", pieces.leaving.len());
        return Err(refuse(libc::EINVAL, message));
    }
    if offset + data.len() as u64 > LEAVE_MAX_BYTES {
        return Err(refuse(libc::EFBIG, format!("join: a clone leaves at most {LEAVE_MAX_BYTES} bytes")));
    }
    pieces.leaving.extend(data);
    Ok(Value::Null)
}

pub(super) async fn leave(host: &Arc<Host>, vm: &Arc<Vm>, args: &Args) -> Answered {
    let LeaveArgs { status, noreport } = optional(args)?;
    let ticket = own_ticket(vm, "join")?;
    // A copy: a program may try again what the scheduler has not taken.
    let data = vm.pieces().leaving.clone();
    let bytes = data.len();
    let leave = JoinLeave { vmid: vm.record.vmid, status, data, noreport };
    let (ticket, family) = (ticket.to_string(), vm.record.family.to_string());
    let request = JoinRequest { ticket, family, side: Some(Side::Leave(leave)) };
    let leave = |mut client: Client, _| {
        let request = request.clone();
        async move { client.join(request).await }
    };
    host.tickets.ask("join", Duration::ZERO, leave).await.map_err(refusal)?;
    let mut pieces = vm.pieces();
    // It is the scheduler's now: up to a MiB for each of many clones.
    pieces.leaving = Vec::new();
    pieces.left = Some(format!("joined with status {status} and {bytes} bytes of data"));
    Ok(Value::Null)
}

pub(super) async fn join(host: &Host, vm: &Vm, args: &Args) -> Answered {
    let JoinArgs { ticket: named, timeout_ms } = parse(args)?;
    let (ticket, family) = (ticket(&named)?.to_string(), vm.record.family.to_string());
    let wait = timeout_ms.map_or(FOR_EVER, |_| Duration::from_millis(most_wait(timeout_ms)));
    let join = |mut client: Client, left: Duration| {
        let left_ms = timeout_ms.map(|_| milliseconds(left));
        let wait = JoinWait { vmid: vm.record.vmid, timeout_ms: most_wait(left_ms) };
        let side = Some(Side::Wait(wait));
        let request = JoinRequest { ticket: ticket.clone(), family: family.clone(), side };
        async move { client.join(request).await }
    };
    let joined = host.tickets.ask("join", wait, join).await.map_err(refusal)?;
    write(&joined.results.iter().map(joined_clone).collect::<Vec<_>>())
}

fn joined_clone(result: &VmResult) -> JoinedClone {
    let end = match result.end() {
        VmEnd::Joined => "joined",
        VmEnd::Killed => "killed",
        VmEnd::Lost => "lost",
        VmEnd::Ended | VmEnd::Unspecified => "ended",
    };
    let VmResult { vmid, status, data_bytes, reported, data_dropped, .. } = *result;
    let data_bytes = if data_dropped { 0 } else { data_bytes };
    JoinedClone { vmid, end: end.to_owned(), status, data_bytes, reported }
}

pub(super) async fn join_data(host: &Host, vm: &Vm, args: &Args) -> Answered {
    let JoinDataArgs { ticket: named, vmid, offset } = parse(args)?;
    let named = ticket(&named)?.to_string();
    let known = vm
        .pieces()
        .joined
        .as_ref()
        .filter(|(of, who, _)| *of == named && *who == vmid)
        .map(|k| Arc::clone(&k.2));
    let data = match known {
        Some(data) if offset > 0 => data,
        _ => {
            let request =
                GetJoinDataRequest { ticket: named.clone(), family: vm.record.family.to_string(), vmid };
            let get = |mut client: Client, _| {
                let request = request.clone();
                async move { client.get_join_data(request).await }
            };
            Arc::new(host.tickets.ask("join", Duration::ZERO, get).await.map_err(refusal)?.data)
        }
    };
    let bytes = data.len() as u64;
    let from = usize::try_from(offset.min(bytes)).unwrap_or(usize::MAX);
    let piece = &data[from..data.len().min(from.saturating_add(PIECE_MAX_BYTES))];
    let is_last = from + piece.len() == data.len();
    let answer = JoinData { data: BASE64.encode(piece), bytes };
    vm.pieces().joined = (!is_last).then_some((named, vmid, data));
    write(&answer)
}

pub(super) async fn kill(host: &Arc<Host>, vm: &Vm, args: &Args) -> Answered {
    let KillArgs { vmids, ticket: named } = parse(args)?;
    if vmids.is_empty() == named.is_none() {
        return Err(refuse(libc::EINVAL, "say either which vmids, or a ticket".into()));
    }
    let ticket = named.map(|text| ticket(&text)).transpose()?;
    let request = KillRequest {
        family: vm.record.family.to_string(),
        vmids,
        ticket: ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
        reason: format!("killed by VM {} of its family", vm.record.vmid),
    };
    let kill = |mut client: Client, _| {
        let request = request.clone();
        async move { client.kill(request).await }
    };
    write(&host.tickets.ask("kill", KILL_WAIT, kill).await.map_err(refusal)?.ended)
}
