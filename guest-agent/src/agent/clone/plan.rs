//! What happens in which order when this machine is cloned, as pure logic: events in, actions out.
//!
//! ```text
//!         ┌─ a program's call            ┌─ a program asked: request `clone`
//!         │  or the host's `prepare`     │  the host asked: `prepared`
//!         ▼                              ▼
//!  idle ─▶ hook ─▶ holding ─▶ asked ───────────── resumed ─▶ finishing ─▶ idle
//!         pre-clone               └─ the link broke ─▶ lost     ▲   post-clone, the host's reply
//!                                                       │       │
//!                               of another VM: a clone ─────────┘
//!                               of the same VM: the parent ─▶ idle
//! ```
//!
//! One at a time: other calls wait in line, and so does a `prepare` that comes while one finishes;
//! any other is refused. What is held is released on every way out: a property test tries them all.

use super::action::{Action, BUSY, CANCELED, Call, Hook, Outcome, Role, TIMED_OUT};
use crate::agent::calls::link_lost;
use crate::agent::local::refuse;
use patina_abi::link::{Answer, CloneArgs};
use std::collections::VecDeque;

#[derive(Debug, Clone, PartialEq)]
enum Asker {
    /// None: it has gone, and wants no answer.
    Program(Option<u64>),
    Host,
    /// The host, on a link that is not there any more; or, in a clone, somebody who did not ask
    /// this machine.
    Nobody,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Hook,
    Holding,
    Asked,
    Lost,
    Finishing { hook_runs: bool },
}

#[derive(Debug)]
struct Current {
    asker: Asker,
    args: CloneArgs,
    hold: bool,
    /// Between [`Action::Hold`] and [`Action::Release`].
    holds: bool,
    /// The host has not come to an end in time: nothing stands still for it any more.
    overdue: bool,
    phase: Phase,
    outcome: Option<Outcome>,
}

/// The clone under way and those in line.
#[derive(Debug, Default)]
pub struct Plan {
    current: Option<Current>,
    waiting: VecDeque<Call>,
    /// The host wants the next clone, while this one is past all that could disturb it.
    prepare_waits: Option<bool>,
}

impl Plan {
    /// Whether sessions stand still: no program may be started among processes that are held, as
    /// its starter would wait with them, and whether a session's connection has ended or become a
    /// clone's is not known before the end.
    #[must_use]
    pub fn is_still(&self) -> bool {
        let still =
            |c: &Current| matches!(c.phase, Phase::Holding | Phase::Asked | Phase::Lost) && !c.overdue;
        self.current.as_ref().is_some_and(still)
    }

    /// Whether the link is down and it is not known yet whether this is a clone.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.phase() == Some(Phase::Lost)
    }

    /// Whether nothing but the link can bring news: everybody else is held, and the link is down.
    #[must_use]
    pub fn waits_for_link_only(&self) -> bool {
        self.holds() && self.is_lost()
    }

    /// Whether nobody else runs, as all stand still for the host.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.holds() && matches!(self.phase(), Some(Phase::Asked | Phase::Lost))
    }

    /// Whether the processes are to stop and have not all done so.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.phase() == Some(Phase::Holding)
    }

    /// Whether others are held, or about to be.
    fn holds(&self) -> bool {
        self.current.as_ref().is_some_and(|c| c.holds)
    }

    /// Whether a clone is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.current.is_some()
    }

    fn phase(&self) -> Option<Phase> {
        self.current.as_ref().map(|c| c.phase)
    }

    /// A program calls.
    pub fn call(&mut self, call: Call) -> Vec<Action> {
        self.waiting.push_back(call);
        self.next()
    }

    /// A program has gone: nobody wants what it called for. What has not reached the host is not
    /// asked for.
    pub fn caller_gone(&mut self, client: u64) -> Vec<Action> {
        self.waiting.retain(|call| call.client != client);
        let Some(current) = self.current.as_mut().filter(|c| c.asker == Asker::Program(Some(client))) else {
            return Vec::new();
        };
        current.asker = Asker::Program(None);
        match current.phase {
            Phase::Holding => self.end(Outcome::IsClone),
            // The machine may be frozen at this moment: all stand still until the host has said
            // what came of it.
            Phase::Asked => vec![Action::Cancel],
            // A hook is left to come to its own end: one that is killed leaves halfway done what it
            // was to do.
            Phase::Hook | Phase::Lost | Phase::Finishing { .. } => Vec::new(),
        }
    }

    /// The host asks.
    pub fn prepare(&mut self, hold: bool) -> Vec<Action> {
        if matches!(self.phase(), Some(Phase::Finishing { .. })) {
            self.prepare_waits = Some(hold);
            return Vec::new();
        }
        if self.is_busy() {
            let text = "clone: the guest has a clone of its own under way; try again when that one has ended";
            return vec![Action::Prepared(refuse(BUSY, text))];
        }
        self.start(Asker::Host, CloneArgs::default(), hold)
    }

    fn next(&mut self) -> Vec<Action> {
        if !self.is_busy()
            && let Some(hold) = self.prepare_waits.take()
        {
            return self.start(Asker::Host, CloneArgs::default(), hold);
        }
        match self.waiting.pop_front() {
            Some(call) if !self.is_busy() => {
                self.start(Asker::Program(Some(call.client)), call.args, call.hold)
            }
            Some(call) => {
                self.waiting.push_front(call);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn start(&mut self, asker: Asker, args: CloneArgs, hold: bool) -> Vec<Action> {
        let run = Action::Run(Hook::Pre, args.ticket.clone());
        self.current = Some(Current {
            asker,
            args,
            hold,
            holds: false,
            overdue: false,
            phase: Phase::Hook,
            outcome: None,
        });
        vec![run]
    }

    /// The hook has ended, or there is none; an error's text says how and holds its output.
    pub fn hook_ended(&mut self, result: Result<(), String>) -> Vec<Action> {
        let Some(current) = &mut self.current else { return Vec::new() };
        match (current.phase, result) {
            (Phase::Hook, _) if matches!(current.asker, Asker::Nobody | Asker::Program(None)) => {
                self.end(Outcome::IsClone)
            }
            (Phase::Hook, Ok(())) if current.hold => {
                current.phase = Phase::Holding;
                current.holds = true;
                vec![Action::Hold]
            }
            (Phase::Hook, Ok(())) => self.ask(),
            (Phase::Hook, Err(text)) => self.end(Outcome::Host(refuse(CANCELED, text))),
            (Phase::Finishing { .. }, result) => {
                current.phase = Phase::Finishing { hook_runs: false };
                let mut actions: Vec<Action> = result.err().map(Action::Say).into_iter().collect();
                actions.extend(self.finish());
                actions
            }
            (Phase::Holding | Phase::Asked | Phase::Lost, _) => Vec::new(),
        }
    }

    /// All other processes stand still.
    pub fn held(&mut self) -> Vec<Action> {
        if self.is_stopping() { self.ask() } else { Vec::new() }
    }

    /// The kernel has no means to hold them: the clone goes on without.
    pub fn cannot_hold(&mut self) -> Vec<Action> {
        match &mut self.current {
            Some(current) if current.phase == Phase::Holding => {
                current.holds = false;
                self.ask()
            }
            _ => Vec::new(),
        }
    }

    /// They do not all stop.
    pub fn hold_failed(&mut self, text: String) -> Vec<Action> {
        if self.is_stopping() { self.end(Outcome::Host(refuse(TIMED_OUT, text))) } else { Vec::new() }
    }

    fn ask(&mut self) -> Vec<Action> {
        let Some(current) = &mut self.current else { return Vec::new() };
        current.phase = Phase::Asked;
        vec![match current.asker {
            Asker::Program(_) => Action::Ask(current.args.clone()),
            Asker::Host | Asker::Nobody => Action::Prepared(Answer::Ok(serde_json::Value::Null)),
        }]
    }

    /// The host says: go on.
    pub fn resumed(&mut self, cloned: bool) -> Vec<Action> {
        let Some(current) = self.current.as_mut().filter(|c| c.phase == Phase::Asked) else {
            return Vec::new();
        };
        current.phase = Phase::Finishing { hook_runs: cloned };
        let ticket = current.args.ticket.clone();
        let mut actions = self.release();
        if cloned {
            actions.push(Action::Run(Hook::Post(Role::Parent), ticket));
        }
        actions.extend(self.finish());
        actions
    }

    /// The host answers the request.
    pub fn reply(&mut self, answer: Answer) -> Vec<Action> {
        let Some(current) = &mut self.current else { return Vec::new() };
        match current.phase {
            // It was refused before anything was frozen.
            Phase::Asked => self.end(Outcome::Host(answer)),
            Phase::Finishing { .. } if current.outcome.is_none() => {
                current.outcome = Some(Outcome::Host(answer));
                self.finish()
            }
            _ => Vec::new(),
        }
    }

    /// The link to the host broke.
    pub fn link_lost(&mut self) -> Vec<Action> {
        self.prepare_waits = None;
        let Some(current) = &mut self.current else { return Vec::new() };
        match (current.phase, &current.asker) {
            (Phase::Asked, _) => {
                current.phase = Phase::Lost;
                Vec::new()
            }
            // Its answer would have no link to go on.
            (Phase::Hook, Asker::Host) => {
                current.asker = Asker::Nobody;
                Vec::new()
            }
            (Phase::Holding, Asker::Host) => {
                current.asker = Asker::Nobody;
                self.end(Outcome::IsClone)
            }
            (Phase::Finishing { .. }, Asker::Program(_)) if current.outcome.is_none() => {
                current.outcome = Some(Outcome::Host(link_lost()));
                self.finish()
            }
            _ => Vec::new(),
        }
    }

    /// An identity is in place that was made for this VM, or, as `is_clone` says, for another than
    /// it was before; `ticket` is that of the clone.
    pub fn identity(&mut self, is_clone: bool, ticket: Option<String>) -> Vec<Action> {
        let post = Action::Run(Hook::Post(Role::Clone), ticket);
        match (&mut self.current, is_clone) {
            (Some(current), true) if matches!(current.phase, Phase::Asked | Phase::Lost) => {
                current.phase = Phase::Finishing { hook_runs: true };
                current.outcome = Some(Outcome::IsClone);
                let mut actions = vec![Action::Detach];
                actions.extend(self.release());
                actions.push(post);
                actions
            }
            (Some(current), false) if current.phase == Phase::Lost => self.end(Outcome::Host(link_lost())),
            // Cloned by a host that did not have it prepare.
            (None, true) => {
                let phase = Phase::Finishing { hook_runs: true };
                let (asker, args) = (Asker::Nobody, CloneArgs::default());
                self.current = Some(Current {
                    asker,
                    args,
                    hold: false,
                    holds: false,
                    overdue: false,
                    phase,
                    outcome: None,
                });
                vec![post]
            }
            _ => Vec::new(),
        }
    }

    /// The host has had its time.
    pub fn overdue(&mut self) -> Vec<Action> {
        match &mut self.current {
            Some(current) if matches!(current.phase, Phase::Asked | Phase::Lost) => current.overdue = true,
            _ => return Vec::new(),
        }
        let text = "clone: the host takes long; the guest's programs go on meanwhile";
        let mut actions = self.release();
        actions.push(Action::Say(text.to_owned()));
        actions
    }

    fn release(&mut self) -> Vec<Action> {
        match &mut self.current {
            Some(current) if current.holds => {
                current.holds = false;
                vec![Action::Release]
            }
            _ => Vec::new(),
        }
    }

    /// Ends a clone that waits for nothing any more.
    fn finish(&mut self) -> Vec<Action> {
        let Some(current) = &mut self.current else { return Vec::new() };
        let Phase::Finishing { hook_runs: false } = current.phase else { return Vec::new() };
        match (&current.asker, current.outcome.take()) {
            (Asker::Program(_), None) => Vec::new(),
            (_, Some(outcome)) => self.end(outcome),
            (Asker::Host | Asker::Nobody, None) => self.end(Outcome::IsClone),
        }
    }

    fn end(&mut self, outcome: Outcome) -> Vec<Action> {
        let mut actions = self.release();
        let Some(current) = self.current.take() else { return actions };
        match (current.asker, outcome) {
            (Asker::Program(client), outcome) => {
                actions.extend(client.map(|client| Action::Answer(client, outcome)));
            }
            (Asker::Host, Outcome::Host(answer)) if matches!(current.phase, Phase::Hook | Phase::Holding) => {
                actions.push(Action::Prepared(answer));
            }
            (Asker::Host | Asker::Nobody, _) => {}
        }
        actions.extend(self.next());
        actions
    }
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
