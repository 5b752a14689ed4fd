//! The protocol between the agent, the vmm and `vmmd` as pure logic: lines in, effects out.
//!
//! ```text
//!   booting ──agent: ready──▶ ready        (the VM stays ready if the link is lost and made again)
//!      └─agent: not_ready──▶ the VM is ended
//!
//!   idle ──freeze requested: prepare──▶ asked ──prepared──▶ idle: freeze, or refuse with the
//!                                         │                  agent's error
//!                                         ├─ link lost ──▶ idle: refuse
//!                                         └─ client gone ──▶ unwanted ──prepared──▶ idle: resumed,
//!                                                                             not cloned
//! ```

use super::mailbox::Origin;
use patina_abi::args::Args;
use patina_abi::link::{Answer, CallError, FromAgent, FromHost, Identity, REQUESTS_MAX, Vmcoreinfo};
use patina_abi::{ABI, ABI_OLDEST, CALL_MAX_BYTES};
use patina_control::messages::{FromVmm, ToVmm};
use std::collections::HashMap;

/// ECONNREFUSED of Linux: no process answers.
const ECONNREFUSED: i32 = 111;
/// EAGAIN of Linux: too many calls at once.
const EAGAIN: i32 = 11;
/// EMSGSIZE of Linux: the call is too long to be passed on.
const EMSGSIZE: i32 = 90;

/// An action for the caller of a [`Session`].
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send this to the agent.
    ToAgent(FromHost),
    /// Send this to `vmmd`.
    ToVmmd(FromVmm),
    /// The agent is ready, for the first time.
    Ready,
    /// The agent has prepared: freeze for the client that waits, then tell the agent to continue.
    Freeze,
    /// The agent could not prepare: tell the client that waits.
    RefuseFreeze(CallError),
    /// Close the link, for this reason.
    DropLink(String),
    /// End the VM, for this reason.
    Kill(String),
    /// End the VM because its agent could not apply its identity, for this reason.
    Unfit(String),
}

/// The values that are set in an identity when it is sent.
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
        "the guest's agent does not answer: it has no link to its host; see the VM's console for \
         messages of gc-agent"
    )]
    NoAgent,
    /// The agent has not answered an earlier request yet.
    #[error("another freeze of this VM waits for its agent; try again when that freeze has ended")]
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

/// The state of the agent's preparation for a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preparation {
    /// No preparation was requested.
    Idle,
    /// The agent was asked and has not answered.
    Asked,
    /// The client has gone before the agent answered. No other preparation starts until that
    /// answer, which could otherwise be mistaken for the answer to a later request.
    Unwanted,
}

/// The state of the protocol.
#[derive(Debug)]
pub struct Session {
    identity: Identity,
    /// Whether the agent has said hello before, in this VM or in its parent. If so, it waits for
    /// its identity when it connects.
    known: bool,
    /// Whether the agent on the link is known to speak a supported ABI.
    greeted: bool,
    /// The ABI that the agent has said. 0: none yet.
    abi: u32,
    /// Where the guest's kernel describes itself, as the agent has said.
    vmcoreinfo: Option<Vmcoreinfo>,
    /// Whether only a program with privileges can have made the link.
    is_privileged: bool,
    /// Whether the link was the parent's and the agent does not know yet that it is in a clone. Its
    /// lines are for the parent then.
    is_parents: bool,
    ready: bool,
    preparation: Preparation,
    next_id: u64,
    /// Requests that `vmmd` has not answered, by the vmm's id.
    pending: HashMap<u64, Pending>,
}

/// A request that `vmmd` has not answered.
#[derive(Debug)]
struct Pending {
    agent_id: u64,
    /// A cancelled `clone` is answered all the same: without the answer the agent would not know
    /// whether the VM is still to be frozen.
    is_clone: bool,
}

impl Session {
    /// The session of a VM with this identity, whose clock is set when it is sent. A spare vmm has
    /// any: its VM's comes with [`Session::started`].
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            known: false,
            greeted: false,
            abi: 0,
            vmcoreinfo: None,
            is_privileged: false,
            is_parents: false,
            ready: false,
            preparation: Preparation::Idle,
            next_id: 0,
            pending: HashMap::new(),
        }
    }

    /// The VM has started as a clone that was made under this ticket; `identity`: from now on it
    /// has this one.
    pub fn started(&mut self, ticket: String, identity: Option<Identity>) {
        let identity = identity.unwrap_or_else(|| self.identity.clone());
        self.identity = Identity { ticket, ..identity };
        self.known = true;
    }

    /// The name that the guest has.
    #[must_use]
    pub fn hostname(&self) -> &str {
        &self.identity.hostname
    }

    /// The ABI of the VM's agent. 0: the agent has not said it yet.
    #[must_use]
    pub fn agent_abi(&self) -> u32 {
        self.abi
    }

    /// Where the guest's kernel describes itself. None: no agent has said it.
    #[must_use]
    pub fn vmcoreinfo(&self) -> Option<Vmcoreinfo> {
        self.vmcoreinfo
    }

    /// The agent has connected. Returns what to send on the link.
    pub fn link_opened(&mut self, origin: Origin, fresh: impl FnOnce() -> Fresh) -> Option<Effect> {
        self.greeted = self.known;
        self.is_parents = origin.is_carried_on;
        self.is_privileged = origin.is_privileged;
        self.known.then(|| self.tell_identity(fresh()))
    }

    fn tell_identity(&self, Fresh { clock_ns, seed }: Fresh) -> Effect {
        Effect::ToAgent(FromHost::Identity(Identity { clock_ns, seed, ..self.identity.clone() }))
    }

    /// The link is lost, or a new link replaces it. Returns the error for a client that waits for a
    /// freeze.
    pub fn link_lost(&mut self) -> Option<CallError> {
        self.greeted = false;
        self.pending.clear();
        let asked = std::mem::replace(&mut self.preparation, Preparation::Idle) == Preparation::Asked;
        let message = || "the link to its agent broke; try again".into();
        asked.then(|| CallError { code: libc::ENOTCONN, message: message() })
    }

    /// A client requests a freeze for which the agent must prepare.
    ///
    /// # Errors
    /// There is no agent, or another preparation is in progress.
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

    /// The client that requested the freeze has gone.
    pub fn freeze_unwanted(&mut self) {
        if self.preparation == Preparation::Asked {
            self.preparation = Preparation::Unwanted;
        }
    }

    /// Handles a line from the agent. `vmmd` says whether a vmmd is connected. `fresh` is called if
    /// an identity or the time is sent.
    pub fn agent_line(&mut self, line: &[u8], vmmd: bool, fresh: impl FnOnce() -> Fresh) -> Vec<Effect> {
        let message: FromAgent = match serde_json::from_slice(line) {
            Ok(message) => message,
            Err(error) => {
                return vec![Effect::DropLink(format!("the agent sent an invalid line: {error}"))];
            }
        };
        if self.is_parents {
            // The line may be from before the clone, and then the parent's host has it, too. Only a
            // line with this VM's number and family shows that the agent knows its new identity.
            match &message {
                FromAgent::Ready { vmid, family, .. } if self.is_own(*vmid, family) => {
                    self.is_parents = false;
                }
                FromAgent::NotReady { .. } => {}
                _ => return Vec::new(),
            }
        }
        match message {
            FromAgent::Hello { abi, agent } if !(ABI_OLDEST..=ABI).contains(&abi) => {
                vec![Effect::DropLink(other_abi(abi, &agent))]
            }
            // The agent was sent its identity when it connected.
            FromAgent::Hello { abi, .. } if self.greeted => {
                self.abi = abi;
                Vec::new()
            }
            FromAgent::Hello { abi, .. } => {
                self.abi = abi;
                self.known = true;
                self.greeted = true;
                vec![self.tell_identity(fresh())]
            }
            _ if !self.greeted => vec![Effect::DropLink("the agent did not say hello first".into())],
            FromAgent::Ready { vmid, family, .. } if !self.is_own(vmid, &family) => {
                vec![Effect::DropLink(format!("the agent has the identity of VM {vmid} {family:.64}"))]
            }
            FromAgent::Ready { abi, vmcoreinfo, .. } => {
                // From anybody else it could name memory that a program has written itself.
                if self.is_privileged {
                    self.vmcoreinfo = vmcoreinfo;
                }
                // A clone's agent said hello to the parent's host. An agent before version 4 does
                // not say its version here, and may have said it in a hello.
                if self.abi == 0 {
                    self.abi = abi;
                }
                if std::mem::replace(&mut self.ready, true) { Vec::new() } else { vec![Effect::Ready] }
            }
            FromAgent::NotReady { .. } if self.ready => {
                vec![Effect::DropLink("the agent says not ready after ready".into())]
            }
            FromAgent::NotReady { reason } => vec![Effect::Unfit(format!(
                "the guest's agent could not apply the VM's identity, so the VM's network stayed closed: {reason:.512}"
            ))],
            FromAgent::Request { id, verb, args } => vec![self.request(id, verb, args, vmmd)],
            FromAgent::Cancel { id } => self.cancel(id).into_iter().collect(),
            FromAgent::Prepared { result } => self.prepared(result).into_iter().collect(),
            FromAgent::Clock => vec![tell_clock(fresh())],
            FromAgent::Unknown => Vec::new(),
        }
    }

    /// The host's clock was set, or the host has slept. An agent without a link gets the time when
    /// it connects.
    pub fn clock_was_set(&self, fresh: impl FnOnce() -> Fresh) -> Option<Effect> {
        self.greeted.then(|| tell_clock(fresh()))
    }

    /// Whether the agent has the identity of this VM. An old agent does not say its family.
    fn is_own(&self, vmid: u32, family: &str) -> bool {
        vmid == self.identity.vmid && (family.is_empty() || family == self.identity.family)
    }

    fn prepared(&mut self, result: Answer) -> Option<Effect> {
        match (std::mem::replace(&mut self.preparation, Preparation::Idle), result) {
            (Preparation::Idle, _) => {
                Some(Effect::DropLink("the agent has prepared for a freeze that was not requested".into()))
            }
            (Preparation::Asked, Answer::Ok(_)) => Some(Effect::Freeze),
            (Preparation::Asked, Answer::Error(error)) => Some(Effect::RefuseFreeze(error.cut())),
            // Nobody waits for the freeze any more, so the agent must release the held processes.
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
                "too many calls wait for the host; try again when one of them has returned",
            );
        }
        if !vmmd {
            return refusal(agent_id, ECONNREFUSED, "the host's vmmd is not running; try again later");
        }
        self.next_id += 1;
        self.pending.insert(self.next_id, Pending { agent_id, is_clone: verb == "clone" });
        Effect::ToVmmd(FromVmm::GuestRequest { id: self.next_id, verb, args })
    }

    /// The agent cancels a request. It may have the answer already.
    fn cancel(&mut self, agent_id: u64) -> Option<Effect> {
        let (&id, pending) = self.pending.iter().find(|(_, pending)| pending.agent_id == agent_id)?;
        if !pending.is_clone {
            self.pending.remove(&id);
        }
        Some(Effect::ToVmmd(FromVmm::GuestCancel { id }))
    }

    /// Handles a line from `vmmd`. An invalid line is an error of the host, which the caller logs.
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

    /// The connection to `vmmd` is lost: all pending requests are refused.
    pub fn vmmd_lost(&mut self) -> Vec<Effect> {
        let reason =
            "the connection to the host's vmmd broke before it answered; the call may have been done";
        self.pending.drain().map(|(_, call)| refusal(call.agent_id, ECONNREFUSED, reason)).collect()
    }
}

/// Why an agent of this ABI is not served, and what to do about it.
fn other_abi(abi: u32, agent: &str) -> String {
    let remedy =
        if abi < ABI_OLDEST { "rebuild the image" } else { "update the host, or use an older image" };
    format!("agent {agent:.32} speaks ABI {abi}, but this host speaks ABI {ABI_OLDEST} to {ABI}: {remedy}")
}

fn tell_clock(Fresh { clock_ns, .. }: Fresh) -> Effect {
    Effect::ToAgent(FromHost::Clock { clock_ns })
}

fn refusal(id: u64, code: i32, message: &str) -> Effect {
    let error = CallError { code, message: message.into() };
    Effect::ToAgent(FromHost::Reply { id, result: Answer::Error(error) })
}

/// The length of a verb in its line, quotes included.
fn written_bytes(verb: &str) -> usize {
    serde_json::to_string(verb).map_or(usize::MAX, |text| text.len())
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
