//! Makes clones of a VM of another host.
//!
//! ```text
//!  fits? ▶ images by content ┬▶ network ▶ names ▶ ticket used? ┬▶ each: start ▶ record
//!                            └▶ memory described ──────────────┘
//! ```
//!
//! What the other host sends is checked as a snapshot is. From the ticket on, each clone has an
//! outcome of its own, as in every call for clones.

use crate::{
    pager::lender::{Lender, Of},
    plan::{
        address::{FamilyNet, VMID_MAX},
        names::VmName,
    },
    process::{
        control_client::PATIENCE,
        generation::{Generation, PrefaultList},
    },
    store::record::{Origin, Record},
    vms::{
        clone::{COUNT, FilledSlot, Outcome, Source},
        create::{Master, record},
        error::Error,
        fetched_data::shelf::Held,
        host::Host,
        members_data::told::Told,
        pool::OnTheWay,
        remote_data::error::ReceiveError,
        snapshot_data::fit,
        tickets::Wanted,
        warm_up::For,
    },
};
use patina_control::pager::Credential;
use patina_proto::v1::SpawnClones;
use patina_snapshot::manifest::Manifest;
use scheduler::host::admission::Admitted;
use std::{path::PathBuf, sync::Arc};
use uuid::Uuid;

/// Whether vmids that were not used can be given again: never by this host.
const IS_UNUSED: bool = false;

/// Clones of a VM of another host that may be made.
struct Admissible {
    slots: Vec<FilledSlot>,
    admitted: Admitted,
    ticket: Uuid,
    on_the_way: Vec<OnTheWay>,
}

/// A call of another host, checked.
#[derive(Debug)]
pub struct SpawnCall {
    family: Uuid,
    net: FamilyNet,
    master: VmName,
    parent_vmid: u32,
    host: Uuid,
    to_host: Uuid,
    ticket: Uuid,
    ticket_epoch: u64,
    vmids: Vec<u32>,
    address: String,
    lease: Uuid,
    credential: Credential,
    manifest: Manifest,
    state: Vec<u8>,
    members: Option<Told>,
}

impl SpawnCall {
    /// The host that calls.
    #[must_use]
    pub fn host(&self) -> Uuid {
        self.host
    }

    /// The family of the clones.
    #[must_use]
    pub fn family(&self) -> Uuid {
        self.family
    }

    /// Checks what came. May take long for a large VM.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(call: SpawnClones, manifest: &[u8], state: Vec<u8>) -> Result<Self, ReceiveError> {
        let (field, uuid) = (ReceiveError::field, ReceiveError::uuid);
        let mut vmids = call.vmids;
        vmids.sort_unstable();
        let ascends = vmids.windows(2).all(|pair| pair[0] < pair[1]);
        let in_range =
            vmids.first().is_some_and(|vmid| *vmid > 0) && vmids.last().is_some_and(|vmid| *vmid <= VMID_MAX);
        let is_right = u32::try_from(vmids.len()).is_ok_and(|count| COUNT.contains(&count));
        if !(ascends && in_range && is_right) {
            return Err(field("list of vmids", &format!("{vmids:?}")));
        }
        let index = u16::try_from(call.network_index)
            .map_err(|_| field("network's number", &call.network_index.to_string()))?;
        let base = call.network.parse().map_err(|_| field("network", &call.network))?;
        let manifest = Manifest::decode(manifest)?;
        if blake3::hash(&state) != manifest.state.digest {
            return Err(ReceiveError::State);
        }
        let credential = ReceiveError::credential(call.lease_certificate, call.lease_key)?;
        let (family, host) = (uuid("family", &call.family)?, uuid("host", &call.host_id)?);
        let members = call.members.map(Told::check).transpose()?;
        if members.as_ref().is_some_and(|told| told.family != family || told.speaker.host != host) {
            return Err(field("list of members", "of another family or host"));
        }
        Ok(Self {
            family,
            net: FamilyNet { index, base },
            master: VmName::parse(&call.master).map_err(|_| field("master's name", &call.master))?,
            parent_vmid: call.parent_vmid,
            host,
            to_host: uuid("called host", &call.to_host_id)?,
            ticket: uuid("ticket", &call.ticket)?,
            ticket_epoch: call.ticket_epoch,
            vmids,
            address: call.address,
            lease: uuid("lease", &call.lease)?,
            credential,
            manifest,
            state,
            members,
        })
    }
}

impl Host {
    /// Makes clones of a VM of another host. The call arrived at `arrived_ns`.
    ///
    /// # Errors
    /// This host cannot run them, or the ticket cannot be used. Then nothing is left.
    pub async fn spawn_here(
        self: &Arc<Self>,
        call: SpawnCall,
        arrived_ns: u64,
    ) -> Result<Vec<Outcome>, Error> {
        // In a task of its own: a host that goes away does not cut the steps, or their undoing, in
        // half.
        let host = Arc::clone(self);
        tokio::spawn(host.spawn_whole(call, arrived_ns)).await.map_err(|_| Error::Stopping)?
    }

    /// Whether another host has called this one. One that tells the path of a Unix socket is
    /// reached on its own machine only.
    ///
    /// # Errors
    /// The call was for another host.
    pub(super) fn check_called(&self, wanted: Uuid) -> Result<(), ReceiveError> {
        let own = self.tickets.host_id();
        if own == wanted.to_string() {
            return Ok(());
        }
        Err(ReceiveError::OtherHost { wanted, own: own.to_owned() })
    }

    async fn spawn_whole(self: Arc<Self>, call: SpawnCall, arrived_ns: u64) -> Result<Vec<Outcome>, Error> {
        self.adopted(PATIENCE).await?;
        self.check_called(call.to_host)?;
        if !crate::pager::Pager::is_supported() {
            return Err(ReceiveError::Kernel.into());
        }
        self.fits_overlay(call.members.as_ref())?;
        let host = Arc::clone(&self);
        let look = move || {
            let parent = host.parent_of(&call)?;
            Ok((call, parent))
        };
        // What came from another host stays there until a VM has it.
        let (call, (parent, _held)) = self.image_disks.blocking(look).await?;
        // Their memory is described to the pager meanwhile: if they are not admitted, it is let go
        // of.
        let (admitted, received) =
            tokio::join!(self.admit_clones_of(&parent, &call), self.receive_generation(&call));
        let Admissible { slots, admitted, ticket, on_the_way } = admitted?;
        let (generation, prefault_list) = match received {
            Ok(received) => received,
            Err(error) => {
                admitted.give_back().await;
                self.return_clone_slots(&parent, slots, IS_UNUSED).await;
                return Err(error);
            }
        };
        let (parent_host, ticket) = (Some(call.host), Some(ticket));
        let reservations = admitted.into_reservations();
        let source =
            Source { parent, generation, prefault_list, parent_host, ticket, request: None, arrived_ns };
        let outcomes = self.make_clones(&source, slots, reservations, on_the_way).await;
        let failed = outcomes.iter().filter(|outcome| outcome.made.is_err()).count();
        self.metrics.clones((outcomes.len() - failed) as u64, failed as u64);
        tracing::info!(
            family = %source.parent.family,
            master = source.parent.master(),
            from = call.address,
            clones = outcomes.len() - failed,
            failed,
            "made clones of a VM of another host"
        );
        Ok(outcomes)
    }

    /// Has the clones' family live here, and uses their part of the ticket.
    ///
    /// # Errors
    /// There is no room, or no such ticket. Then nothing is left.
    async fn admit_clones_of(
        self: &Arc<Self>,
        parent: &Record,
        call: &SpawnCall,
    ) -> Result<Admissible, Error> {
        let count = u32::try_from(call.vmids.len()).unwrap_or(u32::MAX);
        self.join_family_of(parent, &call.vmids).await?;
        // From here on each clone that is not made leaves the family.
        let slots = match self.table.take_given_slots(parent.master(), &call.vmids) {
            Ok(slots) => slots,
            Err(error) => {
                for vmid in &call.vmids {
                    self.leave_family(parent.net, parent.family, *vmid).await;
                }
                return Err(error);
            }
        };
        let on_the_way = self.on_the_way(count);
        let (id, epoch, parent_host) = (call.ticket, call.ticket_epoch, call.host);
        let wanted = Wanted::Part { id, epoch, parent_host };
        let (admitted, ticket) = match self.tickets.admit(parent, wanted, call.vmids.clone()).await {
            Ok(admitted) => admitted,
            Err((error, _)) => {
                self.refuse_clone_slots(parent, slots, IS_UNUSED).await;
                return Err(error);
            }
        };
        if let Err(error) = self.hear_with_clones(parent.net, call.members.as_ref()).await {
            admitted.give_back().await;
            self.refuse_clone_slots(parent, slots, IS_UNUSED).await;
            return Err(error);
        }
        let slots = self.fill_clone_slots(parent, slots, For::NewFamily);
        Ok(Admissible { slots, admitted, ticket, on_the_way })
    }

    /// The VM that is cloned, as a record of it would be here. May block.
    fn parent_of(&self, call: &SpawnCall) -> Result<(Record, [Option<Held>; 2]), Error> {
        let of = &call.manifest.description;
        let place = PathBuf::from(format!("{} of {}", call.master.as_str(), call.address));
        let needs = fit::check_state(&place, &call.state)?;
        self.settings.range.admit(call.net).map_err(ReceiveError::Range)?;
        let kernel = self.find_image_of_peer(&place, "kernel", &of.kernel)?;
        let rootfs = self.find_image_of_peer(&place, "rootfs", &of.rootfs)?;
        let master = Master {
            vcpus: of.vcpus,
            memory_mib: of.memory_mib,
            cmdline: of.cmdline.clone(),
            ports: Vec::new(),
            kernel: kernel.file,
            rootfs: rootfs.file,
            snapshot: None,
            cpu_baseline: Vec::new(),
            needs: fit::of_record(&needs),
        };
        let name = VmName::of_clone(call.master.as_str(), call.parent_vmid);
        let master_name = call.master.as_str().to_owned();
        let parent_vmid = call.parent_vmid;
        let origin = Origin { parent_vmid, master: master_name, parent_host: None, request: None };
        let parent = record(&name, call.family, call.net, master);
        let parent = Record { vmid: call.parent_vmid, origin: Some(origin), ..parent };
        Ok((parent, [kernel.held, rootfs.held]))
    }

    async fn receive_generation(&self, call: &SpawnCall) -> Result<(Generation, Arc<PrefaultList>), Error> {
        let (address, lease, credential) = (call.address.clone(), call.lease, call.credential.clone());
        let of = Of { family: call.family, host: call.host };
        let lender = Lender { address, lease, credential, of };
        let generation = self.pager.generation_of_peer(&call.manifest, &call.state, lender);
        let generation = generation.await.map_err(ReceiveError::from)?;
        let list = &call.manifest.description.prefault_list;
        let list =
            if list.is_empty() { Arc::clone(&self.no_list) } else { Arc::new(PrefaultList::of(list)?) };
        Ok((generation, list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vms::snapshot_data::known::tests::{MEMORY_MIB, description};
    use blake3::Hash;
    use patina_control::pager::CREDENTIAL_MAX_BYTES;
    use patina_snapshot::manifest::{Layer, Runs, StateRef};

    fn manifest(state: &[u8]) -> Vec<u8> {
        let runs = Runs::new(u64::from(MEMORY_MIB) << 4, &[(3, Hash::from_bytes([7; 32]))]).unwrap();
        let state = StateRef { bytes: state.len() as u64, digest: blake3::hash(state) };
        let layers = vec![Arc::new(Layer::new(runs))];
        Manifest { description: description(), state, layers, optional: Vec::new() }.encode().unwrap()
    }

    fn call() -> SpawnClones {
        SpawnClones {
            family: Uuid::from_u128(1).to_string(),
            network_index: 3,
            network: "100.64.48.0".into(),
            master: "web".into(),
            parent_vmid: 0,
            ticket: Uuid::from_u128(2).to_string(),
            ticket_epoch: 0,
            vmids: vec![9, 4],
            address: "unix:/s".into(),
            host_id: Uuid::from_u128(4).to_string(),
            to_host_id: Uuid::from_u128(5).to_string(),
            members: None,
            holders: Vec::new(),
            lease: Uuid::from_u128(3).to_string(),
            lease_certificate: vec![1],
            lease_key: vec![2],
        }
    }

    #[test]
    fn a_call_of_another_host_is_checked_whole() {
        let manifest = manifest(b"state");
        let check = |call| SpawnCall::check(call, &manifest, b"state".to_vec());
        let good = check(call()).unwrap();
        assert_eq!((good.vmids, good.net.index), (vec![4, 9], 3));
        let wrong: [fn(&mut SpawnClones); 13] = [
            |call| call.family = "web".into(),
            |call| call.network = "100.64.48".into(),
            |call| call.network_index = 1 << 16,
            |call| call.master = "../web".into(),
            |call| call.ticket.clear(),
            |call| call.host_id.clear(),
            |call| call.to_host_id.clear(),
            |call| call.lease = "1".into(),
            |call| call.lease_key.clear(),
            |call| call.lease_certificate = vec![0; CREDENTIAL_MAX_BYTES + 1],
            |call| call.vmids.clear(),
            // Two VMs with one address; a master's; one without an address.
            |call| call.vmids = vec![4, 4],
            |call| call.vmids = vec![0, VMID_MAX + 1],
        ];
        for (number, change) in wrong.into_iter().enumerate() {
            let mut changed = call();
            change(&mut changed);
            let error = check(changed).unwrap_err();
            assert!(matches!(error, ReceiveError::Field { .. }), "{number}: {error}");
        }
        for vmids in [vec![0], vec![VMID_MAX + 1], (1..=257).collect()] {
            assert!(check(SpawnClones { vmids, ..call() }).is_err());
        }
        let long = SpawnClones { family: "x".repeat(100_000), ..call() };
        assert!(check(long).unwrap_err().to_string().len() < 200);
        let damaged = SpawnCall::check(call(), &manifest, b"State".to_vec()).unwrap_err();
        assert!(matches!(damaged, ReceiveError::State));
        let cut = SpawnCall::check(call(), &manifest[..manifest.len() - 1], b"state".to_vec()).unwrap_err();
        assert!(matches!(cut, ReceiveError::Manifest(_)));
    }
}
