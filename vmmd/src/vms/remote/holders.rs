//! Finds another host that has layers, when the one that lends them fails.
//!
//! Asked are the hosts that got a generation of the family with this one, and those on which the
//! scheduler knows VMs of it, all side by side. One that has all of a layer lends it
//! ([`super::lend`]).

use crate::{
    pager::{
        holders::{Fault, Found, Holders, Sought},
        lender::{Lender, Of},
    },
    vms::{
        host::Host,
        remote_data::{
            error::ReceiveError,
            holders::{HOLDERS_MAX, Place},
        },
    },
};
use futures::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use patina_control::pager::{Credential, Id};
use patina_daemon::chain;
use patina_proto::v1::{HostInfo, LayerHolder, LendLayersRequest, LendLayersResponse};
use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use tokio::time::timeout;
use uuid::Uuid;

/// How long a host may take to lend layers, and to take connections. VMs wait no longer than 4 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// Finds hosts for the pager.
#[derive(Debug)]
pub struct Finder(pub Weak<Host>);

impl Holders for Finder {
    fn find(&self, sought: Sought, found: Box<dyn Fn(Found) + Send + Sync>) -> BoxFuture<'static, ()> {
        let host = self.0.upgrade();
        Box::pin(async move {
            if let Some(host) = host {
                host.find_holders(&sought, &found).await;
            }
        })
    }
}

impl Host {
    /// Has the pager find other hosts in this way.
    pub fn find_holders_from_now_on(self: &Arc<Self>) {
        self.pager.find_holders_with(Arc::new(Finder(Arc::downgrade(self))));
    }

    /// These hosts get memory of a family.
    pub(super) fn note_holders<'a>(&self, family: Uuid, infos: impl Iterator<Item = &'a HostInfo>) {
        let place = |info: &HostInfo| Some((info.id.parse().ok()?, info.address.clone()));
        self.holders.note(family, infos.filter_map(place));
    }

    /// The hosts that may have memory of a family, for one of them.
    pub(super) fn holders_beside(&self, family: Uuid, host_id: &str) -> Vec<LayerHolder> {
        let known = self.holders.of(family).into_iter();
        let known = known.map(|(host, address)| LayerHolder { host_id: host.to_string(), address });
        known.filter(|holder| holder.host_id != host_id).take(HOLDERS_MAX).collect()
    }

    /// Another host names those that may have memory of a family.
    pub(crate) fn hear_of_holders(&self, family: Uuid, holders: Vec<LayerHolder>) {
        let place = |holder: LayerHolder| Some((holder.host_id.parse().ok()?, holder.address));
        self.holders.note(family, holders.into_iter().filter_map(place));
    }

    async fn find_holders(&self, sought: &Sought, found: &(dyn Fn(Found) + Send + Sync)) {
        let Of { family, host: lender } = sought.lender.of;
        let mut asked: HashSet<Uuid> = self.tickets.host_id().parse().into_iter().collect();
        match sought.fault {
            Fault::Failing => self.holders.fails(lender, Instant::now()),
            // The keeper connects to it again anyway.
            Fault::Broken => asked.extend([lender]),
            Fault::BrokenAgain => {}
        }
        let mut missing: HashSet<&Id> = sought.layers.iter().collect();
        let mut answers = FuturesUnordered::new();
        let (mut listed, mut is_listed) = (self.list_holders(family).boxed(), false);
        let mut places = self.holders.of(family);
        places.push((lender, sought.lender.address.clone()));
        loop {
            for (host, address) in places.drain(..) {
                if asked.insert(host) && !self.holders.is_failing(host, Instant::now()) {
                    answers.push(self.ask_for_layers(sought, host, address));
                }
            }
            tokio::select! {
                Some(answer) = answers.next() => {
                    let Some(answer) = answer else { continue };
                    missing.retain(|layer| !answer.layers.contains(layer));
                    found(answer);
                    if missing.is_empty() {
                        return;
                    }
                }
                more = &mut listed, if !is_listed => (places, is_listed) = (more, true),
                else => return,
            }
        }
    }

    /// The hosts on which the scheduler knows VMs of the family.
    async fn list_holders(&self, family: Uuid) -> Vec<Place> {
        match timeout(PATIENCE, self.tickets.list_family(family)).await {
            Ok(Ok(vms)) => {
                let place = |host: &str, address: String| Some((host.parse().ok()?, address));
                vms.into_iter().filter_map(|vm| place(&vm.host_id, vm.host_address)).collect()
            }
            Ok(Err(error)) => {
                tracing::info!(%family, error = %chain(&error), "the scheduler does not say which hosts have VMs of a family");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Has a host lend what it has of the layers, and connects to its pager. None: it has none.
    async fn ask_for_layers(&self, sought: &Sought, host: Uuid, address: String) -> Option<Found> {
        let refused = |error: &dyn std::error::Error| {
            tracing::info!(%host, address, error = %chain(error), "a host does not take the place of a lender");
        };
        let family = sought.lender.of.family;
        let request = LendLayersRequest {
            family: family.to_string(),
            layers: sought.layers.iter().map(ToString::to_string).collect(),
            host_id: self.tickets.host_id().to_owned(),
            to_host_id: host.to_string(),
        };
        let client = self.settings.peers.client(&address);
        let mut client = client.inspect_err(|error| refused(error)).ok()?;
        let answer = timeout(PATIENCE, client.lend_layers(request)).await;
        let answer = answer.inspect_err(|late| refused(late)).ok()?;
        let answer = answer.inspect_err(|status| refused(status)).ok()?.into_inner();
        let lent = check(answer, &sought.layers).inspect_err(|error| refused(error)).ok()?;
        let (lease, credential, layers) = lent;
        let lender = Lender { address: address.clone(), lease, credential, of: Of { family, host } };
        let dialled = timeout(PATIENCE, lender.dial()).await.inspect_err(|late| refused(late)).ok()?;
        let connections = dialled.inspect_err(|error| refused(error)).ok()?;
        Some(Found { lender, layers, connections })
    }
}

/// Checks what a host says that it lends of these layers.
fn check(answer: LendLayersResponse, sought: &[Id]) -> Result<(Uuid, Credential, Vec<Id>), ReceiveError> {
    let field = ReceiveError::field;
    let credential = ReceiveError::credential(answer.lease_certificate, answer.lease_key)?;
    let mut seen = HashSet::new();
    let layer = |place: &u32| sought.get(*place as usize).filter(|layer| seen.insert(*layer)).cloned();
    let layers: Option<Vec<Id>> = answer.held.iter().map(layer).collect();
    let layers = layers.filter(|layers| !layers.is_empty());
    let layers =
        layers.ok_or_else(|| field("list of layers that are held", &format!("{:?}", answer.held)))?;
    Ok((ReceiveError::uuid("lease", &answer.lease)?, credential, layers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_control::pager::CREDENTIAL_MAX_BYTES;

    #[test]
    fn what_a_host_says_that_it_lends_is_checked() {
        let sought = ["a", "b", "c"].map(|name| Id::try_from(name.to_owned()).unwrap());
        let lease = Uuid::from_u128(7);
        let answer = |held: &[u32]| LendLayersResponse {
            held: held.to_vec(),
            lease: lease.to_string(),
            lease_certificate: vec![1],
            lease_key: vec![2],
        };
        let (found, _, layers) = check(answer(&[2, 0]), &sought).unwrap();
        assert_eq!((found, &layers[..]), (lease, &[sought[2].clone(), sought[0].clone()][..]));
        // Nothing; one that was not asked for; one twice.
        for held in [&[][..], &[3], &[1, 1]] {
            assert!(check(answer(held), &sought).is_err(), "{held:?}");
        }
        let wrong: [fn(&mut LendLayersResponse); 4] = [
            |answer| answer.lease = "1".into(),
            |answer| answer.lease_key.clear(),
            |answer| answer.lease_certificate = vec![0; CREDENTIAL_MAX_BYTES + 1],
            |answer| answer.lease_certificate.clear(),
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            let mut changed = answer(&[0]);
            change(&mut changed);
            assert!(check(changed, &sought).is_err(), "{number}");
        }
    }
}
