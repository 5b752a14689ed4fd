//! What hosts say of a family when one has clones made on the others.

use crate::{
    plan::address::FamilyNet,
    vms::{
        clone::Source,
        error::Error,
        host::Host,
        members_data::{
            error::TellError,
            told::{Came, OnHost, Place, Told},
        },
        remote_data::{error::ReceiveError, place::There},
    },
};
use patina_daemon::chain;
use patina_proto::v1::{FamilyMembers, HostInfo};
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

impl Host {
    /// Clones are to be made on these hosts: what all of them are told. None: without `--overlay`.
    ///
    /// # Errors
    /// The family's network cannot be made.
    pub(in crate::vms) async fn announce(
        self: &Arc<Self>,
        source: &Source,
        there: &[There],
        infos: &HashMap<String, HostInfo>,
    ) -> Result<Option<FamilyMembers>, crate::net::NetError> {
        let Some(members) = &self.members else { return Ok(None) };
        let (family, net) = (source.parent.family, source.parent.net);
        self.net.reach(net, members.underlay).await?;
        let on_host = |there: &There| {
            let info = infos.get(&there.place.host_id)?;
            let place = Place { address: info.address.clone(), overlay: info.overlay.parse().ok()? };
            let vmids = there.vmids.iter().copied().collect();
            Some(OnHost { host: there.place.host_id.parse().ok()?, place, vmids })
        };
        let there = there.iter().filter_map(on_host).collect();
        let told = {
            let mut book = members.book();
            book.announce(family, net, self.own_vmids(family, net), there);
            book.tell(family)
        };
        // A vmmd that is killed from now on leaves ways to clones that may never come. The next one
        // asks the hosts that are written down, and removes what they do not have.
        self.save_members(family).await;
        self.route(family).await?;
        Ok(Some(told.message()))
    }

    /// A call for clones has been answered, or has failed.
    pub(in crate::vms) async fn answered(
        self: &Arc<Self>,
        source: &Source,
        there: &There,
        said: Option<FamilyMembers>,
    ) {
        let (Some(members), Ok(host)) = (&self.members, there.place.host_id.parse::<Uuid>()) else { return };
        let family = source.parent.family;
        {
            let mut book = members.book();
            match said.map(Told::check) {
                Some(Ok(told)) if told.family == family && told.speaker.host == host => {
                    if let Err(error) = book.hear(&told, Came::AsAnswer) {
                        tracing::warn!(%host, error = %chain(&error), "what a host says of its clones is not used");
                    }
                }
                Some(Ok(_)) => tracing::warn!(%host, "a host says what is not its own, and is not heard"),
                Some(Err(error)) => {
                    tracing::warn!(%host, error = %chain(&error), "what a host says of its clones is not used");
                }
                None => {}
            }
            book.answered(family, host, &there.vmids);
        }
        self.follow(family).await;
        self.members_changed();
    }

    /// Whether clones that another host has made here can be in one network with its own.
    ///
    /// # Errors
    /// Only one of the hosts has `--overlay`, or their ports differ.
    pub(in crate::vms) fn fits_overlay(&self, said: Option<&Told>) -> Result<(), ReceiveError> {
        match (&self.members, said) {
            (None, None) => Ok(()),
            (Some(_), None) => Err(ReceiveError::CallerAlone),
            (None, Some(_)) => Err(ReceiveError::CalledAlone),
            (Some(_), Some(told)) => Ok(self.check_port(told)?),
        }
    }

    pub(super) fn check_port(&self, told: &Told) -> Result<(), TellError> {
        let own = self.members.as_ref().ok_or(TellError::NoOverlay)?.overlay();
        let theirs = told.speaker.place.overlay;
        if theirs.port() == own.port() { Ok(()) } else { Err(TellError::Port { theirs, own }) }
    }

    /// Clones of a family of another host are about to be made here: from now on what is for the
    /// family's VMs elsewhere goes there.
    ///
    /// # Errors
    /// What the other host says cannot be, or the family's network cannot be changed.
    pub(in crate::vms) async fn hear_with_clones(
        self: &Arc<Self>,
        net: FamilyNet,
        said: Option<&Told>,
    ) -> Result<(), Error> {
        let (Some(members), Some(told)) = (&self.members, said) else { return Ok(()) };
        let family = told.family;
        {
            let mut book = members.book();
            book.join(family, net, self.own_vmids(family, net));
            book.hear(told, Came::WithClones).map_err(ReceiveError::from)?;
        }
        self.route(family).await?;
        self.save_members(family).await;
        self.members_changed();
        Ok(())
    }

    /// What the calling host hears with the outcomes of its clones.
    pub(crate) fn members_of(&self, family: Uuid) -> Option<FamilyMembers> {
        let mut book = self.members.as_ref()?.book();
        if let Some(net) = book.net(family) {
            self.note_own(&mut book, family, net);
        }
        Some(book.tell(family).message())
    }
}
