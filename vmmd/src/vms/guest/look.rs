//! What a guest can list: the VMs and the tickets of its family.
//!
//! An answer is one line. A list that is too long for one line has pages: a request names where its
//! page begins, and the answer says where the next one begins.

use super::{AROUND_BYTES, Answered, optional, refusal, refuse, ticket, together::own_ticket, write};
use crate::{
    store::record::Record,
    vms::{
        host::Host,
        tickets::{ticket_of, view},
        vm::Vm,
    },
};
use patina_abi::{
    LINE_MAX_BYTES,
    args::Args,
    link::{ListArgs, Member, MembersPage, TicketName, TicketView, TicketsArgs, TicketsPage},
};
use serde::Serialize;
use std::sync::Arc;

/// The VMs of a family that this host has.
pub(super) fn list(vms: &[Arc<Vm>], record: &Record, hostname: &str, args: &Args) -> Answered {
    let ListArgs { from } = optional(args)?;
    let of_family = vms.iter().filter(|vm| vm.record.family == record.family);
    let mut members: Vec<Member> = of_family.filter_map(|vm| member(vm, hostname)).collect();
    members.sort_by_key(|member| member.vmid);
    match from {
        None => whole(&members, "list", "{\"from\":0}"),
        Some(from) => {
            members.retain(|member| member.vmid >= from);
            let next = members.get(that_fit(&members)).map(|member| member.vmid);
            members.retain(|member| next.is_none_or(|next| member.vmid < next));
            write(&MembersPage { members, next })
        }
    }
}

fn member(vm: &Vm, hostname: &str) -> Option<Member> {
    let record = &vm.record;
    Some(Member {
        vmid: record.vmid,
        ip: record.net.ip(record.vmid)?,
        state: vm.status().phase.word().to_owned(),
        host: hostname.to_owned(),
        ticket: ticket_of(record).map(|ticket| ticket.to_string()),
        parent_vmid: record.origin.as_ref().map(|origin| origin.parent_vmid),
    })
}

/// How many of these, from the first on, a line holds.
fn that_fit<T: Serialize>(values: &[T]) -> usize {
    let mut left_bytes = LINE_MAX_BYTES - 2 * AROUND_BYTES;
    let fits = |value: &&T| {
        // With the comma after it. What cannot be written is refused as such later on.
        let bytes = serde_json::to_vec(value).map_or(0, |text| text.len() + 1);
        let left = left_bytes.checked_sub(bytes);
        left_bytes = left.unwrap_or(0);
        left.is_some()
    };
    values.iter().take_while(fits).count()
}

/// A list for who did not ask for a page of it.
fn whole<T: Serialize>(values: &[T], verb: &str, first: &str) -> Answered {
    if that_fit(values) < values.len() {
        let message = format!(
            "{verb}: the {} that there are do not fit on one line; ask for them in pages: {first}",
            values.len()
        );
        return Err(refuse(libc::EMSGSIZE, message));
    }
    write(&values)
}

/// The tickets of a family, but those of clones that were asked for by number.
pub(super) async fn tickets(host: &Host, vm: &Vm, args: &Args) -> Answered {
    let TicketsArgs { from } = optional(args)?;
    let family = vm.record.family;
    if let Some(from) = from {
        let (tickets, next) = host.list_tickets(family, from).await.map_err(refusal)?;
        return write(&TicketsPage { tickets, next });
    }
    let mut all: Vec<TicketView> = Vec::new();
    let mut from = String::new();
    loop {
        let (tickets, next) = host.list_tickets(family, from).await.map_err(refusal)?;
        all.extend(tickets);
        match next {
            // Whatever the scheduler goes on to say: it would be too much.
            Some(next) if that_fit(&all) == all.len() => from = next,
            _ => return whole(&all, "lt", "{\"from\":\"\"}"),
        }
    }
}

pub(super) async fn one_ticket(host: &Host, vm: &Vm, args: &Args) -> Answered {
    let TicketName { uuid } = optional(args)?;
    let id = match uuid {
        Some(text) => ticket(&text)?,
        None => own_ticket(vm, "ticket")?,
    };
    let found = host.tickets.get(id, vm.record.family).await.map_err(refusal)?;
    write(&view(&found))
}

#[cfg(test)]
#[path = "look_test.rs"]
mod tests;
