//! The guest's clock follows its host's. When the guest's clock is set, the agent asks the host for
//! the time.

use super::Agent;
use crate::machine::Machine;
use patina_abi::link::FromAgent;
use std::time::{Duration, Instant};

/// How often the host is asked at most: a program that sets the clock all the time keeps it wrong
/// for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether the host is to be asked.
#[derive(Debug, Default)]
pub struct Time {
    is_wrong: bool,
    not_before: Option<Instant>,
}

impl Time {
    /// When the host is to be asked, if it is.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.is_wrong)
    }

    /// Whether it is to be asked now; it is taken for asked then.
    fn ask(&mut self) -> bool {
        let now = Instant::now();
        if !self.is_wrong || self.not_before.is_some_and(|at| at > now) {
            return false;
        }
        *self = Self { is_wrong: false, not_before: Some(now + PAUSE) };
        true
    }
}

impl<M: Machine> Agent<M> {
    pub(super) fn hear_of_clock(&mut self) {
        self.time.is_wrong |= self.machine.clock_was_set();
    }

    /// Asks the host what time it is, if that is to be known. A link that is made anew brings it
    /// unasked.
    pub(super) fn ask_for_time(&mut self) {
        if self.link.is_up()
            && self.identity.is_some()
            && self.time.ask()
            && let Err(error) = self.link.send(&FromAgent::Clock)
        {
            self.link_lost(&error);
        }
    }

    pub(super) fn set_clock(&mut self, clock_ns: u64) {
        if let Err(error) = self.machine.set_clock(clock_ns) {
            self.machine.say(&format!("set the clock: {error}"));
        }
    }
}
