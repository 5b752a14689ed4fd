//! A vsock device, saved and restored: without its connections but one.
//!
//! Their other ends are streams of the old process, and belong to the parent, which keeps them. The one that the guest
//! has made to its host, the agent's link, is carried on in the clone with a new stream where nothing is on its way there
//! (as is so while the agent waits for its clone): a new link would cost the guest a third of all that it does until it is
//! ready. Its other connections get a reset each.
//!
//! Where it cannot be carried on, the clone's guest is told by a transport reset that all connections are gone, before
//! anything else. What that does not reach are sockets that do not know yet that they are connected, because the answer is
//! still on its way: each of them gets a reset of its own. Sockets that listen, and requests that the host has not seen, go on.

use super::connection::{Ports, Quiet};
use super::muxer::REFUSALS_MAX;
use super::{CONNECTIONS_MAX, ResetNews, Vsock};
use crate::devices::virtio::persist::RestoreError;
use crate::persist::Persist;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;

/// More resets than there can be: of each connection, and of what waits to be refused, which may be more than
/// [`REFUSALS_MAX`] by a round of a queue and by breaking each connection.
const RESETS_MAX: usize = 4 * (CONNECTIONS_MAX + REFUSALS_MAX);

/// What a saved VM keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The host's end of the next connection that it opens: another one than the guest's sockets know, so that none
    /// of them takes its packets for its own.
    pub(super) next_host_port: u32,
    /// Connections that are to be reset one by one.
    pub(super) resets: Vec<Ports>,
    /// See [`ResetNews::Told`].
    pub(super) told: Option<u16>,
    /// The connection that goes on. Then the guest is not told that all are gone.
    pub(super) carried_on: Option<Quiet>,
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
