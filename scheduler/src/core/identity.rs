//! Which daemon a host id belongs to: two daemons with one id, of which one is a copy, would end
//! each other's clones.

use super::{
    Core,
    api::{CoreError, HostInfo},
    present::Identity,
    state::Standing,
};

impl Core {
    /// Whether a daemon may register under its host id. As long as the host is up or suspect, only
    /// a daemon on the same machine with the same state folder may. While it is up, the boot must
    /// be the same, too: a copy of a whole machine may look the same otherwise. A daemon of an
    /// earlier release does not say who it is; it may follow any that is not up.
    pub(super) fn check_identity(&self, info: &HostInfo) -> Result<(), CoreError> {
        let known = self.hosts.get(info.id).and_then(|host| Some((host.standing(), host.info.as_ref()?)));
        let Some((standing, known)) = known else { return Ok(()) };
        let is_in_use = match (&known.identity, &info.identity) {
            _ if standing == Standing::Lost => false,
            (Some(known), Some(new)) if known.instance == new.instance => false,
            (Some(known), Some(new)) => {
                !is_same_place(known, new) || (standing == Standing::Up && known.boot != new.boot)
            }
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => standing == Standing::Up,
        };
        if is_in_use {
            let (name, address) = (known.name.clone(), known.address.clone());
            return Err(CoreError::HostIdInUse { host: info.id, name, address });
        }
        Ok(())
    }

    /// Whether a daemon takes the place of an earlier one of its host: what that one was doing does
    /// not go on. After a start of the scheduler nobody knows.
    pub(super) fn replaces_another(&self, info: &HostInfo) -> bool {
        let known = self.hosts.get(info.id).and_then(|host| host.info.as_ref()?.identity.as_ref());
        known.zip(info.identity.as_ref()).is_some_and(|(known, new)| known.instance != new.instance)
    }
}

fn is_same_place(known: &Identity, new: &Identity) -> bool {
    (&known.machine, &known.folder) == (&new.machine, &new.folder)
}
