//! The clients whose requests the VM's thread carries out, and the answers to them.

use super::Server;
use crate::control::opening::{answer, deliver};
use crate::control::orders::{Order, Orders};
use crate::control::vm::{Connections, Failure, Reply};
use patina_abi::link::{FromHost, Identity};
use patina_control::end::End;
use patina_control::messages::{Opened, State};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Most requests that wait for the VM's thread.
const WAITING_MAX: usize = 16;
/// How long the agent counts as prepared. It releases the programs that it holds after 30 s, and a
/// clone whose programs run before it has its identity would take itself for its parent. The rest
/// is for lines that are late, in the guest and here.
const PREPARED_FOR: Duration = Duration::from_secs(20);
/// What a client hears whose request would be one too many.
const TOO_MANY: &str = "too many requests wait for the VM; try again when one of them has been answered";

/// A client that waits for an answer.
pub(super) struct Waiting {
    pub(super) stream: UnixStream,
    pub(super) purpose: Purpose,
}

/// What a client has requested.
pub(super) enum Purpose {
    /// A freeze in which the agent has no part.
    Freeze,
    /// A freeze for which the agent has prepared, on this link.
    AgentsFreeze { link: u64 },
    /// The start of a warm VM.
    Start { ticket: String, identity: Option<Identity>, started: Instant },
    /// The prefault list.
    PrefaultList,
    /// The free pages.
    FreePages,
}

impl<D: Connections> Server<D> {
    /// Passes an order on for a client that waits.
    pub(super) fn order(&mut self, order: Order, waiting: Waiting, orders: &Orders) {
        let is_agents = matches!(waiting.purpose, Purpose::AgentsFreeze { .. });
        // The agent waits for the end of its freeze, so that one is never refused here.
        if self.waiting.len() >= WAITING_MAX && !is_agents {
            answer(&waiting.stream, &Opened::Error(TOO_MANY.into()));
        } else if orders.send(order) {
            self.waiting.push_back(waiting);
        }
    }

    /// Freezes the VM, then tells the agent to continue. `prepared` is the time since when the
    /// agent has been prepared: the pause comes within [`PREPARED_FOR`] of that, or not at all.
    pub(super) fn freeze(
        &mut self,
        stream: UnixStream,
        (is_held, prepared): (bool, Option<Instant>),
        orders: &Orders,
    ) {
        let purpose = Purpose::AgentsFreeze { link: self.links };
        let until = prepared.map(|prepared| prepared + PREPARED_FOR);
        self.order(Order::Freeze { is_held, until }, Waiting { stream, purpose }, orders);
    }

    /// Whether the agent has prepared for a freeze that has not ended yet.
    pub(super) fn is_agent_held(&self) -> bool {
        self.waiting.iter().any(|waiting| matches!(waiting.purpose, Purpose::AgentsFreeze { .. }))
    }

    /// Whether the VM's thread starts the VM, or is about to.
    pub(super) fn is_starting(&self) -> bool {
        self.waiting.iter().any(|waiting| matches!(waiting.purpose, Purpose::Start { .. }))
    }

    /// Keeps a freeze until the agent can be asked to prepare for it.
    pub(super) fn postpone(&mut self, hold: bool, stream: UnixStream) {
        if self.postponed.len() < WAITING_MAX {
            self.postponed.push_back((stream, hold));
        } else {
            answer(&stream, &Opened::Error(TOO_MANY.into()));
        }
    }

    /// Gives the VM another pager.
    pub(super) fn attach(&self, descriptors: Vec<OwnedFd>, stream: UnixStream) {
        match descriptors.into_iter().next() {
            Some(pager) => self.connections.attach(pager, stream),
            None => {
                let reason = "attach a pager: the request has no descriptor";
                answer(&stream, &Opened::Error(reason.into()));
            }
        }
    }

    /// The oldest order that is answered was carried out.
    pub(super) fn done(&mut self, outcome: Result<Reply, Failure>, orders: &Orders) -> Option<End> {
        let Waiting { stream, purpose } = self.waiting.pop_front()?;
        let outcome = self.with_agent(outcome);
        let is_done = outcome.is_ok();
        let is_delivered = match deliver(&stream, outcome) {
            Ok(is_delivered) => is_delivered,
            Err(end) => return Some(end),
        };
        match purpose {
            // A new link has an agent that has not prepared, or the clone's.
            Purpose::AgentsFreeze { link } => {
                if link == self.links {
                    self.say_to_agent(&FromHost::Resumed { cloned: is_delivered });
                }
                return self.prepare_postponed(orders);
            }
            Purpose::Start { ticket, identity, started } if is_done => {
                orders.send(Order::Started);
                self.session.started(ticket, identity);
                (self.started, self.state) = (started, State::Booting);
                self.tell_state();
                if let Some((stream, origin)) = self.early_link.take() {
                    return self.open_link(stream, origin, orders);
                }
            }
            Purpose::Freeze | Purpose::Start { .. } | Purpose::PrefaultList | Purpose::FreePages => {}
        }
        None
    }

    /// Adds to the outcome of a freeze what the session knows of the agent.
    fn with_agent(&self, outcome: Result<Reply, Failure>) -> Result<Reply, Failure> {
        outcome.map(|mut reply| {
            if let Opened::Frozen(frozen) = &mut reply.opened {
                frozen.agent_abi = self.session.agent_abi();
            }
            reply
        })
    }

    fn prepare_postponed(&mut self, orders: &Orders) -> Option<End> {
        if self.is_agent_held() {
            return None;
        }
        for (stream, hold) in std::mem::take(&mut self.postponed) {
            if let Some(end) = self.prepare(hold, stream, orders) {
                return Some(end);
            }
        }
        None
    }

    /// The VM has ended: tells all clients that wait.
    pub(super) fn refuse_waiting(&mut self, end: &End) {
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.stream);
        let postponed = std::mem::take(&mut self.postponed).into_iter().map(|(stream, _)| stream);
        let reason = format!("the VM has ended: {}", end.reason);
        for stream in waiting.chain(postponed) {
            answer(&stream, &Opened::Error(reason.clone()));
        }
    }
}
