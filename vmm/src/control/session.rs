//! What is said between the agent, the vmm and `vmmd`, without sockets: lines in, effects out.
//!
//! ```text
//!   booting ──agent says ready──▶ ready          (a link that is lost and made again stays ready)
//! ```

use crate::api::control::{FromVmm, ToVmm};
use patina_abi::ABI;
use patina_abi::link::{Answer, CallError, FromAgent, FromHost, Identity, REQUESTS_MAX};
use std::collections::HashMap;

/// ECONNREFUSED of Linux: nobody there to answer.
const ECONNREFUSED: i32 = 111;
/// EAGAIN of Linux: too many at once.
const EAGAIN: i32 = 11;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Say this to the agent.
    ToAgent(FromHost),
    /// Say this to `vmmd`.
    ToVmmd(FromVmm),
    /// The agent is ready, for the first time.
    Ready,
    /// End the link; why.
    DropLink(String),
    /// End the VM; why.
    Kill(String),
}

/// What goes into an identity as it is sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fresh {
    /// The wall clock, nanoseconds since 1970.
    pub clock_ns: u64,
    /// Randomness, in hex.
    pub seed: String,
}

/// Where the conversation stands.
#[derive(Debug)]
pub struct Session {
    identity: Identity,
    greeted: bool,
    ready: bool,
    next_id: u64,
    /// Requests that `vmmd` has not answered: our id, the agent's id.
    pending: HashMap<u64, u64>,
}

impl Session {
    /// A VM that boots, with this identity (its clock is set when it is sent).
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self { identity, greeted: false, ready: false, next_id: 0, pending: HashMap::new() }
    }

    /// A new link replaces the old one.
    pub fn link_opened(&mut self) {
        self.greeted = false;
        self.pending.clear();
    }

    /// A line from the agent; `vmmd` says whether one is attached, `fresh` is asked for where an identity is sent.
    pub fn agent_line(&mut self, line: &[u8], vmmd: bool, fresh: impl FnOnce() -> Fresh) -> Vec<Effect> {
        let message: FromAgent = match serde_json::from_slice(line) {
            Ok(message) => message,
            Err(error) => {
                return vec![Effect::DropLink(format!("the agent's line is not understood: {error}"))];
            }
        };
        match message {
            FromAgent::Hello { abi, agent: _ } if abi == ABI => {
                self.greeted = true;
                let Fresh { clock_ns, seed } = fresh();
                vec![Effect::ToAgent(FromHost::Identity(Identity {
                    clock_ns,
                    seed,
                    ..self.identity.clone()
                }))]
            }
            FromAgent::Hello { abi, agent } => vec![Effect::DropLink(format!(
                "agent {agent:.32} speaks ABI {abi}, this host speaks {ABI}: rebuild the image"
            ))],
            _ if !self.greeted => vec![Effect::DropLink("the agent did not say hello first".into())],
            FromAgent::Ready if self.ready => Vec::new(),
            FromAgent::Ready => {
                self.ready = true;
                vec![Effect::Ready]
            }
            FromAgent::Request { id, verb, args } => vec![self.request(id, verb, args, vmmd)],
        }
    }

    fn request(&mut self, agent_id: u64, verb: String, args: serde_json::Value, vmmd: bool) -> Effect {
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
        self.pending.insert(self.next_id, agent_id);
        Effect::ToVmmd(FromVmm::GuestRequest { id: self.next_id, verb, args })
    }

    /// A line from `vmmd`. One that is not understood is an error of the host, told in the log by the caller.
    ///
    /// # Errors
    /// It is not JSON of a [`ToVmm`].
    pub fn vmmd_line(&mut self, line: &[u8]) -> Result<Vec<Effect>, serde_json::Error> {
        Ok(match serde_json::from_slice(line)? {
            ToVmm::Kill { reason } => vec![Effect::Kill(reason)],
            ToVmm::GuestReply { id, answer } => match self.pending.remove(&id) {
                Some(id) => vec![Effect::ToAgent(FromHost::Reply { id, result: answer })],
                None => Vec::new(), // the link that asked is gone
            },
        })
    }

    /// `vmmd` is gone: whoever waits for it is told.
    pub fn vmmd_lost(&mut self) -> Vec<Effect> {
        let reason = "the host's vmmd has gone away; try again when it is back";
        self.pending.drain().map(|(_, id)| refusal(id, ECONNREFUSED, reason)).collect()
    }
}

fn refusal(id: u64, code: i32, message: &str) -> Effect {
    let error = CallError { code, message: message.into() };
    Effect::ToAgent(FromHost::Reply { id, result: Answer::Error(error) })
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
