use super::*;
use crate::vms::vm::tests::ended_vm;

const FAMILY: Uuid = Uuid::nil();

/// A table with a family of one VM.
fn family() -> (Table, Record) {
    let table = Table::default();
    let net = table.number_family(&range(), 0, FAMILY).unwrap();
    let record = Record { net, ..ended_vm("a").record.clone() };
    (table, record)
}

fn range() -> Range {
    "10.0.0.0/19".parse().unwrap()
}

fn vmids(taken: &CloneSlots) -> Vec<u32> {
    taken.slots.iter().map(|slot| slot.vmid).collect()
}

/// Makes what the pool lacks.
fn fill(table: &Table, of: &Record, target: usize) -> Vec<u32> {
    let Some(Work::Make(made)) = table.pool_work(of, target, 8) else { return Vec::new() };
    let vmids: Vec<u32> = made.iter().map(|(vmid, _)| *vmid).collect();
    for vmid in &vmids {
        table.keep_pool_slot(of.net.index, of.family, *vmid, PoolSlot::nowhere()).unwrap();
    }
    vmids
}

fn leave(table: &Table, vmid: u32) -> bool {
    matches!(table.leave_family(0, vmid), Left::Nobody(_))
}

#[test]
fn a_familys_number_is_free_when_its_last_vm_and_its_bridge_are_gone() {
    let table = Table::default();
    let number = |from| table.number_family(&range(), from, FAMILY).map(|net| net.index);
    assert_eq!(number(0), Some(0));
    table.join_family(0, FAMILY, 5, 0);
    assert_eq!(table.living(0, FAMILY), [0, 5].into());
    assert!(!leave(&table, 0));
    assert_eq!(table.living(0, FAMILY), [5].into());
    assert!(leave(&table, 5));
    assert_eq!(number(0), Some(1));
    assert_eq!(number(0), None);
    table.forget_family(0);
    assert_eq!(number(0), Some(0));
}

#[test]
fn vmids_go_in_order_and_are_given_once() {
    let (table, parent) = family();
    assert_eq!(table.unwritten(0, FAMILY), None);
    assert_eq!(vmids(&table.take_clone_slots(&parent, 2).unwrap()), [1, 2]);
    assert_eq!(table.unwritten(0, FAMILY), Some(3));
    table.written(0, FAMILY, 3);
    assert_eq!(table.unwritten(0, FAMILY), None);
    for vmid in [1, 2] {
        assert!(!leave(&table, vmid));
    }
    assert_eq!(vmids(&table.take_clone_slots(&parent, 1).unwrap()), [3]);
    // A vmmd that starts finds another VM of the family, and what was written.
    table.join_family(0, FAMILY, 1, 4000);
    table.join_family(0, FAMILY, 2, 7);
    assert_eq!(vmids(&table.take_clone_slots(&parent, 92).unwrap()).last(), Some(&4091));
    let error = table.take_clone_slots(&parent, 2).unwrap_err();
    assert!(matches!(error, Error::NoVmid { count: 2, left: 1, .. }), "{error}");
    assert_eq!(vmids(&table.take_clone_slots(&parent, 1).unwrap()), [4092]);
}

#[test]
fn what_is_warm_is_taken_first_and_given_back_when_nothing_was_cloned() {
    let (table, parent) = family();
    assert_eq!(fill(&table, &parent, 2), [1, 2]);
    assert!(!table.wants(0, FAMILY, 2));
    let taken = table.take_clone_slots(&parent, 3).unwrap();
    assert_eq!(vmids(&taken), [1, 2, 3]);
    let warm: Vec<bool> = taken.slots.iter().map(|slot| slot.pool_slot.is_some()).collect();
    assert_eq!(warm, [true, true, false]);
    assert!(matches!(table.reserve("a.2"), Err(Error::NameTaken(_))), "its name is held");
    for CloneSlot { vmid, pool_slot, .. } in taken.slots {
        table.keep_pool_slot(0, FAMILY, vmid, pool_slot.unwrap_or_else(PoolSlot::nowhere)).unwrap();
    }
    assert!(matches!(table.pool_work(&parent, 2, 8), Some(Work::Trim(3, _))));
    assert!(matches!(table.pool_work(&parent, 2, 8), Some(Work::Nothing)));
    assert_eq!(vmids(&table.take_clone_slots(&parent, 1).unwrap()), [1]);
}

#[test]
fn a_name_that_is_a_users_own_vms_is_passed_over() {
    let (table, parent) = family();
    assert_eq!(fill(&table, &parent, 1), [1]);
    let _own = [table.reserve("a.1").unwrap(), table.reserve("a.3").unwrap()];
    let taken = table.take_clone_slots(&parent, 2).unwrap();
    assert_eq!((vmids(&taken), taken.passed.len()), (vec![2, 4], 1));
    assert_eq!(fill(&table, &parent, 1), [5]);
    let names: Vec<_> = taken.slots.iter().map(|slot| slot.held_name.name().to_owned()).collect();
    assert_eq!(names, ["a.2", "a.4"]);
}

#[test]
fn the_pool_of_a_family_is_kept_once_and_ends_with_it() {
    let (table, parent) = family();
    assert!(!table.begin_pool(0, Uuid::from_u128(1)), "another family's");
    assert!(table.begin_pool(0, FAMILY) && !table.begin_pool(0, FAMILY));
    assert_eq!(fill(&table, &parent, 2), [1, 2]);
    assert!(table.pull_pool_slot(0, FAMILY, 1).is_some() && table.pull_pool_slot(0, FAMILY, 1).is_none());
    assert!(fill(&table, &parent, 2).is_empty(), "it is being cleared away");
    table.lost_pool_slot(0, FAMILY, 1);
    assert_eq!((table.take_losses(0, FAMILY), table.take_losses(0, FAMILY)), (1, 0));
    assert_eq!(fill(&table, &parent, 2), [1], "its vmid was never used");
    let Left::Nobody(pool_slots) = table.leave_family(0, 0) else { panic!("it was the last") };
    assert_eq!(pool_slots.len(), 2);
    assert!(table.pool_work(&parent, 2, 8).is_none() && table.pool_changed(0, FAMILY).is_none());
    assert!(table.keep_pool_slot(0, FAMILY, 3, PoolSlot::nowhere()).is_err());
}

#[test]
fn nothing_joins_a_family_whose_bridge_is_being_deleted() {
    let (table, parent) = family();
    assert!(leave(&table, 0));
    assert!(matches!(table.take_clone_slots(&parent, 1), Err(Error::NotReady { state: "ended", .. })));
    table.forget_family(0);
    assert!(matches!(table.take_clone_slots(&parent, 1), Err(Error::NotReady { .. })));
    table.number_family(&range(), 0, Uuid::from_u128(1)).unwrap();
    assert!(
        matches!(table.take_clone_slots(&parent, 1), Err(Error::NotReady { .. })),
        "another family of that number"
    );
}

#[test]
fn clones_that_the_host_has_no_room_for_are_refused_and_nothing_is_taken() {
    let (table, parent) = family();
    let held: Vec<_> = (0..VMS_MAX - 3).map(|i| table.reserve(&format!("vm{i}")).unwrap()).collect();
    assert!(matches!(table.take_clone_slots(&parent, 4), Err(Error::TooMany)));
    assert_eq!(vmids(&table.take_clone_slots(&parent, 3).unwrap()), [1, 2, 3]);
    drop(held);
}

#[test]
fn the_prefault_list_is_asked_for_once() {
    let (table, _) = family();
    assert!(table.ask_prefault_list(0, FAMILY) && !table.ask_prefault_list(0, FAMILY));
    table.set_prefault_list(0, FAMILY, None);
    assert!(table.ask_prefault_list(0, FAMILY), "who asked did not get it");
    table.set_prefault_list(0, FAMILY, Some(PrefaultList::of(b"list").unwrap()));
    assert!(!table.ask_prefault_list(0, FAMILY) && table.prefault_list(0, FAMILY).is_some());
}

#[test]
fn a_family_is_uncloned_until_vmids_are_written_down_for_clones() {
    let (table, record) = family();
    assert!(table.is_uncloned(0, FAMILY));
    // Warm VMs have vmids before.
    assert!(!fill(&table, &record, 2).is_empty());
    assert!(table.is_uncloned(0, FAMILY));
    drop(table.take_clone_slots(&record, 1).unwrap());
    let next = table.unwritten(0, FAMILY).unwrap();
    table.written(0, FAMILY, next);
    assert!(!table.is_uncloned(0, FAMILY));
    // A vmmd that was started again knows it from what is written.
    let again = Table::default();
    again.join_family(0, FAMILY, 1, next);
    assert!(!again.is_uncloned(0, FAMILY) && !again.is_uncloned(1, FAMILY));
}

#[test]
fn vmids_for_other_hosts_are_given_once_and_leave_what_is_warm_alone() {
    let (table, parent) = family();
    assert_eq!(fill(&table, &parent, 2), [1, 2]);
    assert_eq!(table.take_vmids(&parent, 2).unwrap(), [3, 4]);
    assert_eq!(table.unwritten(0, FAMILY), Some(5));
    assert_eq!(vmids(&table.take_clone_slots(&parent, 3).unwrap()), [1, 2, 5]);
    table.join_family(0, FAMILY, 1, 4091);
    let error = table.take_vmids(&parent, 3).unwrap_err();
    assert!(matches!(error, Error::NoVmid { count: 3, left: 2, .. }), "{error}");
    assert_eq!(table.take_vmids(&parent, 2).unwrap(), [4091, 4092]);
}

#[test]
fn a_family_of_another_host_has_the_number_that_it_has_there_and_gives_no_vmids_here() {
    let table = Table::default();
    let (own, foreign) = (Uuid::from_u128(1), Uuid::from_u128(2));
    assert_eq!(table.number_family(&range(), 0, own).map(|net| net.index), Some(0));
    assert!(matches!(table.join_foreign_family(0, foreign, &[7, 9]), Joined::Taken(other) if other == own));
    assert!(matches!(table.join_foreign_family(1, foreign, &[7, 9]), Joined::First));
    assert!(matches!(table.join_foreign_family(1, foreign, &[8]), Joined::Others));
    let net = range().family(1).unwrap();
    let clone = Record { net, family: foreign, ..ended_vm("b.7").record.clone() };
    let slots = table.take_given_slots("b", &[7, 9]).unwrap();
    let names: Vec<_> = slots.iter().map(|slot| slot.held_name.name().to_owned()).collect();
    assert_eq!(names, ["b.7", "b.9"]);
    // A name that is in use is refused, and the others are free again.
    let error = table.take_given_slots("b", &[8, 9]).unwrap_err();
    assert!(matches!(error, Error::NameTaken(_)) && table.reserve("b.8").is_ok());
    assert!(matches!(table.take_clone_slots(&clone, 1), Err(Error::NoVmid { left: 0, .. })));
    assert!(fill(&table, &clone, 2).is_empty(), "no warm VM has a vmid");
    // Those that are reserved for it, it gives; none may be below those that it knows of.
    assert_eq!(table.missing_vmids(1, foreign, 3), Some((3, 10)));
    table.add_vmids(1, foreign, 64..66);
    assert_eq!(table.missing_vmids(1, foreign, 3), Some((1, 66)));
    assert_eq!(table.missing_vmids(1, foreign, 2), None);
    let taken = table.take_clone_slots(&clone, 2).unwrap();
    assert_eq!(vmids(&taken), [64, 65]);
    assert_eq!(table.living(1, foreign), [7, 8, 9, 64, 65].into());
    table.add_vmids(1, foreign, 70..72);
    let own = |vmids: &[u32]| table.own_vmids(1, foreign, vmids.iter().copied());
    assert_eq!(own(&[6, 7, 64, 66, 71, 72]), [7, 64, 71].into(), "those that live or may be given");
    // One that lives cannot be made.
    assert!(matches!(table.join_foreign_family(1, foreign, &[10, 64]), Joined::Lives(64)));
    for vmid in [64, 65] {
        assert!(matches!(table.leave_family(1, vmid), Left::Others));
    }
    // What is written down tells a vmmd that is started again.
    let again = Table::default();
    again.join_family(1, foreign, 7, VMID_MAX + 1);
    assert_eq!(again.missing_vmids(1, foreign, 1), Some((1, 0)));
    for vmid in [7, 8] {
        assert!(matches!(table.leave_family(1, vmid), Left::Others));
    }
    assert!(matches!(table.leave_family(1, 9), Left::Nobody(_)));
    // Until its bridge is gone.
    assert!(matches!(table.join_foreign_family(1, foreign, &[8]), Joined::Taken(_)));
    table.forget_family(1);
    assert!(matches!(table.join_foreign_family(1, foreign, &[8]), Joined::First));
}

#[test]
fn a_family_that_gets_vms_on_other_hosts_gives_only_reserved_vmids_from_then_on() {
    let (table, parent) = family();
    assert_eq!(fill(&table, &parent, 2), [1, 2]);
    assert_eq!(table.missing_vmids(0, FAMILY, 9), None, "it gives its vmids itself");
    table.share_family(0, FAMILY);
    assert_eq!(table.unwritten(0, FAMILY), Some(VMID_MAX + 1));
    assert_eq!(table.missing_vmids(0, FAMILY, 4), Some((4, 3)));
    table.add_vmids(0, FAMILY, 3..7);
    table.share_family(0, FAMILY);
    assert_eq!(table.take_vmids(&parent, 3).unwrap(), [3, 4, 5]);
    // What is warm is used, too.
    assert_eq!(vmids(&table.take_clone_slots(&parent, 3).unwrap()), [1, 2, 6]);
    assert!(matches!(table.take_clone_slots(&parent, 1), Err(Error::NoVmid { left: 0, .. })));
    assert_eq!(table.missing_vmids(0, FAMILY, 1), Some((1, 7)));
}
