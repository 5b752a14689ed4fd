use super::*;
use crate::vms::tests::ended_vm;

#[test]
fn of_two_who_want_a_name_one_gets_it() {
    let table = Table::default();
    let first = table.reserve("a").unwrap();
    assert!(matches!(table.reserve("a"), Err(Error::NameTaken(name)) if name == "a"));
    assert!(matches!(table.find("a"), Err(Error::NotFound(_))), "not to be seen while it is made");
    drop(first);
    table.reserve("a").unwrap().fill(ended_vm("a"));
    assert!(table.find("a").is_ok());
}

#[test]
fn a_host_keeps_so_many_and_no_more() {
    let table = Table::default();
    let held: Vec<_> = (0..VMS_MAX).map(|i| table.reserve(&format!("vm{i}")).unwrap()).collect();
    assert!(matches!(table.reserve("one-more"), Err(Error::TooMany)));
    drop(held);
    assert!(table.reserve("one-more").is_ok());
}

#[test]
fn a_name_is_found_when_the_first_draw_is_taken() {
    let table = Table::default();
    let mut draws = [7, 7, 8].into_iter();
    let first = table.reserve_any(|| draws.next().unwrap()).unwrap();
    let second = table.reserve_any(|| draws.next().unwrap()).unwrap();
    assert_ne!(first.name(), second.name());
}

#[test]
fn pages_go_by_name_and_tell_whether_there_is_more() {
    let table = Table::default();
    for name in ["c", "a", "b"] {
        table.reserve(name).unwrap().fill(ended_vm(name));
    }
    let names = |page: &[Arc<Vm>]| page.iter().map(|vm| vm.record.name.clone()).collect::<Vec<_>>();
    let (page, more) = table.page("", 2);
    assert_eq!((names(&page), more), (vec!["a".into(), "b".into()], true));
    let (page, more) = table.page("b", 2);
    assert_eq!((names(&page), more), (vec!["c".into()], false));
}

#[test]
fn a_removed_name_is_held_until_its_files_are_gone() {
    let table = Table::default();
    table.reserve("a").unwrap().fill(ended_vm("a"));
    let (_vm, held) = table.take_ended("a").unwrap();
    assert!(matches!(table.reserve("a"), Err(Error::NameTaken(_))));
    assert!(matches!(table.take_ended("a"), Err(Error::NotFound(_))));
    drop(held);
    assert!(table.reserve("a").is_ok());
}

#[test]
fn a_familys_number_is_free_when_its_last_vm_and_its_bridge_are_gone() {
    let table = Table::default();
    let range: Range = "10.0.0.0/19".parse().unwrap();
    assert_eq!(table.number_family(&range, 0).unwrap().index, 0);
    table.join_family(0, 0);
    assert!(!table.leave_family(0));
    assert!(table.leave_family(0));
    assert_eq!(table.number_family(&range, 0).unwrap().index, 1);
    assert_eq!(table.number_family(&range, 0), None);
    table.forget_family(0);
    assert_eq!(table.number_family(&range, 0).unwrap().index, 0);
}

#[test]
fn vmids_go_in_order_and_are_given_once() {
    let table = Table::default();
    let range: Range = "10.0.0.0/19".parse().unwrap();
    let parent = ended_vm("a").record.clone();
    let parent = Record { net: table.number_family(&range, 0).unwrap(), ..parent };
    assert_eq!(table.take_vmids(&parent, 2).unwrap(), 1..3);
    for _ in 0..2 {
        assert!(!table.leave_family(0));
    }
    assert_eq!(table.take_vmids(&parent, 1).unwrap(), 3..4);
    // A vmmd that starts finds another VM of the family, and what was written.
    table.join_family(0, 4000);
    table.join_family(0, 7);
    table.check_room(&parent, 93).unwrap();
    assert_eq!(table.take_vmids(&parent, 92).unwrap(), 4000..4092);
    let error = table.take_vmids(&parent, 2).unwrap_err();
    assert!(matches!(error, Error::NoVmid { count: 2, left: 1, .. }), "{error}");
    assert_eq!(table.take_vmids(&parent, 1).unwrap(), 4092..4093);
}

#[test]
fn nothing_joins_a_family_whose_bridge_is_being_deleted() {
    let table = Table::default();
    let range: Range = "10.0.0.0/19".parse().unwrap();
    let parent = ended_vm("a").record.clone();
    let parent = Record { net: table.number_family(&range, 0).unwrap(), ..parent };
    assert!(table.leave_family(0));
    assert!(matches!(table.take_vmids(&parent, 1), Err(Error::NotReady { state: "ended", .. })));
    table.forget_family(0);
    assert!(matches!(table.check_room(&parent, 1), Err(Error::NotReady { .. })));
}

#[test]
fn clones_that_the_host_has_no_room_for_are_refused_before_the_freeze() {
    let table = Table::default();
    let range: Range = "10.0.0.0/19".parse().unwrap();
    let parent = ended_vm("a").record.clone();
    let parent = Record { net: table.number_family(&range, 0).unwrap(), ..parent };
    let held: Vec<_> = (0..VMS_MAX - 3).map(|i| table.reserve(&format!("vm{i}")).unwrap()).collect();
    table.check_room(&parent, 3).unwrap();
    assert!(matches!(table.check_room(&parent, 4), Err(Error::TooMany)));
    drop(held);
}
