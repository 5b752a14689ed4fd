//! The networks of families, as the book says.

use crate::{net::NetError, vms::host::Host};
use std::collections::BTreeMap;
use uuid::Uuid;

impl Host {
    /// Makes a family's network so that what is for VMs on other hosts goes there.
    ///
    /// # Errors
    /// Netlink refused. What cannot be for one VM is logged, and the others are reached.
    pub(in crate::vms) async fn route(&self, family: Uuid) -> Result<(), NetError> {
        let Some(members) = &self.members else { return Ok(()) };
        let _turn = members.routing.lock().await;
        let (net, mut wanted) = {
            let book = members.book();
            let Some(net) = book.net(family) else { return Ok(()) };
            (net, book.routes(family))
        };
        if self.table.living(net.index, family).is_empty() {
            // It ends here, and its network with it.
            return Ok(());
        }
        for own in self.table.own_vmids(net.index, family, wanted.keys().copied()) {
            wanted.remove(&own);
        }
        let there: BTreeMap<_, _> = self.net.remotes(net).await?.into_iter().collect();
        for vmid in there.keys().filter(|vmid| !wanted.contains_key(vmid)) {
            self.net.remove_remote(net, *vmid).await?;
        }
        for (vmid, host) in wanted.iter().filter(|(vmid, host)| there.get(vmid) != Some(host)) {
            match self.net.add_remote(net, *vmid, *host).await {
                Err(error @ NetError::Remote { .. }) => {
                    tracing::warn!(%family, vmid, %host, error = %patina_daemon::chain(&error), "a VM elsewhere is not reached");
                }
                other => other?,
            }
        }
        Ok(())
    }
}
