//! Lends layers to another host whose lender fails: those that this host has completely.

use crate::{
    process::control_client::PATIENCE,
    vms::{error::Error, host::Host, remote_data::error::ReceiveError},
};
use patina_control::pager::{Id, PAGER_LAYERS_MAX};
use patina_proto::v1::{LendLayersRequest, LendLayersResponse};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use uuid::Uuid;

/// How long the scheduler may take to say which hosts have VMs of a family.
const LIST_PATIENCE: Duration = Duration::from_secs(1);

/// A call of another host, checked.
#[derive(Debug)]
pub struct LendCall {
    family: Uuid,
    layers: Vec<Id>,
    host: Uuid,
    to_host: Uuid,
}

impl LendCall {
    /// The host that calls.
    #[must_use]
    pub fn host(&self) -> Uuid {
        self.host
    }

    /// Checks what came.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(call: LendLayersRequest) -> Result<Self, ReceiveError> {
        let field = ReceiveError::field;
        if !(1..=PAGER_LAYERS_MAX).contains(&call.layers.len()) {
            return Err(field("number of layers", &call.layers.len().to_string()));
        }
        let layer = |name: String| Id::try_from(name).map_err(|_| field("name of a layer", "none"));
        Ok(Self {
            family: ReceiveError::uuid("family", &call.family)?,
            layers: call.layers.into_iter().map(layer).collect::<Result<_, _>>()?,
            host: ReceiveError::uuid("host", &call.host_id)?,
            to_host: ReceiveError::uuid("called host", &call.to_host_id)?,
        })
    }
}

impl Host {
    /// Lends another host those of some layers of which this one has all.
    ///
    /// # Errors
    /// It has none of them completely, that host has no VM of the family, or too much is lent.
    pub(crate) async fn lend_layers(self: &Arc<Self>, call: LendCall) -> Result<LendLayersResponse, Error> {
        self.adopted(PATIENCE).await?;
        self.check_called(call.to_host)?;
        self.takes_part(call.family, call.host).await?;
        let (mut held, mut layers) = (Vec::new(), Vec::new());
        for (place, id) in (0..).zip(&call.layers) {
            if let Some(layer) = self.pager.hold_complete(id) {
                held.push(place);
                layers.push(layer);
            }
        }
        if layers.is_empty() {
            return Err(ReceiveError::NotHeld.into());
        }
        let (lease, credential) = self.lend(layers).map_err(ReceiveError::NotLent)?;
        tracing::info!(host = %call.host, family = %call.family, layers = held.len(), "layers are lent to a host whose lender fails");
        Ok(LendLayersResponse {
            held,
            lease: lease.to_string(),
            lease_certificate: credential.certificate,
            lease_key: credential.key,
        })
    }

    /// Whether a host has VMs of a family that lives here: it got a generation with this one, or
    /// the scheduler says so.
    async fn takes_part(&self, family: Uuid, host: Uuid) -> Result<(), Error> {
        let lives_here = self.table.all().iter().any(|vm| vm.record.family == family);
        if lives_here && self.holders.names(family, host) {
            return Ok(());
        }
        if lives_here && let Ok(listed) = timeout(LIST_PATIENCE, self.tickets.list_family(family)).await {
            let host = host.to_string();
            if listed?.iter().any(|vm| vm.host_id == host) {
                return Ok(());
            }
        }
        Err(ReceiveError::Stranger { host, family }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_for_layers_is_checked() {
        let call = || LendLayersRequest {
            family: Uuid::from_u128(1).to_string(),
            layers: vec!["a".into(), "b".into()],
            host_id: Uuid::from_u128(2).to_string(),
            to_host_id: Uuid::from_u128(3).to_string(),
        };
        let good = LendCall::check(call()).unwrap();
        assert_eq!((good.host(), good.layers.len()), (Uuid::from_u128(2), 2));
        let wrong: [fn(&mut LendLayersRequest); 6] = [
            |call| call.family = "web".into(),
            |call| call.host_id.clear(),
            |call| call.to_host_id.clear(),
            |call| call.layers.clear(),
            |call| call.layers.push("../a".into()),
            |call| call.layers = vec!["a".into(); PAGER_LAYERS_MAX + 1],
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            let mut changed = call();
            change(&mut changed);
            assert!(matches!(LendCall::check(changed), Err(ReceiveError::Field { .. })), "{number}");
        }
    }
}
