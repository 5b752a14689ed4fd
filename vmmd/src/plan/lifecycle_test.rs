use super::*;

fn end(kind: EndKind) -> End {
    End { kind, reason: "said".into() }
}

fn gone(left: Option<End>, exit: Exit, log_tail: &str) -> Event {
    Event::Gone { left, exit, log_tail: log_tail.into(), unix_ms: 7 }
}

fn ended(life: &Lifecycle) -> &Ended {
    match &life.phase {
        Phase::Ended(ended) => ended,
        other => panic!("not ended: {other:?}"),
    }
}

#[test]
fn a_vm_boots_gets_ready_and_powers_off() {
    let mut life = Lifecycle::running(None);
    assert!(!life.on(Event::Said(State::Booting)));
    assert!(life.on(Event::Said(State::Ready { after_us: 9 })));
    assert!(!life.on(Event::Said(State::Ended(end(EndKind::PoweredOff)))), "its process still runs");
    assert_eq!(life.phase, Phase::Ready);
    assert!(life.on(gone(None, Exit::Code(0), "")));
    assert_eq!(ended(&life), &Ended { end: end(EndKind::PoweredOff), unix_ms: 7 });
    assert_eq!(life.ready_after_us, Some(9));
}

#[test]
fn ready_is_told_once_and_booting_never_comes_back() {
    let mut life = Lifecycle::running(None);
    assert!(life.on(Event::Said(State::Ready { after_us: 9 })));
    assert!(!life.on(Event::Said(State::Ready { after_us: 10 })));
    assert!(!life.on(Event::Said(State::Booting)));
    assert_eq!((life.phase, life.ready_after_us), (Phase::Ready, Some(9)));
}

#[test]
fn the_end_comes_once() {
    let mut life = Lifecycle::running(None);
    assert!(life.on(gone(Some(end(EndKind::Panicked)), Exit::Code(1), "")));
    let before = life.clone();
    assert!(!life.on(gone(Some(end(EndKind::PoweredOff)), Exit::Code(0), "")));
    assert!(!life.on(Event::Said(State::Ready { after_us: 1 })));
    assert_eq!(life, before);
}

#[test]
fn what_the_vmm_left_in_its_file_comes_first() {
    let mut life = Lifecycle::running(None);
    life.on(Event::KillAsked { reason: "operator".into() });
    life.on(Event::Said(State::Ended(end(EndKind::Rebooted))));
    life.on(gone(Some(end(EndKind::TripleFaulted)), Exit::Code(0), ""));
    assert_eq!(ended(&life).end.kind, EndKind::TripleFaulted);
}

#[test]
fn a_vmm_that_had_to_be_killed_was_killed() {
    let mut life = Lifecycle::running(Some(1));
    life.on(Event::KillAsked { reason: "operator".into() });
    life.on(gone(None, Exit::Signal(9), "noise"));
    assert_eq!(ended(&life).end, End { kind: EndKind::Killed, reason: "operator".into() });
}

#[test]
fn a_silent_death_names_signal_and_last_lines() {
    let mut life = Lifecycle::running(None);
    life.on(gone(None, Exit::Signal(11), "thread panicked\n"));
    let end = &ended(&life).end;
    assert_eq!(end.kind, EndKind::VmmDied);
    assert_eq!(
        end.reason,
        "the vmm was killed by SIGSEGV (it used memory that it does not have); its last lines: thread panicked"
    );
}

#[test]
fn every_death_has_its_words() {
    let of = |exit: Exit| format!("the vmm {exit}");
    assert_eq!(
        of(Exit::Signal(31)),
        "the vmm was killed by SIGSYS (a system call that its jail does not allow)"
    );
    assert_eq!(of(Exit::Signal(35)), "the vmm was killed by signal 35");
    assert_eq!(of(Exit::Code(101)), "the vmm exited with code 101");
    assert!(of(Exit::Signal(9)).contains("SIGKILL") && of(Exit::Signal(9)).contains("vmmd did not"));
    assert!(of(Exit::OutOfMemory).contains("OOM killer"));
}

#[test]
fn only_vmmd_says_that_a_vmm_died() {
    let mut life = Lifecycle::running(None);
    life.on(gone(Some(end(EndKind::VmmDied)), Exit::Code(0), ""));
    assert_eq!(ended(&life).end.kind, EndKind::VmmError);
}

fn lost(kind: EndKind) -> Event {
    Event::Lost(End { kind, reason: "run 7".into() })
}

#[test]
fn whatever_follows_from_lost_memory_the_reason_is_the_loss() {
    let said = Some(end(EndKind::VmmError));
    for (left, exit) in [
        (None, Exit::ByVmmd),
        (None, Exit::Signal(libc::SIGBUS)),
        (said, Exit::Code(1)),
        (None, Exit::Unknown),
    ] {
        let mut life = Lifecycle::running(Some(1));
        assert!(!life.on(lost(EndKind::DataLoss)));
        life.on(Event::KillAsked { reason: "operator".into() });
        life.on(Event::Said(State::Ended(end(EndKind::Panicked))));
        life.on(gone(left, exit, "Bus error"));
        assert_eq!(ended(&life).end, End { kind: EndKind::DataLoss, reason: "run 7".into() }, "{exit}");
    }
}

#[test]
fn a_vmm_that_died_by_itself_was_not_ended_because_the_pager_does_not_serve_it() {
    let mut life = Lifecycle::running(Some(1));
    life.on(lost(EndKind::VmmError));
    life.on(gone(None, Exit::Signal(libc::SIGSEGV), ""));
    assert_eq!(ended(&life).end.kind, EndKind::VmmDied);
    let mut life = Lifecycle::running(Some(1));
    life.on(lost(EndKind::VmmError));
    life.on(gone(None, Exit::ByVmmd, ""));
    assert_eq!(ended(&life).end, End { kind: EndKind::VmmError, reason: "run 7".into() });
}

fn any_event() -> impl proptest::strategy::Strategy<Value = Event> {
    use proptest::prelude::*;
    let any_end = || Just(end(EndKind::Rebooted));
    prop_oneof![
        Just(Event::Said(State::Booting)),
        Just(Event::Said(State::Warm)),
        any::<u64>().prop_map(|after_us| Event::Said(State::Ready { after_us })),
        any_end().prop_map(|end| Event::Said(State::Ended(end))),
        Just(Event::KillAsked { reason: "operator".into() }),
        Just(lost(EndKind::DataLoss)),
        proptest::option::of(any_end()).prop_map(|left| gone(left, Exit::Unknown, "")),
    ]
}

proptest::proptest! {
    #[test]
    fn a_vm_only_goes_forward_and_ends_once(events in proptest::collection::vec(any_event(), 0..20)) {
        let rank = |life: &Lifecycle| match life.phase {
            Phase::Booting => 0,
            Phase::Ready => 1,
            Phase::Ended(_) => 2,
        };
        let mut life = Lifecycle::running(None);
        for event in events {
            let (before, was_gone) = (life.clone(), matches!(event, Event::Gone { .. }));
            let changed = life.on(event);
            proptest::prop_assert_eq!(changed, rank(&life) > rank(&before));
            proptest::prop_assert!(rank(&life) >= rank(&before));
            proptest::prop_assert!(rank(&life) < 2 || was_gone || life == before);
        }
    }
}

#[test]
fn a_vmm_that_others_end_is_no_sign_of_a_fault_of_its_own() {
    for exit in [Exit::Signal(9), Exit::Signal(15), Exit::OutOfMemory, Exit::ByVmmd] {
        assert!(exit.is_kill(), "{exit:?}");
    }
    for exit in [Exit::Signal(6), Exit::Signal(7), Exit::Signal(11), Exit::Code(1), Exit::Unknown] {
        assert!(!exit.is_kill(), "{exit:?}");
    }
}
