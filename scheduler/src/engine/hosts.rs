//! Calls of hosts, and of operators about hosts.

use super::{
    Engine, ORDERS_MAX,
    message::{Answer, Gone, KillOrder, Message, Query, Refusal},
    noted,
};
use crate::core::{
    api::{Beat, Command, HostChange, HostInfo, Present, VmidDemand},
    family::FamilyVm,
    record::Scheduling,
    ticket::{HostId, VmEnd},
};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use uuid::Uuid;

impl Engine {
    /// Registers a host: the epoch, and its orders. When these end, the registration is over.
    pub async fn host_up(
        &self,
        info: HostInfo,
        present: Present,
    ) -> Result<(u64, mpsc::Receiver<KillOrder>), Refusal> {
        let (sender, orders) = mpsc::channel(ORDERS_MAX);
        let command = |waiter| Command::HostUp { waiter, info, present };
        match self.put(None, Some(sender), command).await? {
            Answer::Registered(epoch) => Ok((epoch, orders)),
            _ => Err(Refusal::Confused),
        }
    }

    /// An operator wants something else of a host.
    pub async fn set_scheduling(&self, host: HostId, scheduling: Scheduling) -> Result<HostChange, Refusal> {
        let command = |waiter| Command::SetScheduling { waiter, host, scheduling };
        changed(self.call(None, command).await?)
    }

    /// An operator gives up a host that is silent.
    pub async fn fence_host(&self, host: HostId) -> Result<HostChange, Refusal> {
        changed(self.call(None, |waiter| Command::FenceHost { waiter, host }).await?)
    }

    /// A host lives, and says something of itself.
    pub async fn host_beat(&self, host: HostId, epoch: u64, beat: Beat) -> Result<(), Refusal> {
        self.send(Message::Beat(host, epoch, beat)).await
    }

    /// A host's connection has ended.
    pub fn host_down(&self, host: HostId, epoch: u64) {
        self.gone(Gone::Host(host, epoch));
    }

    /// Clones have ended: ticket, vmid, how; and the masters of families.
    pub async fn ended(
        &self,
        host: HostId,
        epoch: u64,
        clones: Vec<(Uuid, u32, VmEnd)>,
        masters: Vec<Uuid>,
    ) -> Result<(), Refusal> {
        let command = |waiter| Command::Ended { waiter, host, epoch, clones, masters };
        noted(self.put(None, None, command).await?)
    }

    /// A host reserves vmids: the first of them, and how many.
    pub async fn reserve_vmids(&self, demand: VmidDemand) -> Result<(u32, u32), Refusal> {
        match self.call(None, |waiter| Command::ReserveVmids(waiter, demand)).await? {
            Answer::Vmids { first, count } => Ok((first, count)),
            _ => Err(Refusal::Confused),
        }
    }

    /// Whether a host may call for a family: VMs of it are there, as far as is known, or none is
    /// known to be on another host.
    pub async fn may_speak(&self, host: HostId, family: Uuid) -> Result<bool, Refusal> {
        self.ask(|reply| Query::Speaks { host, family, reply }).await
    }

    /// The VMs of a family on all hosts, by vmid.
    pub async fn family(&self, family: Uuid) -> Result<BTreeMap<u32, FamilyVm>, Refusal> {
        self.ask(|reply| Query::Family(family, reply)).await
    }
}

fn changed(answer: Answer) -> Result<HostChange, Refusal> {
    match answer {
        Answer::Host(change) => Ok(*change),
        _ => Err(Refusal::Confused),
    }
}
