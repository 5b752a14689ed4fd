//! A family of another host lives here from now on, too.

use crate::{
    net::NetError,
    plan::address::{FamilyNet, VMID_MAX},
    process::control_client::PATIENCE,
    store::record::Record,
    vms::{
        blocking::blocking, error::Error, host::Host, remote_data::error::ReceiveError,
        table::families::Joined,
    },
};
use patina_daemon::chain;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// How often it is looked whether an earlier network of the family is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Host {
    /// So many more VMs of a family of another host live here: its network is made if there is
    /// none.
    pub(super) async fn join_family_of(
        self: &Arc<Self>,
        parent: &Record,
        vmids: &[u32],
    ) -> Result<(), Error> {
        let _turn = self.joining.lock().await;
        let (net, family) = (parent.net, parent.family);
        let begun = Instant::now();
        loop {
            match self.table.join_foreign_family(net.index, family, vmids) {
                Joined::Others => return self.reach_others(net, vmids, family).await,
                Joined::First => break,
                Joined::Lives(vmid) => return Err(ReceiveError::Lives(vmid).into()),
                // Its last VM here has just ended, and its bridge is being deleted.
                Joined::Taken(other) if other == family && begun.elapsed() < PATIENCE => {
                    sleep(LOOK_AGAIN).await;
                }
                Joined::Taken(other) => return Err(ReceiveError::Network { base: net.base, other }.into()),
            }
        }
        // This host gives only such vmids as are reserved, and so does the next vmmd here.
        let host = Arc::clone(self);
        let written = blocking(move || Ok(host.state.save_next_vmid(family, VMID_MAX + 1)?)).await;
        let claimed = match written {
            Ok(()) => self.make_net(net, family).await.map_err(|error| match error {
                error @ NetError::Identifier { .. } => error.into(),
                error if error.exists() => ReceiveError::Bridge { bridge: net.bridge() }.into(),
                error => error.into(),
            }),
            Err(error) => Err(error),
        };
        if claimed.is_err() {
            self.table.forget_family(net.index);
            if let Err(error) = self.state.forget_family(family) {
                tracing::error!(%family, error = %chain(&error), "the family's file stays until the next start of vmmd");
            }
        }
        claimed
    }

    async fn make_net(&self, net: FamilyNet, family: Uuid) -> Result<(), NetError> {
        match &self.members {
            Some(members) => self.net.join(net, &family.to_string(), members.underlay).await,
            None => self.net.claim(net, &family.to_string()).await,
        }
    }

    /// VMs of the family live here: other hosts are reached from now on, if they were not.
    async fn reach_others(&self, net: FamilyNet, vmids: &[u32], family: Uuid) -> Result<(), Error> {
        let Some(members) = &self.members else { return Ok(()) };
        let reached = self.net.reach(net, members.underlay).await;
        if reached.is_err() {
            for vmid in vmids {
                self.leave_family(net, family, *vmid).await;
            }
        }
        Ok(reached?)
    }
}
