use super::*;
use crate::vms::vm::tests::ended_vm;

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
    let name = |entry: &Entry| match entry {
        Entry::Vm(vm) => vm.record.name.clone(),
        Entry::Adopting(name) | Entry::Broken(name, _) => name.clone(),
    };
    let names = |page: &[Entry]| page.iter().map(name).collect::<Vec<_>>();
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
