//! What is said between the agent, the vmm and `vmmd`, without sockets: lines in, effects out.
//!
//! ```text
//!   booting ──agent says ready──▶ ready          (a link that is lost and made again stays ready)
//!      └─agent says not ready──▶ the VM is ended
//!
//!   idle ──a freeze is wanted: prepare──▶ asked ──prepared──▶ idle: freeze, or refuse with the agent's words
//!                                           ├─ the link is lost ──▶ idle: refuse
//!                                           └─ nobody wants it any more ──▶ unwanted ──prepared──▶ idle: resumed, not cloned
//! ```

use patina_abi::args::Args;
use patina_abi::link::{Answer, CallError, FromAgent, FromHost, Identity, REQUESTS_MAX};
use patina_abi::{ABI, ABI_OLDEST, CALL_MAX_BYTES};
use patina_control::messages::{FromVmm, ToVmm};
use std::collections::HashMap;

/// ECONNREFUSED of Linux: nobody there to answer.
const ECONNREFUSED: i32 = 111;
/// EAGAIN of Linux: too many at once.
const EAGAIN: i32 = 11;
/// EMSGSIZE of Linux: longer than what can be passed on.
const EMSGSIZE: i32 = 90;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Say this to the agent.
    ToAgent(FromHost),
    /// Say this to `vmmd`.
    ToVmmd(FromVmm),
    /// The agent is ready, for the first time.
    Ready,
    /// The agent has prepared: freeze for whoever asked, then tell it that it can go on.
    Freeze,
    /// The agent could not prepare: tell whoever asked.
    RefuseFreeze(CallError),
    /// End the link; why.
    DropLink(String),
    /// End the VM; why.
    Kill(String),
    /// End the VM, which cannot be who it is; why.
    Unfit(String),
}

/// What goes into an identity as it is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fresh {
    /// The wall clock, nanoseconds since 1970.
    pub clock_ns: u64,
    /// Randomness, in hex.
    pub seed: String,
}

/// Why an agent cannot be asked to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// There is no link, or no hello on it.
    #[error(
        "the guest's agent does not answer: it has no link to its host; see the VM's console for what \
         became of gc-agent"
    )]
    NoAgent,
    /// It has been asked and has not answered.
    #[error("another freeze of this VM waits for its agent; try again when that one has ended")]
    Busy,
}

impl From<PrepareError> for CallError {
    fn from(error: PrepareError) -> Self {
        let code = match error {
            PrepareError::NoAgent => libc::ENOTCONN,
            PrepareError::Busy => libc::EBUSY,
        };
        Self { code, message: error.to_string() }
    }
}

/// How far the agent is with its preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preparation {
    /// Nobody has asked.
    Idle,
    /// Asked, and it has not answered.
    Asked,
    /// Asked by somebody who has gone. The agent still owes its answer, so that it cannot be taken for a later one's.
    Unwanted,
}

/// Where the conversation stands.
#[derive(Debug)]
pub struct Session {
    identity: Identity,
    /// The agent has said hello before, here or in the VM that this one is a clone of: it waits for its identity.
    known: bool,
    /// The link's agent is known to speak our language.
    greeted: bool,
    /// The link is the parent's, carried on in this clone, and its agent does not know that yet: what it says is the parent's.
    is_parents: bool,
    ready: bool,
    preparation: Preparation,
    next_id: u64,
    /// Requests that `vmmd` has not answered, by our id.
    pending: HashMap<u64, Pending>,
}

/// A request that `vmmd` has not answered.
#[derive(Debug)]
struct Pending {
    agent_id: u64,
    /// A `clone` is answered even when nobody wants it any more: until then the agent does not know whether the VM is frozen yet.
    is_clone: bool,
}

impl Session {
    /// A VM that boots, with this identity (its clock is set when it is sent).
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            known: false,
            greeted: false,
            is_parents: false,
            ready: false,
            preparation: Preparation::Idle,
            next_id: 0,
            pending: HashMap::new(),
        }
    }

    /// The VM begins as a clone, made under this ticket.
    pub fn started(&mut self, ticket: String) {
        self.identity.ticket = ticket;
        self.known = true;
    }

    /// The agent has connected, or, as `is_carried_on` says, the parent's agent had; what to tell it.
    pub fn link_opened(&mut self, is_carried_on: bool, fresh: impl FnOnce() -> Fresh) -> Option<Effect> {
        self.greeted = self.known;
        self.is_parents = is_carried_on;
        self.known.then(|| self.tell_identity(fresh()))
    }

    fn tell_identity(&self, Fresh { clock_ns, seed }: Fresh) -> Effect {
        Effect::ToAgent(FromHost::Identity(Identity { clock_ns, seed, ..self.identity.clone() }))
    }

    /// The link is gone, or a new one is about to replace it. Returns what to tell who waits for a freeze.
    pub fn link_lost(&mut self) -> Option<CallError> {
        self.greeted = false;
        self.pending.clear();
        let asked = std::mem::replace(&mut self.preparation, Preparation::Idle) == Preparation::Asked;
        let message = || "the link to its agent broke; try again".into();
        asked.then(|| CallError { code: libc::ENOTCONN, message: message() })
    }

    /// Somebody wants the VM frozen, and its agent is to prepare first.
    ///
    /// # Errors
    /// There is nobody to ask, or somebody else has asked.
    pub fn prepare(&mut self, hold: bool) -> Result<Effect, PrepareError> {
        if !self.greeted {
            return Err(PrepareError::NoAgent);
        }
        if self.preparation != Preparation::Idle {
            return Err(PrepareError::Busy);
        }
        self.preparation = Preparation::Asked;
        Ok(Effect::ToAgent(FromHost::Prepare { hold }))
    }

    /// Whoever wanted the VM frozen has gone.
    pub fn freeze_unwanted(&mut self) {
        if self.preparation == Preparation::Asked {
            self.preparation = Preparation::Unwanted;
        }
    }

    /// A line from the agent; `vmmd` says whether one is attached, `fresh` is asked for where an identity is sent.
    pub fn agent_line(&mut self, line: &[u8], vmmd: bool, fresh: impl FnOnce() -> Fresh) -> Vec<Effect> {
        let message: FromAgent = match serde_json::from_slice(line) {
            Ok(message) => message,
            Err(error) => {
                return vec![Effect::DropLink(format!("the agent's line is not understood: {error}"))];
            }
        };
        if self.is_parents {
            // On its way, or in the guest's queues, as the VM was cloned; the parent's host has it, too. Only what has
            // this VM's number is of an agent that knows.
            match message {
                FromAgent::Ready { vmid } if vmid == self.identity.vmid => self.is_parents = false,
                FromAgent::NotReady { .. } => {}
                _ => return Vec::new(),
            }
        }
        match message {
            // It has been told as it connected.
            FromAgent::Hello { abi, agent } if !(ABI_OLDEST..=ABI).contains(&abi) => {
                vec![Effect::DropLink(other_abi(abi, &agent))]
            }
            FromAgent::Hello { .. } if self.greeted => Vec::new(),
            FromAgent::Hello { .. } => {
                self.known = true;
                self.greeted = true;
                vec![self.tell_identity(fresh())]
            }
            _ if !self.greeted => vec![Effect::DropLink("the agent did not say hello first".into())],
            FromAgent::Ready { vmid } if vmid != self.identity.vmid => {
                vec![Effect::DropLink(format!("the agent has the identity of VM {vmid}"))]
            }
            FromAgent::Ready { .. } if self.ready => Vec::new(),
            FromAgent::Ready { .. } => {
                self.ready = true;
                vec![Effect::Ready]
            }
            FromAgent::NotReady { .. } if self.ready => {
                vec![Effect::DropLink("the agent is not ready any more".into())]
            }
            FromAgent::NotReady { reason } => vec![Effect::Unfit(format!(
                "the guest's agent could not make the VM who it is, so that its network was never opened: {reason:.512}"
            ))],
            FromAgent::Request { id, verb, args } => vec![self.request(id, verb, args, vmmd)],
            FromAgent::Cancel { id } => self.cancel(id).into_iter().collect(),
            FromAgent::Prepared { result } => self.prepared(result).into_iter().collect(),
            FromAgent::Clock => vec![tell_clock(fresh())],
            FromAgent::Unknown => Vec::new(),
        }
    }

    /// The host's clock was set, or it has slept. One that has no link hears of the time when it has.
    pub fn clock_was_set(&self, fresh: impl FnOnce() -> Fresh) -> Option<Effect> {
        self.greeted.then(|| tell_clock(fresh()))
    }

    fn prepared(&mut self, result: Answer) -> Option<Effect> {
        match (std::mem::replace(&mut self.preparation, Preparation::Idle), result) {
            (Preparation::Idle, _) => {
                Some(Effect::DropLink("the agent has prepared for a freeze that nobody asked for".into()))
            }
            (Preparation::Asked, Answer::Ok(_)) => Some(Effect::Freeze),
            (Preparation::Asked, Answer::Error(error)) => Some(Effect::RefuseFreeze(error.cut())),
            // Its processes are held for nobody.
            (Preparation::Unwanted, Answer::Ok(_)) => {
                Some(Effect::ToAgent(FromHost::Resumed { cloned: false }))
            }
            // After an error nothing is held.
            (Preparation::Unwanted, Answer::Error(_)) => None,
        }
    }

    fn request(&mut self, agent_id: u64, verb: String, args: Args, vmmd: bool) -> Effect {
        if written_bytes(&verb).saturating_add(args.text().len()) > CALL_MAX_BYTES {
            let message = format!("the call is longer than {CALL_MAX_BYTES} bytes");
            return refusal(agent_id, EMSGSIZE, &message);
        }
        if self.pending.len() >= REQUESTS_MAX {
            return refusal(
                agent_id,
                EAGAIN,
                "too many calls wait for the host; try again when one has returned",
            );
        }
        if !vmmd {
            return refusal(agent_id, ECONNREFUSED, "the host's vmmd does not run; try again when it does");
        }
        self.next_id += 1;
        self.pending.insert(self.next_id, Pending { agent_id, is_clone: verb == "clone" });
        Effect::ToVmmd(FromVmm::GuestRequest { id: self.next_id, verb, args })
    }

    /// The agent wants no answer any more; it may have one already.
    fn cancel(&mut self, agent_id: u64) -> Option<Effect> {
        let (&id, pending) = self.pending.iter().find(|(_, pending)| pending.agent_id == agent_id)?;
        if !pending.is_clone {
            self.pending.remove(&id);
        }
        Some(Effect::ToVmmd(FromVmm::GuestCancel { id }))
    }

    /// A line from `vmmd`. One that is not understood is an error of the host, told in the log by the caller.
    ///
    /// # Errors
    /// It is not JSON of a [`ToVmm`].
    pub fn vmmd_line(&mut self, line: &[u8]) -> Result<Vec<Effect>, serde_json::Error> {
        Ok(match serde_json::from_slice(line)? {
            ToVmm::Kill { reason } => vec![Effect::Kill(reason)],
            ToVmm::GuestReply { id, answer } => match self.pending.remove(&id) {
                Some(Pending { agent_id: id, .. }) => {
                    vec![Effect::ToAgent(FromHost::Reply { id, result: answer })]
                }
                None => Vec::new(), // the link that asked is gone
            },
        })
    }

    /// `vmmd` is gone: whoever waits for it is told.
    pub fn vmmd_lost(&mut self) -> Vec<Effect> {
        let reason =
            "the connection to the host's vmmd broke before it answered; the call may have been done";
        self.pending.drain().map(|(_, call)| refusal(call.agent_id, ECONNREFUSED, reason)).collect()
    }
}

/// Why an agent is not served, and what to do about it.
fn other_abi(abi: u32, agent: &str) -> String {
    let remedy =
        if abi < ABI_OLDEST { "rebuild the image" } else { "update the host, or use an older image" };
    format!("agent {agent:.32} speaks ABI {abi}, this host speaks {ABI_OLDEST} to {ABI}: {remedy}")
}

fn tell_clock(Fresh { clock_ns, .. }: Fresh) -> Effect {
    Effect::ToAgent(FromHost::Clock { clock_ns })
}

fn refusal(id: u64, code: i32, message: &str) -> Effect {
    let error = CallError { code, message: message.into() };
    Effect::ToAgent(FromHost::Reply { id, result: Answer::Error(error) })
}

/// How long a verb is in its line, quotes included.
fn written_bytes(verb: &str) -> usize {
    serde_json::to_string(verb).map_or(usize::MAX, |text| text.len())
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
