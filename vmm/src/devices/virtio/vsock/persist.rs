//! Saves and restores a vsock device. At most one connection continues in a clone.
//!
//! The other ends of all connections are streams of the old process, and stay with the parent. The
//! exception is the agent's link, the connection that the guest has made to its host. If nothing is
//! in flight on it, as while the agent waits for its clone, it continues in the clone with a new
//! stream. A new link would be a third of the guest's work until it is ready. Each other connection
//! gets a reset.
//!
//! If the link cannot continue, a transport reset first tells the clone's guest that all
//! connections are gone. It does not reach sockets that do not know yet that they are connected,
//! because the answer is still in flight. Each of them gets a reset of its own. Listening sockets,
//! and requests that the host has not seen, continue.

use super::connection::{Ports, Quiet};
use super::muxer::REFUSALS_MAX;
use super::{CONNECTIONS_MAX, ResetNews, Vsock};
use crate::devices::virtio::persist::RestoreError;
use crate::persist::Persist;
use patina_snapshot::layout::Item;
use std::convert::Infallible;

/// An upper bound for resets: one for each connection, and one for each refusal that waits. One
/// round of a queue, and one break of each connection, may exceed [`REFUSALS_MAX`].
const RESETS_MAX: usize = 4 * (CONNECTIONS_MAX + REFUSALS_MAX);

/// What a saved VM keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockState {
    /// The host's port of the next connection that it opens. No socket of the guest knows it, so
    /// none mistakes a packet of that connection for its own.
    pub(crate) next_host_port: u32,
    /// Connections that are to be reset one by one.
    pub(crate) resets: Vec<Ports>,
    /// See [`ResetNews::Told`].
    pub(crate) told: Option<u16>,
    /// The connection that continues. If there is one, the guest is not told that all are gone.
    pub(crate) carried_on: Option<Quiet>,
}

patina_snapshot::layout!(VsockState {
    next_host_port: u32,
    resets: Vec<Ports>,
    told: Option<u16>,
    carried_on: Option<Quiet>,
});

patina_snapshot::layout!(Ports { host: u32, guest: u32 });

impl Item for Ports {
    const WHAT: &'static str = "connections to reset";
    const MOST: usize = RESETS_MAX;
}

impl Persist for VsockState {
    type Source<'a> = &'a Vsock;
    /// A device, and whether its driver is there.
    type Target<'a> = (&'a mut Vsock, bool);
    type Restored = ();
    type SaveError = Infallible;
    type RestoreError = RestoreError;

    fn save(vsock: &Vsock) -> Result<Self, Infallible> {
        let told = match vsock.reset_news {
            ResetNews::Told { made_available } => Some(made_available),
            ResetNews::Known | ResetNews::Owed => None,
        };
        let (next_host_port, mut resets) = (vsock.muxer.next_host_port(), vsock.muxer.resets_for_clone());
        let knows_all = vsock.reset_news == ResetNews::Known;
        let carried_on = vsock.muxer.to_carry_on().filter(|_| knows_all);
        if let Some(quiet) = &carried_on {
            resets.extend(vsock.muxer.open_beside(quiet.ports));
        }
        Ok(Self { next_host_port, resets, told, carried_on })
    }

    fn restore(&self, (vsock, is_active): (&mut Vsock, bool)) -> Result<(), RestoreError> {
        let count = self.resets.len();
        if count > RESETS_MAX {
            return Err(RestoreError::VsockResets { count });
        }
        vsock.muxer.set_next_host_port(self.next_host_port);
        if is_active {
            vsock.muxer.refuse(&self.resets);
            if let Some(quiet) = &self.carried_on {
                vsock.muxer.carry_on(quiet);
                return Ok(());
            }
            // Nothing has passed since it was told, so that it need not be told again.
            vsock.reset_news =
                self.told.map_or(ResetNews::Owed, |made_available| ResetNews::Told { made_available });
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "persist_test.rs"]
mod tests;
