//! `gc list`, `gc lt` and `gc ticket`: however long the lists are.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::gc::{done, end, expect, gc, refuse, reply};
use common::{Fixture, Host};
use patina_abi::link::TicketView;
use serde_json::{Value, json};
use std::process::Child;

const TICKET: &str = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";

fn member(vmid: u32) -> Value {
    let mut member = json!({"vmid": vmid, "ip": "100.64.0.9", "state": "ready", "host": "a"});
    if vmid > 0 {
        member["ticket"] = if vmid < 3 { TICKET } else { "7" }.into();
        member["parent_vmid"] = 0.into();
    }
    member
}

/// A family of five, told in three pages.
fn listed(fixture: &Fixture, host: &mut Host, arguments: &str) -> Child {
    let child = gc(fixture, arguments);
    for (from, members, next) in [(0, vec![0, 1], Some(2)), (2, vec![2, 3], Some(6)), (6, vec![6], None)] {
        let (id, args) = expect(host, "list");
        assert_eq!(args, json!({"from": from}));
        let members: Vec<Value> = members.into_iter().map(member).collect();
        let mut page = json!({"members": members});
        if let Some(next) = next {
            page["next"] = next.into();
        }
        reply(host, id, page);
    }
    child
}

#[test]
fn all_pages_of_a_family_are_one_list() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let child = listed(&fixture, &mut host, "list");
    let lines: Vec<String> = [0, 1, 2, 3, 6].map(|vmid| format!("{vmid} 100.64.0.9 ready a\n")).into();
    assert_eq!(end(child), done(0, &lines.concat()));
    let child = listed(&fixture, &mut host, "list --json");
    let (code, text, _) = end(child);
    let members: Vec<Value> = [0, 1, 2, 3, 6].map(member).into();
    assert_eq!((code, serde_json::from_str::<Value>(&text).unwrap()), (Some(0), members.into()));
    let child = listed(&fixture, &mut host, &format!("list --ticket {TICKET}"));
    assert_eq!(end(child), done(0, &lines[1..3].concat()));
    let child = gc(&fixture, "list");
    let (id, _) = expect(&mut host, "list");
    refuse(&mut host, id, 11, "later");
    assert_eq!(end(child), (Some(11), String::new(), "gc: list: later\n".into()));
}

#[test]
fn a_host_whose_pages_have_no_end_is_not_followed_for_ever() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let child = gc(&fixture, "list");
    for _ in 0..64 {
        let (id, _) = expect(&mut host, "list");
        reply(&mut host, id, json!({"members": [], "next": 1}));
    }
    let (code, text, words) = end(child);
    assert!(code == Some(71) && text.is_empty() && words.contains("more than 64 pages"), "{words}");
}

#[test]
fn all_pages_of_tickets_are_one_list() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let ticket =
        |cpus| TicketView { uuid: TICKET.into(), status: "used".into(), cpus, vms: 2, min_cpus_per_vm: 1 };
    let child = gc(&fixture, "lt");
    for (from, tickets, next) in
        [("", vec![1, 2], Some("9.x")), ("9.x", vec![], Some("10.x")), ("10.x", vec![3], None)]
    {
        let (id, args) = expect(&mut host, "lt");
        assert_eq!(args, json!({"from": from}));
        let tickets: Vec<TicketView> = tickets.into_iter().map(ticket).collect();
        reply(&mut host, id, json!({"tickets": tickets, "next": next}));
    }
    let lines: Vec<String> = [1, 2, 3].map(|cpus| format!("ticket: {TICKET} used {cpus} 2 1\n")).into();
    assert_eq!(end(child), done(0, &lines.concat()));
}

#[test]
fn a_clone_may_leave_its_ticket_out() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (code, text, words) = end(gc(&fixture, "ticket"));
    assert!(code == Some(22) && text.is_empty() && words.contains("`gc ticket UUID`"), "{words}");
    let view = json!({"uuid": TICKET, "status": "used", "cpus": 4, "vms": 2, "min_cpus_per_vm": 1});
    let child = gc(&fixture, &format!("ticket {TICKET}"));
    let (id, args) = expect(&mut host, "ticket");
    assert_eq!(args, json!({"uuid": TICKET}));
    reply(&mut host, id, view.clone());
    assert_eq!(end(child), done(0, &format!("ticket: {TICKET} used 4 2 1\n")));
    drop(host);
    let mut host = fixture.ready(4);
    let child = gc(&fixture, "ticket");
    let (id, args) = expect(&mut host, "ticket");
    assert_eq!(args, json!({}));
    reply(&mut host, id, view);
    assert_eq!(end(child), done(0, &format!("ticket: {TICKET} used 4 2 1\n")));
}
