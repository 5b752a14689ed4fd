//! Checks requests field by field. Everything that passes is within its limits.

mod facts;

pub use facts::facts;

use super::status;
use crate::core::{
    api::{
        Beat, Demand, HostInfo, Image, Listing, Named, Present, Running, TICKET_VMS_MAX, Targets, UnixMs,
        UseBy, VMIDS_MAX, VmidDemand,
    },
    present::Identity,
    record::Scheduling,
    ticket::{Policy, VmEnd},
};
use patina_proto::v1;
use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc};
use tonic::Status;
use uuid::Uuid;

/// Longest of names, numbers of requests, and so on.
const TEXT_MAX_CHARS: usize = 64;
/// Longest of addresses and reasons.
const LONG_TEXT_MAX_CHARS: usize = 256;
/// Most CPUs of a ticket.
const CPUS: RangeInclusive<u32> = 1..=65_536;
/// CPUs of a VM.
const VCPUS: RangeInclusive<u32> = 1..=64;
/// Memory of a VM.
const MEMORY_MIB: RangeInclusive<u32> = 1..=1_048_576;
/// Longest that a request waits.
const WAIT_MAX_MS: u64 = 24 * 3600 * 1000;
/// Longest that a ticket may stay unused.
const TTL_MAX_MS: u64 = 30 * WAIT_MAX_MS;
/// Most hosts that a request names.
const HOSTS_MAX: usize = 256;
/// CPUs and memory of a host, and most of its VMs.
const HOST_CPUS: RangeInclusive<u32> = 1..=65_536;
const HOST_MEMORY_MIB: RangeInclusive<u64> = 1..=(1 << 30);
const HOST_VMS: RangeInclusive<u32> = 0..=65_536;
/// What may be granted for each 100 that there are.
const PERCENT: RangeInclusive<u32> = 0..=102_400;
/// Most clones, tickets of clones that are being made, or masters, that a host registers with.
const CLONES_MAX: usize = 16_384;
/// Most clones in one message about their end.
const ENDED_MAX: usize = 1024;
/// Most clones that one call ends by number.
const KILL_MAX: usize = 1024;
/// The last meeting of a ticket: numbers that every language has.
const ROUND_MAX: u64 = 1 << 53;
/// Most kernels and root file systems that a host names.
const HOST_IMAGES_MAX: usize = 64;
/// Most of those that a request names.
const REQUEST_IMAGES_MAX: usize = 8;
/// Most entries on a page.
pub(super) const PAGE_MAX: usize = 1000;

/// Collects what is wrong, so that the caller learns all of it at once.
#[derive(Default)]
pub(super) struct Check(Vec<(String, String)>);

impl Check {
    /// What was checked, or everything that is wrong.
    pub(super) fn done<T>(self, checked: T) -> Result<T, Status> {
        if self.0.is_empty() { Ok(checked) } else { Err(status::invalid(self.0)) }
    }

    fn wrong(&mut self, field: &str, description: impl Into<String>) {
        self.0.push((field.to_owned(), description.into()));
    }

    pub(super) fn uuid(&mut self, field: &str, text: &str) -> Uuid {
        text.parse().unwrap_or_else(|_| {
            self.wrong(field, "write it as a UUID, like 67e55044-10b1-426f-9247-bb680e5fe0c8");
            Uuid::nil()
        })
    }

    pub(super) fn optional_uuid(&mut self, field: &str, text: &str) -> Option<Uuid> {
        (!text.is_empty()).then(|| self.uuid(field, text))
    }

    fn range<T: PartialOrd + std::fmt::Display>(
        &mut self,
        field: &str,
        value: T,
        range: RangeInclusive<T>,
    ) -> T {
        if !range.contains(&value) {
            self.wrong(field, format!("{value} is not between {} and {}", range.start(), range.end()));
        }
        value
    }

    fn count<T>(&mut self, field: &str, values: &[T], most: usize) {
        if values.len() > most {
            self.wrong(field, format!("{} are more than {most}", values.len()));
        }
    }

    fn masters(&mut self, masters: &v1::Masters) -> BTreeSet<Uuid> {
        self.count("masters.families", &masters.families, CLONES_MAX);
        masters.families.iter().take(CLONES_MAX).map(|id| self.uuid("masters.families", id)).collect()
    }

    /// Kernels and root file systems by their content.
    fn images(&mut self, field: &str, digests: &[Vec<u8>], most: usize) -> BTreeSet<Image> {
        self.count(field, digests, most);
        let image = |digest: &Vec<u8>| {
            digest.as_slice().try_into().unwrap_or_else(|_| {
                self.wrong(field, "write 32 bytes, a BLAKE3 digest");
                Image::default()
            })
        };
        digests.iter().take(most).map(image).collect()
    }

    fn text(&mut self, field: &str, text: String, most: usize) -> String {
        let chars = text.chars().count();
        if chars > most {
            self.wrong(field, format!("{chars} characters are more than {most}"));
        }
        if text.chars().any(char::is_control) {
            self.wrong(field, "control characters are not allowed");
        }
        text
    }

    /// The last meeting that a VM knows of.
    pub(super) fn round(&mut self, field: &str, round: Option<u64>) {
        if let Some(round) = round.filter(|round| *round > ROUND_MAX) {
            self.wrong(field, format!("{round} is more than {ROUND_MAX}"));
        }
    }

    pub(super) fn named(&mut self, field: &str, id: &str, family: &str) -> Named {
        Named { id: self.uuid(field, id), family: self.optional_uuid("family", family) }
    }
}

/// A timeout; 0: none.
pub(super) fn timeout(milliseconds: u64) -> Option<u64> {
    (milliseconds > 0).then_some(milliseconds)
}

/// An epoch; 0: whatever it is.
pub(super) fn epoch(epoch: u64) -> Option<u64> {
    (epoch > 0).then_some(epoch)
}

pub(super) fn demand(request: v1::RequestTicketRequest) -> Result<Demand, Status> {
    let mut check = Check::default();
    let policy = match v1::PlacementPolicy::try_from(request.policy) {
        Ok(v1::PlacementPolicy::Unspecified) => None,
        Ok(v1::PlacementPolicy::Pack) => Some(Policy::Pack),
        Ok(v1::PlacementPolicy::Spread) => Some(Policy::Spread),
        Err(_) => {
            check.wrong("policy", format!("there is no policy {}", request.policy));
            None
        }
    };
    check.count("host_ids", &request.host_ids, HOSTS_MAX);
    let request_id = check.text("request_id", request.request_id, TEXT_MAX_CHARS);
    let vcpus = check.range("vcpus", request.vcpus, VCPUS);
    let demand = Demand {
        family: check.uuid("family", &request.family),
        request_id: (!request_id.is_empty()).then_some(request_id),
        max_cpus: check.range("max_cpus", request.max_cpus, CPUS),
        min_vms: check.range("min_vms", request.min_vms, 1..=TICKET_VMS_MAX),
        min_cpus_per_vm: check.range("min_cpus_per_vm", request.min_cpus_per_vm, VCPUS),
        vcpus,
        memory_mib: check.range("memory_mib", request.memory_mib, MEMORY_MIB),
        timeout_ms: check.range("timeout_ms", request.timeout_ms, 0..=WAIT_MAX_MS),
        hosts: request.host_ids.iter().take(HOSTS_MAX).map(|id| check.uuid("host_ids", id)).collect(),
        prefer: check.optional_uuid("prefer_host_id", &request.prefer_host_id),
        parent: check.optional_uuid("parent_host_id", &request.parent_host_id),
        needs: request.parent_needs.map(|facts| Arc::new(check.facts("parent_needs", facts).host)),
        images: check.images("image_digests", &request.image_digests, REQUEST_IMAGES_MAX),
        policy,
        ttl_ms: timeout(check.range("ttl_ms", request.ttl_ms, 0..=TTL_MAX_MS)),
        use_by: None,
    };
    check.done(demand)
}

/// Clones that were requested by count: a ticket of just their size, granted now or not at all.
pub(super) fn clones(request: v1::AdmitClonesRequest) -> Result<Demand, Status> {
    let mut check = Check::default();
    let request_id = check.text("request_id", request.request_id, TEXT_MAX_CHARS);
    let vcpus = check.range("vcpus", request.vcpus, VCPUS);
    let count = u32::try_from(request.vmids.len()).unwrap_or(u32::MAX);
    check.range("vmids", count, 1..=TICKET_VMS_MAX);
    let use_by = UseBy {
        parent_vmid: request.parent_vmid,
        vmids: request.vmids,
        host_epoch: epoch(request.host_epoch),
    };
    let demand = Demand {
        family: check.uuid("family", &request.family),
        request_id: (!request_id.is_empty()).then_some(request_id),
        max_cpus: count.saturating_mul(vcpus),
        min_vms: count,
        min_cpus_per_vm: vcpus,
        vcpus,
        memory_mib: check.range("memory_mib", request.memory_mib, MEMORY_MIB),
        timeout_ms: 0,
        hosts: vec![check.uuid("host_id", &request.host_id)],
        prefer: None,
        parent: None,
        needs: None,
        images: BTreeSet::new(),
        policy: None,
        ttl_ms: None,
        use_by: Some(use_by),
    };
    check.done(demand)
}

/// How many vmids of which family a host wants.
pub(super) fn vmids(request: v1::ReserveVmidsRequest) -> Result<VmidDemand, Status> {
    let mut check = Check::default();
    let request_id = check.text("request_id", request.request_id, TEXT_MAX_CHARS);
    let demand = VmidDemand {
        family: check.uuid("family", &request.family),
        host: check.uuid("host_id", &request.host_id),
        host_epoch: epoch(request.host_epoch),
        count: check.range("count", request.count, 1..=VMIDS_MAX),
        request: (!request_id.is_empty()).then_some(request_id),
        at_least: request.at_least,
    };
    check.done(demand)
}

/// The family of the clones, if it is given; which clones; and the reason.
pub(super) fn kill(request: v1::KillRequest) -> Result<(Option<Uuid>, Targets, String), Status> {
    let mut check = Check::default();
    let family = check.optional_uuid("family", &request.family);
    check.count("vmids", &request.vmids, KILL_MAX);
    let reason = check.text("reason", request.reason, LONG_TEXT_MAX_CHARS);
    let ticket = check.optional_uuid("ticket", &request.ticket);
    let targets = match (ticket, request.vmids.is_empty()) {
        (Some(ticket), true) => Targets::Ticket(ticket),
        (None, false) => Targets::Vmids(request.vmids),
        _ => {
            check.wrong("vmids", "name vmids or a ticket, and not both");
            Targets::Vmids(Vec::new())
        }
    };
    if ticket.is_none() && family.is_none() {
        check.wrong("family", "name it: vmids are numbers of a family");
    }
    check.done((family, targets, reason))
}

/// Which host is to be granted what.
pub(super) fn scheduling(request: &v1::SetHostSchedulingRequest) -> Result<(Uuid, Scheduling), Status> {
    let mut check = Check::default();
    let host = check.uuid("host_id", &request.host_id);
    let scheduling = match v1::HostScheduling::try_from(request.scheduling) {
        Ok(v1::HostScheduling::Open) => Scheduling::Open,
        Ok(v1::HostScheduling::Cordoned) => Scheduling::Cordoned,
        Ok(v1::HostScheduling::Draining) => Scheduling::Draining,
        Ok(v1::HostScheduling::Unspecified) | Err(_) => {
            check.wrong("scheduling", "say open, cordoned or draining");
            Scheduling::Open
        }
    };
    check.done((host, scheduling))
}

/// What a host says first.
pub(super) fn register(register: v1::Register) -> Result<(HostInfo, Present), Status> {
    let mut check = Check::default();
    let info = register.info.unwrap_or_default();
    let info = HostInfo {
        id: check.uuid("info.id", &info.id),
        name: check.text("info.name", info.name, TEXT_MAX_CHARS),
        address: check.text("info.address", info.address, LONG_TEXT_MAX_CHARS),
        cpus: check.range("info.cpus", info.cpus, HOST_CPUS),
        memory_mib: check.range("info.memory_mib", info.memory_mib, HOST_MEMORY_MIB),
        max_vms: Some(check.range("info.max_vms", info.max_vms, HOST_VMS)).filter(|most| *most > 0),
        cpu_percent: Some(check.range("info.cpu_percent", info.cpu_percent, PERCENT)).filter(|p| *p > 0),
        memory_percent: Some(check.range("info.memory_percent", info.memory_percent, PERCENT))
            .filter(|percent| *percent > 0),
        identity: info.identity.map(|of| Identity {
            instance: check.text("info.identity.instance", of.instance, TEXT_MAX_CHARS),
            boot: check.text("info.identity.boot", of.boot, TEXT_MAX_CHARS),
            machine: check.text("info.identity.machine", of.machine, TEXT_MAX_CHARS),
            folder: check.text("info.identity.folder", of.folder, TEXT_MAX_CHARS),
        }),
        overlay: check.text("info.overlay", info.overlay, TEXT_MAX_CHARS),
        facts: info.facts.map(|facts| Box::new(check.facts("info.facts", facts))),
        network: check.text("info.network", info.network, TEXT_MAX_CHARS),
    };
    check.count("running", &register.running, CLONES_MAX);
    check.count("making", &register.making, CLONES_MAX);
    let running = register.running.iter().take(CLONES_MAX).map(|clone| Running {
        ticket: check.uuid("running.ticket", &clone.ticket),
        family: check.uuid("running.family", &clone.family),
        vmid: clone.vmid,
        vcpus: check.range("running.vcpus", clone.vcpus, VCPUS),
        memory_mib: check.range("running.memory_mib", clone.memory_mib, MEMORY_MIB),
        parent_vmid: clone.parent_vmid,
        parent_host: check.optional_uuid("running.parent_host_id", &clone.parent_host_id),
    });
    let running = running.collect();
    let making = register.making.iter().take(CLONES_MAX).map(|id| check.uuid("making", id)).collect();
    let masters = register.masters.map(|masters| check.masters(&masters));
    let images = register.images.map(|images| check.images("images", &images.digests, HOST_IMAGES_MAX));
    check.done((info, Present { running, making, masters, images }))
}

/// What a host says when it beats.
pub(super) fn beat(beat: v1::Beat) -> Result<Beat, Status> {
    let mut check = Check::default();
    let masters = beat.masters.map(|masters| check.masters(&masters));
    let free_memory_mib =
        beat.free_memory_mib.map(|mib| check.range("free_memory_mib", mib, 0..=*HOST_MEMORY_MIB.end()));
    let images = beat.images.map(|images| check.images("images", &images.digests, HOST_IMAGES_MAX));
    check.done(Beat { masters, free_memory_mib, images })
}

/// VMs of a host that have ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// Ticket, vmid, how.
    pub(super) clones: Vec<(Uuid, u32, VmEnd)>,
    /// Families.
    pub(super) masters: Vec<Uuid>,
}

/// What a host says of VMs that have ended.
pub(super) fn ended(message: &v1::ClonesEnded) -> Result<Ended, Status> {
    let mut check = Check::default();
    check.count("clones", &message.clones, ENDED_MAX);
    let mut ended = Ended::default();
    for clone in message.clones.iter().take(ENDED_MAX) {
        if clone.ticket.is_empty() {
            check.range("clones.vmid", clone.vmid, 0..=0);
            ended.masters.push(check.uuid("clones.family", &clone.family));
            continue;
        }
        let end = match clone.end() {
            v1::VmEnd::Joined => VmEnd::Joined,
            v1::VmEnd::Ended => VmEnd::Ended,
            v1::VmEnd::Killed => VmEnd::Killed,
            v1::VmEnd::Lost => VmEnd::Lost,
            v1::VmEnd::Unspecified => {
                check.wrong("clones.end", "say how it ended");
                VmEnd::Ended
            }
        };
        ended.clones.push((check.uuid("clones.ticket", &clone.ticket), clone.vmid, end));
    }
    check.done(ended)
}

/// Which page of which tickets.
pub(super) fn listing(request: &v1::ListTicketsRequest) -> Result<Listing, Status> {
    let mut check = Check::default();
    let family = check.optional_uuid("family", &request.family);
    Ok(Listing {
        family: check.done(family)?,
        asked_for: request.asked_for,
        newest_first: request.newest_first,
        after: ticket_token(&request.page_token)?,
        most: page_size(request.page_size),
    })
}

/// How many a page has.
pub(super) fn page_size(asked: u32) -> usize {
    match asked {
        0 => PAGE_MAX,
        asked => usize::try_from(asked).unwrap_or(PAGE_MAX).min(PAGE_MAX),
    }
}

/// After which ticket a page begins.
fn ticket_token(token: &str) -> Result<Option<(UnixMs, Uuid)>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let parsed =
        token.split_once('.').and_then(|(granted, id)| Some((granted.parse().ok()?, id.parse().ok()?)));
    parsed.map(Some).ok_or_else(bad_token)
}

/// After which host a page begins.
pub(super) fn host_token(token: &str) -> Result<Option<Uuid>, Status> {
    if token.is_empty() { Ok(None) } else { token.parse().map(Some).map_err(|_| bad_token()) }
}

fn bad_token() -> Status {
    status::invalid(vec![("page_token".into(), "give back the next_page_token of the page before".into())])
}

#[cfg(test)]
#[path = "check_test.rs"]
mod tests;
