use super::*;
use crate::{
    plan::lifecycle::Ended,
    store::{
        VmDir,
        record::{Origin, tests::sample},
    },
};
use patina_control::end::{End, EndKind};
use patina_proto::v1::FamilyVm;
use serde_json::json;
use uuid::Uuid;

const FAMILY: Uuid = Uuid::from_u128(5);

fn vm(vmid: u32) -> Arc<Vm> {
    let ended = Ended { end: End { kind: EndKind::PoweredOff, reason: "off".into() }, unix_ms: 9 };
    let origin = (vmid > 0).then(|| Origin {
        parent_vmid: vmid - 1,
        master: "a".into(),
        parent_host: None,
        request: None,
    });
    let ticket = (vmid > 0).then(|| Uuid::from_u128(u128::MAX - u128::from(vmid)));
    let record = Record { vmid, family: FAMILY, origin, ticket, ended: Some(ended.clone()), ..sample("a.1") };
    Arc::new(Vm::ended(record, VmDir::at("/nowhere"), ended))
}

fn of_family() -> Record {
    Record { family: FAMILY, ..sample("a") }
}

/// What a guest is answered whose family has VMs on this host alone.
fn list(vms: &[Arc<Vm>], record: &Record, hostname: &str, args: &Args) -> Answered {
    page(merged(members_here(vms, record, hostname), Vec::new()), optional(args)?)
}

#[test]
fn vms_of_other_hosts_are_in_their_places() {
    let there = |vmid, state, ticket: &str, parent_vmid| {
        let (host, ticket) = ("b".into(), ticket.into());
        Elsewhere { vm: FamilyVm { vmid, host, ticket, parent_vmid, ..FamilyVm::default() }, state }
    };
    let vms = vec![
        there(0, None, "", None),
        // This host knows better what becomes of its own.
        there(1, Some(VmState::Ready), "t", Some(0)),
        there(2, Some(VmState::Ready), "t", Some(0)),
        there(5000, Some(VmState::Ready), "no address", Some(0)),
    ];
    let record = of_family();
    let all = merged(members_here(&[vm(1), vm(3)], &record, "a"), members_elsewhere(&record, vms));
    let seen = all.iter().map(|member| (member.vmid, &*member.host, &*member.state, member.parent_vmid));
    let wanted = [
        (0, "b", "unreachable", None),
        (1, "a", "ended", Some(0)),
        (2, "b", "ready", Some(0)),
        (3, "a", "ended", Some(2)),
    ];
    assert!(seen.eq(wanted), "{all:?}");
    assert_eq!(all[2].ip, record.net.ip(2).unwrap());
    assert_eq!([&all[0].ticket, &all[2].ticket], [&None, &Some("t".to_owned())]);
}

#[test]
fn a_guest_sees_its_own_family_and_no_other() {
    let vms = [vm(1), vm(0)];
    for args in [json!(null), json!({})] {
        let value = list(&vms, &of_family(), "h", &args.into()).unwrap();
        let master = json!({"vmid": 0, "ip": "100.64.32.1", "state": "ended", "host": "h"});
        let ticket = Uuid::from_u128(u128::MAX - 1);
        let clone = json!({"vmid": 1, "ip": "100.64.32.2", "state": "ended", "host": "h", "ticket": ticket, "parent_vmid": 0});
        assert_eq!(value, json!([master, clone]));
    }
    let stranger = Record { family: Uuid::from_u128(1), ..of_family() };
    assert_eq!(list(&vms, &stranger, "h", &Args::default()), Ok(json!([])));
    assert_eq!(list(&vms, &stranger, "h", &json!({"from": 0}).into()), Ok(json!({"members": []})));
}

#[test]
fn a_family_that_fits_no_line_is_told_in_pages() {
    let vms: Vec<_> = (0..1024).rev().map(vm).collect();
    let host = "h".repeat(253);
    let error = list(&vms, &of_family(), &host, &Args::default()).unwrap_err();
    assert_eq!(error.code, libc::EMSGSIZE);
    assert!(error.message.contains("the 1024 ") && error.message.contains(r#"{"from":0}"#), "{error}");
    let (mut all, mut from, mut pages) = (Vec::new(), 0, 0);
    loop {
        let value = list(&vms, &of_family(), &host, &json!({"from": from}).into()).unwrap();
        assert!(value.to_string().len() + AROUND_BYTES <= LINE_MAX_BYTES);
        let MembersPage { members, next } = serde_json::from_value(value).unwrap();
        assert!(members.len() > 100 || next.is_none(), "as many as fit: {}", members.len());
        all.extend(members.iter().map(|member| member.vmid));
        pages += 1;
        match next {
            Some(next) => {
                assert!(next > from, "{next} is after {from}");
                from = next;
            }
            None => break,
        }
    }
    assert_eq!(all, (0..1024).collect::<Vec<u32>>());
    assert!((4..12).contains(&pages), "{pages}");
    let past_all = list(&vms, &of_family(), &host, &json!({"from": 5000}).into());
    assert_eq!(past_all, Ok(json!({"members": []})));
}

#[test]
fn a_page_is_asked_for_by_a_vmid_and_nothing_else() {
    for args in [json!({"from": -1}), json!({"from": "0"}), json!({"after": 3}), json!([1, 2])] {
        let error = list(&[vm(0)], &of_family(), "h", &args.clone().into()).unwrap_err();
        assert_eq!(error.code, libc::EINVAL, "{args}");
    }
}

#[test]
fn as_many_tickets_as_a_page_has_fit_on_a_line() {
    let ticket = TicketView {
        uuid: Uuid::nil().to_string(),
        status: "released".into(),
        cpus: u32::MAX,
        vms: u32::MAX,
        min_cpus_per_vm: u32::MAX,
    };
    let tickets = vec![ticket; crate::vms::family_tickets::LIST_MAX as usize];
    assert!(whole(&tickets, "lt", "").is_ok());
    let next = Some("x".repeat(64));
    assert!(write(&TicketsPage { tickets: tickets.clone(), next }).is_ok());
    let twice = [tickets.clone(), tickets].concat();
    assert_eq!(whole(&twice, "lt", "").unwrap_err().code, libc::EMSGSIZE);
}
