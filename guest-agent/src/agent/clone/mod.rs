//! Cloning of this machine: runs the hooks, holds the other processes, calls the host, and becomes
//! a clone.
//!
//! - [`plan`]: the order of events, as pure logic. [`action`]: the actions and their messages.
//! - [`hook`]: a running hook. [`kin`]: which processes belong to it.
//! - this file: carries out the actions.
//!
//! A clone makes few system calls before it is ready. As many as possible are made before the clone
//! or after it is ready: README.md lists them.

pub mod action;
pub mod hook;
pub mod kin;
pub mod plan;

use super::Agent;
use super::calls::{self, CLONE_CLIENT};
use super::local::{INVALID, refuse};
use crate::machine::Machine;
use action::{Action, Call, DEADLOCK, Hook, Outcome, Role};
use patina_abi::link::{Answer, CloneArgs, Cloned, FromAgent};
use patina_abi::local::{CloneCall, CloneResult, Request};
use patina_daemon::chain;
use plan::Plan;
use rustix::event::PollFlags;
use rustix::process::Pid;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// EPROTO as a code of an answer.
const PROTOCOL: i32 = libc::EPROTO;
/// Longest ticket that is passed on, bytes: a UUID has 36.
const TICKET_MAX_BYTES: usize = 64;

/// A clone in the making.
#[derive(Debug, Default)]
pub struct Cloning {
    pub(super) plan: Plan,
    /// What is still to be done.
    actions: VecDeque<Action>,
    hook: Option<hook::Running>,
    /// When the processes must all stand still, or the host has taken too long.
    until: Option<Instant>,
    told_of_no_hold: bool,
}

/// Whose readiness poll reported.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// Processes that were to stop.
    Stopping,
    /// The hook.
    Hook(hook::Part),
}

impl Cloning {
    /// Notes what is to be done.
    pub fn then(&mut self, actions: Vec<Action>) {
        self.actions.extend(actions);
    }

    /// When something is to be done if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let hook = self.hook.as_ref().and_then(hook::Running::until);
        let plan = self.until.filter(|_| self.plan.is_still());
        [hook, plan].into_iter().flatten().min()
    }

    /// What to wait for.
    pub fn watch<'a>(
        &'a self,
        stopping: Option<BorrowedFd<'a>>,
        mut add: impl FnMut(Part, BorrowedFd<'a>, PollFlags),
    ) {
        if let Some(fd) = stopping.filter(|_| self.plan.is_stopping()) {
            add(Part::Stopping, fd, PollFlags::PRI);
        }
        if let Some(hook) = &self.hook {
            hook.watch(|part, fd, flags| add(Part::Hook(part), fd, flags));
        }
    }
}

/// Reads the arguments of a program's call.
fn parse(client: u64, args: serde_json::Value) -> Result<Call, Answer> {
    let invalid = |text: String| refuse(INVALID, format!("clone: {text}"));
    let CloneCall { count, ticket, hold } =
        serde_json::from_value(args).map_err(|e| invalid(e.to_string()))?;
    match (count, &ticket) {
        (Some(1..), None) => {}
        (None, Some(ticket)) if (1..=TICKET_MAX_BYTES).contains(&ticket.len()) && !ticket.contains('\0') => {}
        (Some(0), None) => return Err(invalid("at least one clone".to_owned())),
        (None, Some(_)) => return Err(invalid("the ticket is not one".to_owned())),
        _ => return Err(invalid("either a count or a ticket is wanted".to_owned())),
    }
    Ok(Call { client, args: CloneArgs { count, ticket }, hold })
}

impl<M: Machine> Agent<M> {
    /// Takes a program's call; `caller` is its process, if that is known.
    pub(super) fn call_clone(
        &mut self,
        client: u64,
        caller: Option<Pid>,
        args: serde_json::Value,
    ) -> Result<(), Answer> {
        if self.identity.is_none() {
            return Err(calls::no_identity("clone"));
        }
        if !self.link.is_up() {
            return Err(calls::link_down("clone"));
        }
        let call = parse(client, args)?;
        // It would wait for the end of the clone, and that for the end of the hook.
        if let Some(hook) = self.cloning.hook.as_ref().filter(|hook| caller.is_some_and(|pid| hook.has(pid)))
        {
            let name = hook.name();
            return Err(refuse(
                DEADLOCK,
                format!(
                    "clone: the call comes from the {name} hook, and the clone that this hook is for waits for its end; clone \
                     from a program that the hook does not start"
                ),
            ));
        }
        let actions = self.cloning.plan.call(call);
        self.cloning.then(actions);
        Ok(())
    }

    /// Drops what a program that has gone has called for.
    pub(super) fn abandon_clone(&mut self, client: u64) {
        let actions = self.cloning.plan.caller_gone(client);
        self.cloning.then(actions);
    }

    /// Goes on with a part that is ready.
    pub(super) fn drive_clone(&mut self, part: Part) {
        match part {
            Part::Stopping => self.check_whether_held(),
            Part::Hook(part) => {
                let Some(ended) = self.cloning.hook.as_mut().and_then(|hook| hook.ready(part)) else {
                    return;
                };
                if let Some(hook) = self.cloning.hook.take() {
                    self.sessions.drain(hook.into_outputs());
                }
                let actions = self.cloning.plan.hook_ended(ended.map_err(|error| chain(&error)));
                self.cloning.then(actions);
            }
        }
    }

    /// Does what was to be done by now.
    pub(super) fn keep_time(&mut self) {
        let now = Instant::now();
        if let Some(hook) = self.cloning.hook.as_mut().filter(|h| h.until().is_some_and(|at| at <= now)) {
            hook.expire();
        }
        if self.cloning.until.is_none_or(|at| at > now) {
            return;
        }
        self.cloning.until = None;
        let actions = if self.cloning.plan.is_stopping() {
            let limit = self.settings.hold_limit;
            self.cloning.plan.hold_failed(format!(
                "clone: hold the guest's processes: they have not all stopped within {limit:?}, as one waits in the kernel for \
                 something; try again, or do without holding them"
            ))
        } else {
            self.cloning.plan.overdue()
        };
        self.cloning.then(actions);
    }

    /// Does what there is to do.
    pub(super) fn carry_out(&mut self) {
        while let Some(action) = self.cloning.actions.pop_front() {
            match action {
                Action::Run(hook, ticket) => self.run_hook(hook, ticket),
                Action::Hold => self.hold(),
                Action::Release => self.release(),
                Action::Ask(args) => self.ask(args),
                Action::Cancel => self.take_back(),
                Action::Prepared(answer) => self.tell_prepared(answer),
                Action::Detach => self.sessions.detach(),
                Action::Answer(client, outcome) => {
                    let answer = self.answer_for(outcome);
                    self.answer_client(client, &answer);
                }
                Action::Say(text) => self.machine.say(&text),
            }
        }
    }

    fn run_hook(&mut self, which: Hook, ticket: Option<String>) {
        let (path, role) = match which {
            Hook::Pre => (&self.settings.pre_clone, "parent"),
            Hook::Post(Role::Parent) => (&self.settings.post_clone, "parent"),
            Hook::Post(Role::Clone) => (&self.settings.post_clone, "clone"),
        };
        // Before anything is prepared for a hook: most clones have none.
        if !hook::Running::can_start(path) {
            let actions = self.cloning.plan.hook_ended(Ok(()));
            return self.cloning.then(actions);
        }
        let mut env = vec![format!("GC_ROLE={role}")];
        if let Some(identity) = &self.identity {
            env.extend([format!("GC_VMID={}", identity.vmid), format!("GC_IP={}", identity.ip)]);
        }
        env.extend(ticket.map(|ticket| format!("GC_TICKET={ticket}")));
        let limit = self.settings.hook_limit;
        let own = self.machine.hook_cgroup();
        let started = match own {
            Some(_) => hook::Running::start(path, env, limit, own, true),
            None => hook::Running::start(path, env, limit, self.machine.cgroup(), false),
        };
        match started {
            Ok(running) => self.cloning.hook = Some(running),
            Err(error) => {
                let actions = self.cloning.plan.hook_ended(Err(chain(&error)));
                self.cloning.then(actions);
            }
        }
    }

    fn hold(&mut self) {
        match self.machine.hold() {
            Ok(()) => {
                self.cloning.until = Some(Instant::now() + self.settings.hold_limit);
                self.check_whether_held();
            }
            Err(error) => {
                if !std::mem::replace(&mut self.cloning.told_of_no_hold, true) {
                    let why = match error.kind() {
                        ErrorKind::Unsupported => "the kernel has no cgroup2".to_owned(),
                        _ => error.to_string(),
                    };
                    self.machine.say(&format!("clone: programs are not held: {why}"));
                }
                let actions = self.cloning.plan.cannot_hold();
                self.cloning.then(actions);
            }
        }
    }

    fn check_whether_held(&mut self) {
        let actions = match self.machine.all_held() {
            Ok(false) => return,
            Ok(true) => self.cloning.plan.held(),
            Err(error) => {
                self.cloning.plan.hold_failed(format!("clone: hold the guest's processes: {error}"))
            }
        };
        self.cloning.then(actions);
    }

    /// Lets all processes go on.
    pub(super) fn release(&mut self) {
        if let Err(error) = self.machine.release() {
            self.machine.say(&format!("clone: let the guest's programs go on: {error}"));
        }
    }

    fn ask(&mut self, args: CloneArgs) {
        self.expect_freeze();
        let asked = serde_json::to_value(args)
            .map_err(|e| refuse(INVALID, format!("clone: {e}")))
            .and_then(|args| self.forward(CLONE_CLIENT, Request { verb: "clone".to_owned(), args }));
        if let Err(refusal) = asked {
            let actions = self.cloning.plan.reply(refusal);
            self.cloning.then(actions);
        }
    }

    fn take_back(&mut self) {
        let told = match self.calls.take_back(CLONE_CLIENT) {
            Ok(Some(line)) => self.link.send_line(&line),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = told {
            self.link_lost(&error);
        }
    }

    fn tell_prepared(&mut self, result: Answer) {
        if matches!(result, Answer::Ok(_)) {
            self.expect_freeze();
        }
        if let Err(error) = self.link.send(&FromAgent::Prepared { result }) {
            self.link_lost(&error);
        }
    }

    /// The machine may be frozen from here on: what a clone will need is made now.
    fn expect_freeze(&mut self) {
        self.cloning.until = Some(Instant::now() + self.settings.host_limit);
        self.machine.prepare_to_connect();
    }

    fn answer_for(&self, outcome: Outcome) -> Answer {
        let result = match outcome {
            Outcome::Host(Answer::Error(error)) => return Answer::Error(error),
            Outcome::Host(Answer::Ok(value)) => match serde_json::from_value(value) {
                Ok(Cloned { vmids: clones, failed }) => CloneResult { vmid: 0, clones, failed },
                Err(e) => {
                    return refuse(PROTOCOL, format!("clone: the host's answer is not understood: {e}"));
                }
            },
            Outcome::IsClone => {
                CloneResult { vmid: self.identity.as_ref().map_or(0, |i| i.vmid), ..CloneResult::default() }
            }
        };
        match serde_json::to_value(result) {
            Ok(value) => Answer::Ok(value),
            Err(e) => refuse(PROTOCOL, format!("clone: {e}")),
        }
    }
}
