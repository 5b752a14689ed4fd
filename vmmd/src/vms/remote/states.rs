//! The VMs of a family on all hosts, for a guest that lists them. The scheduler knows which VMs
//! live where; their hosts say in which state they are.

use crate::{
    plan::lifecycle::Phase,
    process::control_client::PATIENCE,
    store::record::Record,
    vms::{error::Error, host::Host},
};
use futures::future::join_all;
use patina_daemon::chain;
use patina_proto::v1::{FamilyVm, HostState, ListStatesRequest, VmState};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use tokio::time::timeout;
use uuid::Uuid;

/// How long another host may take to answer before its VMs count as not reached.
const STATES_PATIENCE: Duration = Duration::from_secs(2);

/// A VM of another host.
#[derive(Debug)]
pub struct Elsewhere {
    /// The VM, as the scheduler knows it.
    pub vm: FamilyVm,
    /// Its state; None: its host does not answer.
    pub state: Option<VmState>,
}

/// The states of the VMs of a host, by vmid; None: it does not answer.
type States = Option<HashMap<u32, VmState>>;

impl Host {
    /// The VMs of a family that live on other hosts.
    ///
    /// # Errors
    /// The family may have VMs on other hosts, and the scheduler does not answer.
    pub(in crate::vms) async fn family_elsewhere(&self, of: &Record) -> Result<Vec<Elsewhere>, Error> {
        if !self.table.is_shared(of.net.index, of.family) {
            return Ok(Vec::new());
        }
        let vms = self.tickets.list_family(of.family).await?;
        let mut by_host: BTreeMap<String, Vec<FamilyVm>> = BTreeMap::new();
        for vm in vms.into_iter().filter(|vm| vm.host_id != self.tickets.host_id()) {
            by_host.entry(vm.host_id.clone()).or_default().push(vm);
        }
        let there = by_host.into_values().map(async |vms| {
            let states = match vms.first() {
                Some(first) if first.host_state() == HostState::Up => {
                    self.states_there(of.family, first).await
                }
                _ => None,
            };
            with_states(vms, &states)
        });
        Ok(join_all(there).await.into_iter().flatten().collect())
    }

    /// What the host of a VM says.
    async fn states_there(&self, family: Uuid, of: &FamilyVm) -> States {
        let refused = |error: &dyn std::error::Error| {
            tracing::info!(host = of.host, error = %chain(error), "a host does not say how VMs of a family are");
        };
        let client = self.settings.peers.client(&of.host_address);
        let mut client = client.inspect_err(|error| refused(error)).ok()?;
        let request = ListStatesRequest {
            family: family.to_string(),
            host_id: self.tickets.host_id().to_owned(),
            to_host_id: of.host_id.clone(),
        };
        let answer = timeout(STATES_PATIENCE, client.list_states(request)).await;
        let answer =
            answer.inspect_err(|late| refused(late)).ok()?.inspect_err(|error| refused(error)).ok()?;
        Some(answer.into_inner().vms.into_iter().map(|vm| (vm.vmid, vm.state())).collect())
    }

    /// For another host: the VMs of a family that run here.
    ///
    /// # Errors
    /// The call is for another host; or this one does not know its VMs yet.
    pub(crate) async fn states_here(&self, family: Uuid, to: Uuid) -> Result<Vec<(u32, VmState)>, Error> {
        self.adopted(PATIENCE).await?;
        self.check_called(to)?;
        let of_family = self.table.all().into_iter().filter(|vm| vm.record.family == family);
        let state = |phase: &Phase| match phase {
            Phase::Booting => Some(VmState::Booting),
            Phase::Ready => Some(VmState::Ready),
            Phase::Ended(_) => None,
        };
        Ok(of_family.filter_map(|vm| Some((vm.record.vmid, state(&vm.status().phase)?))).collect())
    }
}

/// The VMs of one host that live. What their host says is newer than what the scheduler knows.
fn with_states(vms: Vec<FamilyVm>, states: &States) -> Vec<Elsewhere> {
    let with_state = |vm: FamilyVm| match states {
        Some(states) => states.get(&vm.vmid).map(|state| Elsewhere { vm, state: Some(*state) }),
        None => Some(Elsewhere { vm, state: None }),
    };
    vms.into_iter().filter_map(with_state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_the_state_that_its_host_says() {
        let vm = |vmid| FamilyVm { vmid, ..FamilyVm::default() };
        let seen = |states: &States| -> Vec<_> {
            with_states(vec![vm(1), vm(2)], states).iter().map(|there| (there.vm.vmid, there.state)).collect()
        };
        assert_eq!(seen(&None), [(1, None), (2, None)]);
        // One has just ended, and one that the scheduler does not know yet has started.
        let states = HashMap::from([(2, VmState::Booting), (3, VmState::Ready)]);
        assert_eq!(seen(&Some(states)), [(2, Some(VmState::Booting))]);
    }
}
