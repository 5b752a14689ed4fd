//! Families over several hosts: each host tells the others which VMs of a family run on it, and
//! makes the family's network so that frames for VMs elsewhere go there. Without `--overlay`
//! nothing of this happens.
//!
//! ```text
//!  clones for other hosts ▶ reach, announce ▶ route ── SpawnClones ──▶ join, hear ▶ route ▶ start
//!  a VM here begins, ends ▶ what is ours? ──────────── TellFamily ───▶ hear ▶ route ▶ answer
//! ```
//!
//! - [`spawn`]: what goes with clones on other hosts. [`tell`]: what is told later, until it is
//!   heard. [`routes`]: the network.

mod routes;
mod spawn;
mod tell;

use super::{
    host::Host,
    members_data::{
        book::Book,
        told::{OnHost, Place, Version},
    },
};
use crate::{
    plan::address::FamilyNet,
    store::members::{SavedFamily, SavedHost},
};
use patina_daemon::chain;
use std::{collections::BTreeSet, sync::Arc};
use tokio::task::spawn_blocking;
use uuid::Uuid;

impl Host {
    /// The family's VMs here, that run, are being made, or may run.
    fn own_vmids(&self, family: Uuid, net: FamilyNet) -> BTreeSet<u32> {
        let mut own = self.table.living(net.index, family);
        let broken = self.table.broken();
        let records = broken.iter().filter_map(|(_, broken)| broken.record.as_ref());
        let may_run = records.filter(|record| record.family == family && record.ended.is_none());
        own.extend(may_run.map(|record| record.vmid));
        own
    }

    /// Other hosts may have to be told.
    pub(super) fn members_changed(&self) {
        if let Some(members) = &self.members {
            members.changed.notify_one();
        }
    }

    /// Notes which VMs of a family there are here now; whether that is news. What the table says
    /// must not get old before it is noted: so both are done under the book's lock.
    fn note_own(&self, book: &mut Book, family: Uuid, net: FamilyNet) -> bool {
        book.set_own(family, self.own_vmids(family, net))
    }

    /// Takes up the families that an earlier vmmd had on several hosts, now that all that runs here
    /// is known. Their networks are made again where they are not as they should be.
    pub(super) async fn restore_members(self: &Arc<Self>) {
        let Some(members) = &self.members else { return };
        let host = Arc::clone(self);
        let saved = match spawn_blocking(move || host.state.members()).await {
            Ok(Ok(saved)) => saved,
            Ok(Err(error)) => {
                tracing::error!(error = %chain(&error), "which VMs other hosts have is known when they tell again");
                return;
            }
            Err(_) => return,
        };
        for (family, SavedFamily { net, hosts, .. }) in saved {
            let hosts = hosts.into_iter().map(restored).collect();
            let is_here = {
                let mut book = members.book();
                let own = self.own_vmids(family, net);
                let is_here = !own.is_empty();
                book.restore(family, net, own, hosts);
                is_here
            };
            if is_here && let Err(error) = self.net.reach(net, members.underlay).await {
                tracing::error!(%family, error = %chain(&error), "the family's VMs do not reach those on other hosts");
            }
            self.follow(family).await;
        }
        members.changed.notify_one();
    }

    /// Makes the family's network as the book says, and writes the book down. What fails is logged.
    async fn follow(self: &Arc<Self>, family: Uuid) {
        if let Err(error) = self.route(family).await {
            tracing::error!(%family, error = %chain(&error), "the family's VMs do not reach all on other hosts");
        }
        self.save_members(family).await;
    }

    async fn save_members(self: &Arc<Self>, family: Uuid) {
        let host = Arc::clone(self);
        let save = move || {
            let Some(members) = &host.members else { return Ok(()) };
            // Of two, the later one writes what is newer.
            let _turn = patina_daemon::lock(&members.saving);
            let saved = members.book().saved(family);
            match saved {
                Some((net, hosts)) => {
                    let hosts = hosts.into_iter().map(saved_host).collect();
                    host.state.save_members(family, &SavedFamily::new(net, hosts))
                }
                None => host.state.forget_members(family),
            }
        };
        match spawn_blocking(save).await {
            Ok(Err(error)) => {
                tracing::error!(%family, error = %chain(&error), "the next vmmd knows less of the family's VMs on other hosts");
            }
            Ok(Ok(())) => {}
            Err(error) => tracing::debug!(error = %chain(&error), "vmmd stops"),
        }
    }
}

fn restored(saved: SavedHost) -> (OnHost, Version) {
    let place = Place { address: saved.address, overlay: saved.overlay };
    let on_host = OnHost { host: saved.host, place, vmids: saved.vmids };
    (on_host, Version { start: saved.start, number: saved.number })
}

fn saved_host((on_host, version): (OnHost, Version)) -> SavedHost {
    SavedHost {
        host: on_host.host,
        address: on_host.place.address,
        overlay: on_host.place.overlay,
        vmids: on_host.vmids,
        start: version.start,
        number: version.number,
    }
}
