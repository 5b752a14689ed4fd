//! Messages from the host, and taking on the identity that the host sends.

use super::Agent;
use super::calls::{self, CLONE_CLIENT};
use super::link::LinkError;
use crate::identity::{self, HOSTS_MAX_BYTES, IdentityError};
use crate::machine::{ApplyError, Machine};
use patina_abi::link::{FromAgent, FromHost, Identity};
use patina_daemon::chain;
use rustix::event::PollFlags;
use std::time::Instant;

/// Why an identity is not in place.
#[derive(Debug, thiserror::Error)]
enum NotInPlace {
    /// It is not one, or cannot be written down.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A clone would be taken for its parent.
    #[error("identity")]
    Vital(#[source] ApplyError),
}

/// What an identity replaces.
struct Change {
    old: Option<Identity>,
    is_clone: bool,
    /// It is not the one that is in place.
    is_new: bool,
    /// All other processes are held.
    is_alone: bool,
}

impl<M: Machine> Agent<M> {
    pub(super) fn drive_link(&mut self, ready: PollFlags) {
        match self.link.drive(ready) {
            Ok(messages) => messages.into_iter().for_each(|message| self.take(message)),
            Err(error) => self.link_lost(&error),
        }
    }

    fn take(&mut self, message: FromHost) {
        let actions = match message {
            FromHost::Identity(identity) => {
                if self.identity.as_ref().is_some_and(|old| !old.is_same_vm(&identity)) {
                    self.leave_parents_host();
                }
                return match self.put_in_place(identity) {
                    Ok(change) => self.go_on(&change),
                    Err(error) => self.not_ready(&error),
                };
            }
            FromHost::Clock { clock_ns } => return self.set_clock(clock_ns),
            // Of a newer host.
            FromHost::Unknown => return,
            FromHost::Prepare { hold } => self.cloning.plan.prepare(hold),
            FromHost::Resumed { cloned } => self.cloning.plan.resumed(cloned),
            FromHost::Reply { id, result } => match self.calls.close(id) {
                Some(CLONE_CLIENT) => self.cloning.plan.reply(result),
                Some(client) => return self.answer_client(client, &result),
                None => return,
            },
        };
        self.cloning.then(actions);
    }

    /// Puts an identity in place and says ready. What the kernel refuses is told later and left: a
    /// machine without a network still answers. Only a clone must not be without what tells it from
    /// its parent.
    fn put_in_place(&mut self, identity: Identity) -> Result<Change, NotInPlace> {
        let text = identity::render(&identity)?;
        let old = self.identity.clone();
        let change = Change {
            is_clone: old.as_ref().is_some_and(|old| !old.is_same_vm(&identity)),
            is_new: old.as_ref().is_none_or(|old| {
                identity
                    != Identity { clock_ns: identity.clock_ns, seed: identity.seed.clone(), ..old.clone() }
            }),
            is_alone: self.cloning.plan.is_alone(),
            old,
        };
        self.failed = self.machine.apply(&identity, change.old.as_ref());
        if let Some(vital) = self.failed.iter().position(|error| error.is_vital && change.is_clone) {
            return Err(NotInPlace::Vital(self.failed.swap_remove(vital)));
        }
        if change.is_new {
            // In a machine that begins, whoever finds the identity's file finds everything else in
            // place. A clone has more haste, and nobody who looks.
            if !change.is_clone {
                self.write_hosts(&identity, &change);
            }
            self.identity_file.write(text, change.is_alone)?;
        }
        let (vmid, family) = (identity.vmid, identity.family.clone());
        self.identity = Some(identity);
        self.link.proven();
        self.told_of_loss = false;
        let ready = FromAgent::Ready { vmid, family, abi: patina_abi::ABI, vmcoreinfo: self.vmcoreinfo };
        if let Err(error) = self.link.send(&ready) {
            self.link_lost(&error);
        }
        Ok(change)
    }

    /// The host will end this machine. Until then nothing of it goes on.
    fn not_ready(&mut self, error: &NotInPlace) {
        let reason = chain(error);
        self.machine.say(&reason);
        for error in std::mem::take(&mut self.failed) {
            self.machine.say(&format!("identity: {}", chain(&error)));
        }
        if let Err(error) = self.link.send(&FromAgent::NotReady { reason }) {
            self.link_lost(&error);
        }
    }

    /// Does what could wait until the host knows.
    fn go_on(&mut self, change: &Change) {
        let mut failed = std::mem::take(&mut self.failed);
        failed.extend(self.machine.settle(change.is_clone));
        for error in failed {
            self.machine.say(&format!("identity: {}", chain(&error)));
        }
        self.link.sweep();
        let Some(identity) = self.identity.take() else { return };
        if change.is_clone {
            self.write_hosts(&identity, change);
        } else if change.is_new {
            self.machine.say(&format!("vmid {} {} ready", identity.vmid, identity.ip));
            // So that nobody waits for it when it is cloned.
            if let Err(error) = self.machine.keep_resident() {
                self.machine.say(&format!("keep the agent's pages mapped: {error}; clones are ready later"));
            }
            self.machine.prepare_to_connect();
        }
        let ticket = Some(identity.ticket.clone()).filter(|ticket| !ticket.is_empty());
        self.identity = Some(identity);
        let actions = self.cloning.plan.identity(change.is_clone, ticket);
        self.cloning.then(actions);
        for client in std::mem::take(&mut self.lost_calls) {
            self.answer_client(client, &calls::link_lost());
        }
    }

    fn write_hosts(&mut self, identity: &Identity, change: &Change) {
        let path = &self.settings.hosts;
        let edit = |old: &str| identity::render_hosts(old, identity);
        let written = if change.is_alone {
            identity::edit_in_place(path, HOSTS_MAX_BYTES, edit)
        } else {
            let error = |source| IdentityError::Replace { path: path.clone(), source };
            let old = identity::read_small(path, HOSTS_MAX_BYTES).map_err(error);
            old.and_then(|old| identity::replace(path, &edit(&old))).map(drop)
        };
        if let Err(error) = written {
            self.machine.say(&format!("identity: {}", chain(&error)));
        }
    }

    /// This is a clone, and on the link that it has from its parent its own host talks now: what
    /// was said there before is over, as on a link that broke.
    fn leave_parents_host(&mut self) {
        let actions = self.cloning.plan.link_lost();
        self.cloning.then(actions);
        self.lost_calls.extend(self.calls.close_all().into_iter().filter(|client| *client != CLONE_CLIENT));
    }

    /// The link is broken. In a clone in the making nobody is told until it is known which of the
    /// machines this is.
    pub(super) fn link_lost(&mut self, error: &LinkError) {
        let actions = self.cloning.plan.link_lost();
        let later = self.cloning.plan.is_lost();
        self.link.close(later);
        self.cloning.then(actions);
        if !self.told_of_loss && self.link.retry_at().is_some_and(|at| at > Instant::now()) {
            self.told_of_loss = true;
            self.machine.say(&format!("{}; trying again", chain(error)));
        }
        self.lost_calls.extend(self.calls.close_all().into_iter().filter(|client| *client != CLONE_CLIENT));
        if !later {
            for client in std::mem::take(&mut self.lost_calls) {
                self.answer_client(client, &calls::link_lost());
            }
        }
    }
}
