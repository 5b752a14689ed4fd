use super::*;
use proptest::prelude::*;

const OURS: Uuid = Uuid::from_u128(1);
const THEIRS: Uuid = Uuid::from_u128(2);

fn args(max_cpus: u32, min_vms: u32, min_cpus_per_vm: u32) -> TicketArgs {
    TicketArgs { max_cpus, min_vms, min_cpus_per_vm, timeout_ms: 0, request_id: None }
}

fn ask(max_cpus: u32, min_vms: u32) -> Ask {
    Ask::check(&args(max_cpus, min_vms, 1), 1, 256).unwrap()
}

fn ticket(number: u128) -> Uuid {
    Uuid::from_u128(100 + number)
}

#[test]
fn a_ticket_is_for_as_many_vms_as_its_cpus_and_the_host_have_room_for() {
    let mut ledger = Ledger::new(10);
    let two_each = Ask::check(&args(9, 2, 2), 2, 256).unwrap();
    let view = ledger.grant(ticket(0), OURS, two_each).unwrap().unwrap();
    assert_eq!((view.status.as_str(), view.vms, view.cpus, view.min_cpus_per_vm), ("granted", 4, 8, 2));
    let view = ledger.grant(ticket(1), OURS, ask(100, 6)).unwrap().unwrap();
    assert_eq!(view.vms, 6, "what is left");
    assert_eq!(ledger.grant(ticket(2), OURS, ask(100, 1)).unwrap(), None, "nothing is left");
    assert_eq!(ledger.reserved(OURS), 10);
    assert!(!ledger.could_grant(ask(100, 11)) && ledger.could_grant(ask(100, 10)));
}

#[test]
fn requests_that_nobody_can_meet_are_refused_with_what_to_do() {
    let refused = |args: &TicketArgs| Ask::check(args, 2, 256).unwrap_err().to_string();
    assert!(refused(&args(8, 1, 3)).contains("make the master with --vcpus 3"));
    assert!(refused(&args(3, 2, 1)).contains("3 CPUs are 1 VMs of 2 vCPUs, fewer than 2"));
    assert!(refused(&args(0, 0, 0)).contains("fewer than 1"));
    assert!(refused(&args(u32::MAX, 257, 1)).contains("fewer than 257"));
}

#[test]
fn a_ticket_is_used_once_by_its_family_and_released_with_its_last_clone() {
    let mut ledger = Ledger::new(3);
    let uuid = ticket(0);
    ledger.grant(uuid, OURS, ask(2, 1)).unwrap().unwrap();
    assert_eq!(ledger.take(ticket(9), OURS), Err(LedgerError::Unknown(ticket(9))));
    assert_eq!(ledger.take(uuid, THEIRS), Err(LedgerError::Foreign(uuid)));
    assert_eq!(ledger.show(uuid, THEIRS), Err(LedgerError::Foreign(uuid)));
    assert_eq!(ledger.take(uuid, OURS), Ok(2));
    ledger.give_back(uuid);
    assert_eq!(ledger.take(uuid, OURS), Ok(2), "nothing had been cloned");
    assert_eq!(ledger.take(uuid, OURS), Err(LedgerError::Used(uuid)));
    assert_eq!(ledger.reserved(OURS), 0);
    ledger.leave(Some(uuid));
    assert_eq!(ledger.show(uuid, OURS).unwrap().status, "used");
    ledger.leave(Some(uuid));
    assert_eq!(ledger.show(uuid, OURS).unwrap().status, "released");
    assert_eq!(ledger.take(uuid, OURS), Err(LedgerError::Released(uuid)));
    assert!(ledger.admit(3).is_ok(), "what it held is free again");
}

#[test]
fn clones_without_a_ticket_count_too() {
    let mut ledger = Ledger::new(4);
    ledger.admit(3).unwrap();
    let error = ledger.admit(2).unwrap_err();
    assert_eq!(error, LedgerError::Full { count: 2, free: 1, most: 4 });
    assert!(error.to_string().contains("--max-vms"), "{error}");
    assert_eq!(ledger.grant(ticket(0), OURS, ask(4, 2)).unwrap(), None);
    ledger.leave(None);
    assert_eq!(ledger.grant(ticket(0), OURS, ask(4, 2)).unwrap().unwrap().vms, 2);
}

#[test]
fn clones_that_are_found_bring_their_ticket_back() {
    let mut ledger = Ledger::new(1);
    for _ in 0..2 {
        ledger.find(Some(ticket(0)), OURS, 2);
    }
    ledger.find(None, OURS, 1);
    let [view] = ledger.list(OURS).try_into().unwrap();
    assert_eq!((view.status.as_str(), view.vms, view.cpus), ("used", 2, 4));
    assert_eq!(ledger.admit(1).unwrap_err(), LedgerError::Full { count: 1, free: 0, most: 1 });
    for _ in 0..2 {
        ledger.leave(Some(ticket(0)));
    }
    assert_eq!(ledger.list(OURS)[0].status, "released");
}

#[test]
fn a_family_has_so_many_tickets_and_its_oldest_released_one_is_forgotten_first() {
    let mut ledger = Ledger::new(1000);
    for number in 0..TICKETS_MAX as u128 {
        ledger.grant(ticket(number), OURS, ask(1, 1)).unwrap().unwrap();
    }
    assert_eq!(ledger.grant(ticket(64), OURS, ask(1, 1)), Err(LedgerError::TooMany));
    assert!(ledger.grant(ticket(65), THEIRS, ask(1, 1)).unwrap().is_some(), "others are not held up");
    for number in [5, 3] {
        ledger.take(ticket(number), OURS).unwrap();
        ledger.leave(Some(ticket(number)));
    }
    ledger.grant(ticket(66), OURS, ask(1, 1)).unwrap().unwrap();
    assert_eq!(ledger.show(ticket(3), OURS), Err(LedgerError::Unknown(ticket(3))));
    assert_eq!(ledger.show(ticket(5), OURS).unwrap().status, "released");
    ledger.forget(OURS);
    assert!(ledger.list(OURS).is_empty() && ledger.list(THEIRS).len() == 1);
}

#[derive(Debug, Clone)]
enum Step {
    Grant { number: u128, cpus: u32, least: u32 },
    Take(u128),
    GiveBack(u128),
    Admit(u32),
    Leave(usize),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..8u128, 1..12u32, 1..4u32).prop_map(|(number, cpus, least)| Step::Grant { number, cpus, least }),
        (0..8u128).prop_map(Step::Take),
        (0..8u128).prop_map(Step::GiveBack),
        (0..6u32).prop_map(Step::Admit),
        any::<usize>().prop_map(Step::Leave),
    ]
}

proptest! {
    #[test]
    fn the_host_never_gives_more_than_it_has(steps in proptest::collection::vec(any_step(), 0..80)) {
        const MOST: u32 = 20;
        let mut ledger = Ledger::new(MOST);
        // The model: what lives, and with which ticket.
        let mut live: Vec<Option<Uuid>> = Vec::new();
        for step in steps {
            match step {
                Step::Grant { number, cpus, least } => {
                    let new = ledger.show(ticket(number), OURS).is_err();
                    if let (true, true) = (new, cpus >= least) {
                        let granted = ledger.grant(ticket(number), OURS, ask(cpus, least)).unwrap();
                        prop_assert!(granted.is_none_or(|view| (least..=cpus).contains(&view.vms)));
                    }
                }
                Step::Take(number) => if let Ok(vms) = ledger.take(ticket(number), OURS) {
                    live.extend((0..vms).map(|_| Some(ticket(number))));
                },
                Step::GiveBack(number) => {
                    let all = ledger.show(ticket(number), OURS).map_or(0, |view| view.vms as usize);
                    let own = live.iter().filter(|clone| **clone == Some(ticket(number))).count();
                    if own > 0 && own == all {
                        ledger.give_back(ticket(number));
                        live.retain(|clone| *clone != Some(ticket(number)));
                    }
                }
                Step::Admit(count) => if ledger.admit(count).is_ok() {
                    live.extend((0..count).map(|_| None));
                },
                Step::Leave(index) => if !live.is_empty() {
                    ledger.leave(live.swap_remove(index % live.len()));
                },
            }
            let promised = u32::try_from(live.len()).unwrap() + ledger.reserved(OURS);
            prop_assert!(promised <= MOST);
            prop_assert_eq!(ledger.held(), promised);
        }
    }
}
