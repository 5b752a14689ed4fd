use super::*;
use proptest::prelude::*;

fn call(client: u64) -> Call {
    let args = CloneArgs { count: Some(2), ticket: None };
    Call { client, args, hold: true }
}

fn ok() -> Answer {
    Answer::Ok(serde_json::Value::Null)
}

fn run(hook: Hook) -> Action {
    Action::Run(hook, None)
}

/// A plan whose program has asked, with everybody held.
fn asked() -> Plan {
    let mut plan = Plan::default();
    assert_eq!(plan.call(call(1)), [run(Hook::Pre)]);
    assert_eq!(plan.hook_ended(Ok(())), [Action::Hold]);
    assert!(plan.is_stopping() && plan.is_still());
    assert_eq!(plan.held(), [Action::Ask(call(1).args)]);
    plan
}

fn answer(client: u64, outcome: &Outcome) -> Action {
    Action::Answer(client, outcome.clone())
}

#[test]
fn a_parent_goes_on_at_once_and_answers_when_hook_and_host_are_done() {
    let replied = Outcome::Host(ok());
    let mut plan = asked();
    assert_eq!(plan.resumed(true), [Action::Release, run(Hook::Post(Role::Parent))]);
    assert_eq!(plan.reply(ok()), []);
    assert_eq!(plan.hook_ended(Ok(())), [answer(1, &replied)]);
    assert!(!plan.is_busy());
    let mut plan = asked();
    plan.resumed(true);
    let failure = Action::Say("post-clone: exit code 1".into());
    assert_eq!(plan.hook_ended(Err("post-clone: exit code 1".into())), [failure]);
    assert_eq!(plan.reply(ok()), [answer(1, &replied)]);
}

#[test]
fn a_clone_detaches_goes_on_runs_its_hook_and_answers() {
    let mut plan = asked();
    assert_eq!(plan.link_lost(), []);
    assert!(plan.waits_for_link_only() && plan.is_still());
    let post = Action::Run(Hook::Post(Role::Clone), Some("t".into()));
    assert_eq!(plan.identity(true, Some("t".into())), [Action::Detach, Action::Release, post]);
    assert!(!plan.is_still());
    assert_eq!(plan.hook_ended(Ok(())), [answer(1, &Outcome::IsClone)]);
}

#[test]
fn a_parent_that_only_lost_its_link_says_so() {
    let mut plan = asked();
    plan.link_lost();
    assert_eq!(plan.identity(false, None), [Action::Release, answer(1, &Outcome::Host(link_lost()))]);
    // With the reply outstanding.
    let mut plan = asked();
    plan.resumed(true);
    assert_eq!(plan.link_lost(), []);
    assert_eq!(plan.identity(false, None), []);
    assert_eq!(plan.hook_ended(Ok(())), [answer(1, &Outcome::Host(link_lost()))]);
}

#[test]
fn a_host_that_refuses_is_passed_on() {
    let refusal = refuse(16, "no");
    let told = answer(1, &Outcome::Host(refusal.clone()));
    assert_eq!(asked().reply(refusal.clone()), [Action::Release, told.clone()]);
    let mut plan = asked();
    assert_eq!(plan.resumed(false), [Action::Release]);
    assert_eq!(plan.reply(refusal), [told]);
}

#[test]
fn what_fails_before_the_freeze_ends_the_clone_with_nothing_held() {
    let mut plan = Plan::default();
    plan.call(call(1));
    let failed = Outcome::Host(refuse(CANCELED, "pre-clone: exit code 1: no"));
    assert_eq!(plan.hook_ended(Err("pre-clone: exit code 1: no".into())), [answer(1, &failed)]);
    plan.call(call(1));
    plan.hook_ended(Ok(()));
    let failed = Outcome::Host(refuse(TIMED_OUT, "they run"));
    assert_eq!(plan.hold_failed("they run".into()), [Action::Release, answer(1, &failed)]);
    plan.prepare(true);
    let failed = refuse(CANCELED, "pre-clone: exit code 1");
    assert_eq!(plan.hook_ended(Err("pre-clone: exit code 1".into())), [Action::Prepared(failed)]);
    assert!(!plan.is_busy());
}

#[test]
fn a_kernel_that_cannot_hold_clones_without() {
    let mut plan = Plan::default();
    plan.call(call(1));
    plan.hook_ended(Ok(()));
    assert_eq!(plan.cannot_hold(), [Action::Ask(call(1).args)]);
    assert_eq!(plan.resumed(true), [run(Hook::Post(Role::Parent))]);
}

#[test]
fn others_wait_in_line_and_the_host_is_refused() {
    let mut plan = asked();
    assert_eq!(plan.call(call(2)), []);
    assert_eq!(plan.call(Call { hold: false, ..call(3) }), []);
    assert!(
        matches!(&plan.prepare(true)[..], [Action::Prepared(Answer::Error(e))] if e.code == BUSY),
        "one at a time"
    );
    let actions = plan.reply(ok());
    assert_eq!(actions, [Action::Release, answer(1, &Outcome::Host(ok())), run(Hook::Pre)]);
    let actions = plan.hook_ended(Err("no".into()));
    let failed = Outcome::Host(refuse(CANCELED, "no"));
    assert_eq!(actions, [answer(2, &failed), run(Hook::Pre)]);
    assert_eq!(plan.hook_ended(Ok(())), [Action::Ask(call(3).args)]);
}

#[test]
fn a_call_whose_program_has_gone_is_not_made() {
    // In line.
    let mut plan = asked();
    assert_eq!(plan.call(call(2)), []);
    assert_eq!(plan.caller_gone(2), []);
    assert_eq!(plan.reply(ok()), [Action::Release, answer(1, &Outcome::Host(ok()))]);
    assert!(!plan.is_busy());
    // While its hook runs: others wait for the end of that.
    plan.call(call(1));
    plan.call(call(2));
    assert_eq!(plan.caller_gone(1), []);
    assert_eq!(plan.hook_ended(Ok(())), [run(Hook::Pre)]);
    // While the processes are stopped.
    assert_eq!(plan.hook_ended(Ok(())), [Action::Hold]);
    assert_eq!(plan.caller_gone(2), [Action::Release]);
    assert!(!plan.is_busy());
}

#[test]
fn a_call_that_is_with_the_host_is_taken_back_there_and_all_stand_still_until_it_answers() {
    let mut plan = asked();
    assert_eq!(plan.caller_gone(1), [Action::Cancel]);
    assert!(plan.is_still());
    assert_eq!(plan.caller_gone(1), []);
    plan.call(call(2));
    assert_eq!(plan.reply(refuse(CANCELED, "nobody wants it")), [Action::Release, run(Hook::Pre)]);
    // It was too late.
    let mut plan = asked();
    assert_eq!(plan.caller_gone(1), [Action::Cancel]);
    assert_eq!(plan.resumed(true), [Action::Release, run(Hook::Post(Role::Parent))]);
    assert_eq!(plan.hook_ended(Ok(())), []);
    assert!(plan.is_busy(), "the next call's reply would be taken for this one's");
    assert_eq!(plan.reply(ok()), []);
    assert!(!plan.is_busy());
    // In the clone as well.
    let mut plan = asked();
    plan.caller_gone(1);
    plan.link_lost();
    let actions = plan.identity(true, None);
    assert_eq!(actions, [Action::Detach, Action::Release, run(Hook::Post(Role::Clone))]);
    assert_eq!(plan.hook_ended(Ok(())), []);
    assert!(!plan.is_busy());
}

#[test]
fn a_clone_has_the_calls_that_waited_too() {
    let mut plan = asked();
    plan.call(call(2));
    plan.link_lost();
    plan.identity(true, None);
    assert_eq!(plan.hook_ended(Ok(())), [answer(1, &Outcome::IsClone), run(Hook::Pre)]);
}

#[test]
fn the_host_asks_and_says_whether_it_cloned() {
    for cloned in [true, false] {
        let mut plan = Plan::default();
        assert_eq!(plan.prepare(true), [run(Hook::Pre)]);
        plan.hook_ended(Ok(()));
        assert_eq!(plan.held(), [Action::Prepared(ok())]);
        let mut actions = plan.resumed(cloned);
        if cloned {
            assert_eq!(actions.pop(), Some(run(Hook::Post(Role::Parent))));
            assert!(plan.is_busy());
            assert_eq!(plan.hook_ended(Ok(())), []);
        }
        assert_eq!(actions, [Action::Release]);
        assert!(!plan.is_busy());
    }
}

#[test]
fn a_host_whose_link_breaks_is_not_prepared_for() {
    let mut plan = Plan::default();
    plan.prepare(true);
    assert_eq!(plan.link_lost(), []);
    assert_eq!(plan.hook_ended(Ok(())), []);
    assert!(!plan.is_busy());
    plan.prepare(true);
    plan.hook_ended(Ok(()));
    assert_eq!(plan.link_lost(), [Action::Release]);
    assert!(!plan.is_busy());
}

#[test]
fn a_host_that_takes_long_does_not_keep_programs_waiting() {
    let mut plan = asked();
    let actions = plan.overdue();
    assert!(matches!(&actions[..], [Action::Release, Action::Say(_)]), "{actions:?}");
    assert!(!plan.is_still());
    assert_eq!(plan.resumed(true), [run(Hook::Post(Role::Parent))]);
}

#[test]
fn a_clone_that_nobody_prepared_for_runs_its_hook() {
    let mut plan = Plan::default();
    assert_eq!(plan.identity(false, None), []);
    assert_eq!(plan.identity(true, None), [run(Hook::Post(Role::Clone))]);
    assert_eq!(plan.hook_ended(Ok(())), []);
    assert!(!plan.is_busy());
}

#[derive(Debug, Clone)]
enum Event {
    Call(u64),
    Gone(u64),
    Prepare,
    HookEnded(bool),
    Held,
    CannotHold,
    HoldFailed,
    Resumed(bool),
    Reply,
    LinkLost,
    Identity(bool),
    Overdue,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1..5_u64).prop_map(Event::Call),
        (1..5_u64).prop_map(Event::Gone),
        Just(Event::Prepare),
        any::<bool>().prop_map(Event::HookEnded),
        Just(Event::HookEnded(true)),
        Just(Event::Held),
        Just(Event::CannotHold),
        Just(Event::HoldFailed),
        any::<bool>().prop_map(Event::Resumed),
        Just(Event::Reply),
        Just(Event::LinkLost),
        any::<bool>().prop_map(Event::Identity),
        Just(Event::Overdue),
    ]
}

fn apply(plan: &mut Plan, event: &Event, hook_runs: bool) -> Vec<Action> {
    match event {
        Event::Call(client) => plan.call(call(*client)),
        Event::Gone(client) => plan.caller_gone(*client),
        Event::Prepare => plan.prepare(true),
        // The agent tells of a hook's end only when one runs.
        Event::HookEnded(_) if !hook_runs => Vec::new(),
        Event::HookEnded(good) => plan.hook_ended(if *good { Ok(()) } else { Err("bad".into()) }),
        Event::Held => plan.held(),
        Event::CannotHold => plan.cannot_hold(),
        Event::HoldFailed => plan.hold_failed("no".into()),
        Event::Resumed(cloned) => plan.resumed(*cloned),
        Event::Reply => plan.reply(ok()),
        Event::LinkLost => plan.link_lost(),
        Event::Identity(is_clone) => plan.identity(*is_clone, None),
        Event::Overdue => plan.overdue(),
    }
}

proptest! {
    #[test]
    fn whatever_comes_nothing_stays_held_and_everybody_is_answered_once(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let (mut plan, mut held, mut hook_runs) = (Plan::default(), false, false);
        // Programs that wait for an answer.
        let mut open = Vec::new();
        // At the end the host answers, links come back, hooks end: as often as anybody can wait.
        let ending = [Event::HookEnded(true), Event::Held, Event::LinkLost, Event::Identity(false), Event::Reply];
        let endings = std::iter::repeat_n(ending, 3 * events.len() + 3).flatten();
        for event in events.into_iter().chain(endings) {
            match event {
                Event::Call(client) => open.push(client),
                Event::Gone(client) => open.retain(|other| *other != client),
                _ => {}
            }
            if matches!(event, Event::HookEnded(_)) && hook_runs {
                let actions = apply(&mut plan, &event, true);
                hook_runs = false;
                check(&actions, &mut held, &mut hook_runs, &mut open)?;
            } else {
                if matches!(event, Event::CannotHold) && plan.is_stopping() {
                    held = false;
                }
                let actions = apply(&mut plan, &event, false);
                check(&actions, &mut held, &mut hook_runs, &mut open)?;
            }
            prop_assert_eq!(held, plan.holds());
            prop_assert!(plan.is_busy() || !held, "held for nobody");
            prop_assert!(!(held && hook_runs), "a hook would be started among the held");
            prop_assert!(!held || plan.is_still(), "a session's program would be started among the held");
        }
        prop_assert!(!plan.is_busy() && !held);
        prop_assert!(open.is_empty(), "{open:?} wait for ever");
    }
}

/// Does to the model what the agent would do to the machine.
fn check(
    actions: &[Action],
    held: &mut bool,
    hook_runs: &mut bool,
    open: &mut Vec<u64>,
) -> Result<(), TestCaseError> {
    for action in actions {
        match action {
            Action::Hold => {
                prop_assert!(!*held, "held twice");
                *held = true;
            }
            Action::Release => {
                prop_assert!(*held, "released twice");
                *held = false;
            }
            Action::Run(..) => {
                prop_assert!(!*hook_runs && !*held);
                *hook_runs = true;
            }
            Action::Answer(client, _) => {
                prop_assert!(!*held, "answered while it is held");
                let Some(at) = open.iter().position(|other| other == client) else {
                    return Err(TestCaseError::fail(format!("{client} does not wait")));
                };
                open.swap_remove(at);
            }
            Action::Ask(_) | Action::Cancel | Action::Prepared(_) | Action::Detach | Action::Say(_) => {}
        }
    }
    Ok(())
}

#[test]
fn the_host_need_not_wait_for_the_end_of_a_hook_to_ask_again() {
    let mut plan = Plan::default();
    plan.prepare(false);
    plan.hook_ended(Ok(()));
    assert_eq!(plan.resumed(true), [run(Hook::Post(Role::Parent))]);
    assert_eq!(plan.prepare(false), []);
    assert_eq!(plan.hook_ended(Ok(())), [run(Hook::Pre)]);
    assert_eq!(plan.hook_ended(Ok(())), [Action::Prepared(Answer::Ok(serde_json::Value::Null))]);
}
