//! What a guest can list: the VMs and the tickets of its family.
//!
//! An answer is one line. A list that is too long for one line has pages: a request names where its
//! page begins, and the answer says where the next one begins.

use super::{AROUND_BYTES, Answered, optional, refusal, refuse, ticket, together::own_ticket, write};
use crate::{
    plan::lifecycle::Phase,
    store::record::Record,
    vms::{
        host::Host,
        remote::states::Elsewhere,
        tickets::{ticket_of, view},
        vm::Vm,
    },
};
use patina_abi::{
    LINE_MAX_BYTES,
    args::Args,
    link::{ListArgs, Member, MembersPage, TicketName, TicketView, TicketsArgs, TicketsPage},
};
use patina_proto::v1::VmState;
use serde::Serialize;
use std::{collections::BTreeMap, sync::Arc};

/// The VMs of a family, on all hosts.
pub(super) async fn list(host: &Host, vm: &Vm, args: &Args) -> Answered {
    let args: ListArgs = optional(args)?;
    let here = members_here(&host.table.all(), &vm.record, &host.settings.hostname);
    let elsewhere = host.family_elsewhere(&vm.record).await.map_err(refusal)?;
    page(merged(here, members_elsewhere(&vm.record, elsewhere)), args)
}

/// Those that this host has, ended ones included.
fn members_here(vms: &[Arc<Vm>], record: &Record, hostname: &str) -> Vec<Member> {
    let of_family = vms.iter().filter(|vm| vm.record.family == record.family);
    of_family.filter_map(|vm| member(vm, hostname)).collect()
}

/// Those of other hosts that live.
fn members_elsewhere(record: &Record, vms: Vec<Elsewhere>) -> Vec<Member> {
    let member = |Elsewhere { vm, state }: Elsewhere| {
        let state = match state {
            Some(VmState::Ready) => Phase::Ready.word(),
            Some(_) => Phase::Booting.word(),
            None => "unreachable",
        };
        Some(Member {
            vmid: vm.vmid,
            ip: record.net.ip(vm.vmid)?,
            state: state.to_owned(),
            host: vm.host,
            ticket: Some(vm.ticket).filter(|ticket| !ticket.is_empty()),
            parent_vmid: vm.parent_vmid,
        })
    };
    vms.into_iter().filter_map(member).collect()
}

/// By vmid. What this host says of a VM is newer than what others say.
fn merged(here: Vec<Member>, elsewhere: Vec<Member>) -> Vec<Member> {
    let all = elsewhere.into_iter().chain(here).map(|member| (member.vmid, member));
    all.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// All of the members, or those of a page.
fn page(mut members: Vec<Member>, args: ListArgs) -> Answered {
    match args.from {
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
