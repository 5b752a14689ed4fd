//! Chooses the hosts for the VMs of a request.
//!
//! Only hosts are chosen that fit the VM that is cloned, where its host is named. Among them the
//! policy decides. Where it sees no difference, hosts are taken that have VMs of the family
//! already: they hold pages of it. Of the others, those go first that have the VM's kernel and root
//! file system: one that lacks them must fetch them first.
//!
//! No decision examines all hosts, but those that the VM does not fit. They are visited in the
//! order of their free capacity, only those with capacity for one VM, and no more of them than the
//! request needs.

use super::{
    api::{Closed, Free},
    facts::{Misfit, Misfits},
    host::Host,
    hosts::Hosts,
    present::{Image, Needs},
    room::{Held, Room},
    ticket::{HostId, Policy},
};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use uuid::Uuid;

/// How many hosts are looked at for the fullest one in which all fits, where some of those with
/// CPUs and memory enough take no more VMs.
const LOOKED_AT_MAX: usize = 64;

/// What is to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// The family that gets the VMs.
    pub family: Uuid,
    /// The fewest VMs to be placed.
    pub min: u32,
    /// The most VMs to be placed.
    pub most: u32,
    /// CPUs of each VM.
    pub vcpus: u32,
    /// Memory of each VM, MiB.
    pub memory_mib: u32,
    /// How the VMs are spread over hosts.
    pub policy: Policy,
    /// Whether all VMs must be on one host.
    pub single: bool,
    /// The hosts that may be chosen, in order, each once; empty: any.
    pub only: Vec<HostId>,
    /// The host that is taken first, as far as it has room, if it may be chosen at all.
    pub prefer: Option<HostId>,
    /// The host of the VM that is cloned: only hosts that fit it may be chosen; None: any.
    pub parent: Option<HostId>,
    /// What that VM needs of a host; None: what its host offers.
    pub needs: Option<Needs>,
    /// The kernel and the root file system of that VM; empty: not known.
    pub images: BTreeSet<Image>,
}

/// Hosts that are kept for others.
#[derive(Debug, Default)]
pub struct Kept {
    /// All are.
    pub all: bool,
    /// Some are.
    pub hosts: BTreeSet<HostId>,
}

/// How many VMs go where.
pub type Places = BTreeMap<HostId, u32>;

/// Where the VMs go, as many as fit now; None: fewer than the fewest do.
pub fn place(hosts: &Hosts, want: &Want, kept: &Kept) -> Option<Places> {
    if kept.all {
        return None;
    }
    let search = Search { hosts, want, kept, held: hosts.held_by(want.family) };
    if want.single {
        return search.single();
    }
    let first = search.preferred();
    let candidates = search.candidates();
    let fits = candidates.iter().chain(&first).map(|candidate| candidate.fit);
    let total = fits.fold(0, u32::saturating_add).min(want.most);
    if total < want.min || total == 0 {
        return None;
    }
    let here = first.map_or(0, |candidate| candidate.fit.min(total));
    let mut places = match (total.saturating_sub(here), want.policy) {
        (0, _) => Places::new(),
        (rest, Policy::Pack) => search.pack(candidates, rest),
        (rest, Policy::Spread) => search.spread(candidates, rest),
    };
    places.extend(first.filter(|_| here > 0).map(|candidate| (candidate.id, here)));
    Some(places)
}

/// Whether it could be placed if all hosts that are usable, and these `others`, held nothing but
/// what stays there.
pub fn could(hosts: &Hosts, want: &Want, others: &[Room], stays: Option<&BTreeMap<HostId, Held>>) -> bool {
    let fit = |room: Room| room.fit(want.vcpus, want.memory_mib);
    let fit_beside = |(id, size): (HostId, Room)| {
        fit(stays.and_then(|stays| stays.get(&id)).map_or(size, |held| size.without(held)))
    };
    let (least, most) = if want.single { (want.min, 1) } else { (1, usize::MAX) };
    let enough = |fits: &mut dyn Iterator<Item = u32>| {
        let mut sum = 0_u32;
        let others = others.iter().map(|room| fit(*room));
        others.chain(fits).filter(|fit| *fit >= least).take(most).any(|fit| {
            sum = sum.saturating_add(fit);
            sum >= want.min
        })
    };
    if want.only.is_empty() {
        let (cpus, memory_mib) = want.size_of(least);
        let sizes = hosts.sizes().emptiest(cpus, memory_mib);
        enough(&mut sizes.filter(|(id, _)| want.may(hosts, *id)).map(fit_beside))
    } else {
        let named = want.only.iter().filter(|id| want.may(hosts, **id));
        enough(&mut named.filter_map(|id| Some((*id, hosts.size(*id)?))).map(fit_beside))
    }
}

/// How many hosts are looked at to say what is free: a request that waits fits on fewer ones,
/// unless it needs a single one.
const FREE_HOSTS_MAX: usize = 256;

/// What is free where it could be placed.
pub fn free_for(hosts: &Hosts, want: &Want) -> Free {
    let vms = |room: Room| u64::from(room.fit(want.vcpus, want.memory_mib));
    if want.is_any() {
        let (cpus, memory_mib) = want.size_of(1);
        let fitting = hosts.rooms().emptiest(cpus, memory_mib).take(FREE_HOSTS_MAX);
        return Free { vms: fitting.map(|(_, room)| vms(room)).sum(), ..hosts.totals() };
    }
    usable(hosts, want).map(|(_, host)| host.room()).fold(Free::default(), |sum, room| Free {
        cpus: sum.cpus.saturating_add(room.cpus.into()),
        memory_mib: sum.memory_mib.saturating_add(room.memory_mib),
        vms: sum.vms.saturating_add(vms(room)),
    })
}

/// The hosts that are named, or all.
fn named<'a>(hosts: &'a Hosts, want: &'a Want) -> impl Iterator<Item = (HostId, &'a Host)> {
    let all = want.only.is_empty().then(|| hosts.all());
    let some = want.only.iter().filter_map(|id| Some((*id, hosts.get(*id)?)));
    all.into_iter().flatten().chain(some)
}

/// The hosts where it may be placed and that may be granted something.
pub fn usable<'a>(hosts: &'a Hosts, want: &'a Want) -> impl Iterator<Item = (HostId, &'a Host)> {
    named(hosts, want).filter(|(id, host)| host.is_usable() && want.may(hosts, *id))
}

/// How many of the hosts where it could be placed are granted nothing.
pub fn closed_for(hosts: &Hosts, want: &Want) -> Closed {
    if want.is_any() {
        return hosts.closed();
    }
    let may_be = named(hosts, want).filter(|(id, _)| want.may(hosts, *id));
    may_be.fold(Closed::default(), |mut sum, (_, host)| {
        sum.add(host.closed());
        sum
    })
}

/// The hosts that might be granted something, and that the VM that is cloned does not fit.
pub fn misfits_for(hosts: &Hosts, want: &Want) -> Misfits {
    let mut misfits = Misfits::default();
    if want.parent.is_none() {
        return misfits;
    }
    for (id, host) in named(hosts, want).filter(|(_, host)| host.is_usable()) {
        if let (Err(why), Some(info)) = (want.fit(hosts, id), &host.info) {
            misfits.add(&info.name, why);
        }
    }
    misfits
}

impl Want {
    /// Whether no host is left out.
    pub fn is_any(&self) -> bool {
        self.only.is_empty() && self.parent.is_none()
    }

    /// Whether a host is among those that are named, or none is.
    pub fn names(&self, id: HostId) -> bool {
        self.only.is_empty() || self.only.binary_search(&id).is_ok()
    }

    fn fit(&self, hosts: &Hosts, id: HostId) -> Result<(), Misfit> {
        hosts.fit(self.parent, self.needs.as_deref(), id)
    }

    /// Whether a host may be chosen: it is named, and the VM that is cloned fits it.
    pub fn may(&self, hosts: &Hosts, id: HostId) -> bool {
        self.names(id) && self.fit(hosts, id).is_ok()
    }

    /// The CPUs and memory of so many VMs.
    fn size_of(&self, vms: u32) -> (u32, u64) {
        let memory_mib = u64::from(vms).saturating_mul(self.memory_mib.max(1).into());
        (vms.saturating_mul(self.vcpus.max(1)), memory_mib)
    }
}

/// A host with room for VMs.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: HostId,
    room: Room,
    fit: u32,
    /// What it has of the family already.
    holds: Holds,
}

/// What a host has of a family already. More is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    /// Nothing that is known.
    Nothing,
    /// The kernel and the root file system.
    Images,
    /// VMs of it, and pages with them.
    Pages,
}

impl Candidate {
    /// How much is free; of hosts with as much free, those are greater that hold more.
    fn key(&self) -> (u32, u64, Holds, HostId) {
        (self.room.cpus, self.room.memory_mib, self.holds, self.id)
    }
}

struct Search<'a> {
    hosts: &'a Hosts,
    want: &'a Want,
    kept: &'a Kept,
    /// What the family has where.
    held: Option<&'a BTreeMap<HostId, Held>>,
}

impl Search<'_> {
    fn any(&self, (id, room): (HostId, Room)) -> Option<Candidate> {
        let fit = room.fit(self.want.vcpus, self.want.memory_mib);
        let may_be = fit > 0 && !self.kept.hosts.contains(&id) && self.want.may(self.hosts, id);
        may_be.then(|| Candidate { id, room, fit, holds: self.holds(id) })
    }

    fn holds(&self, id: HostId) -> Holds {
        if self.want.parent == Some(id) || self.held.is_some_and(|held| held.contains_key(&id)) {
            return Holds::Pages;
        }
        let has = |image| self.hosts.with_image(image).is_some_and(|hosts| hosts.contains(&id));
        let has_all = !self.want.images.is_empty() && self.want.images.iter().all(has);
        if has_all { Holds::Images } else { Holds::Nothing }
    }

    /// Hosts that have the image that is on the fewest. They are few, or the hosts that are looked
    /// at anyway have it, too: so no more are looked at than these.
    fn with_images(&self) -> impl Iterator<Item = HostId> {
        let with = self.want.images.iter().map(|image| self.hosts.with_image(image));
        // None: an image that no host has.
        let rarest = with.min_by_key(|hosts| hosts.map_or(0, BTreeSet::len)).flatten();
        rarest.into_iter().flatten().copied().take(LOOKED_AT_MAX)
    }

    /// All but the host that is taken before any other.
    fn candidate(&self, host: (HostId, Room)) -> Option<Candidate> {
        self.any(host).filter(|candidate| self.want.prefer != Some(candidate.id))
    }

    /// The host that is taken first, if it has room and may be chosen.
    fn preferred(&self) -> Option<Candidate> {
        let id = self.want.prefer?;
        self.any((id, self.hosts.usable(id)?.room()))
    }

    /// Hosts with as much free as this one that hold something of the family, those that hold most
    /// first. There are few: each has VMs of it, or is one of those with its images.
    fn holders_like(&self, like: Candidate) -> Vec<Candidate> {
        let with_pages = self.held.into_iter().flat_map(BTreeMap::keys).copied().chain(self.want.parent);
        let holders: BTreeSet<HostId> = with_pages.chain(self.with_images()).collect();
        let holders = holders.into_iter();
        let rooms = holders.filter_map(|id| Some((id, self.hosts.usable(id)?.room())));
        let same = move |(_, room): &(HostId, Room)| {
            (room.cpus, room.memory_mib) == (like.room.cpus, like.room.memory_mib)
        };
        let alike = rooms.filter(same).filter_map(|host| self.candidate(host));
        let mut alike: Vec<_> = alike.filter(|candidate| candidate.holds > Holds::Nothing).collect();
        alike.sort_by_key(|candidate| std::cmp::Reverse(candidate.holds));
        alike
    }

    /// The hosts that were named, the emptiest first.
    fn named(&self) -> Vec<Candidate> {
        let rooms = self.want.only.iter().filter_map(|id| Some((*id, self.hosts.usable(*id)?.room())));
        let mut named: Vec<_> = rooms.filter_map(|host| self.candidate(host)).collect();
        named.sort_by_key(|candidate| std::cmp::Reverse(candidate.key()));
        named
    }

    /// The emptiest hosts, as many as could be needed.
    fn candidates(&self) -> Vec<Candidate> {
        if !self.want.only.is_empty() {
            return self.named();
        }
        let (cpus, memory_mib) = self.want.size_of(1);
        let mut candidates = Vec::new();
        let mut sum = 0_u32;
        for candidate in self.hosts.rooms().emptiest(cpus, memory_mib).filter_map(|host| self.candidate(host))
        {
            sum = sum.saturating_add(candidate.fit);
            candidates.push(candidate);
            let enough = match self.want.policy {
                Policy::Pack => sum >= self.want.most,
                // Each of these hosts gets one VM at least before any other is looked at.
                Policy::Spread => candidates.len() >= usize::try_from(self.want.most).unwrap_or(usize::MAX),
            };
            if enough {
                break;
            }
        }
        if let Some(last) = candidates.last().copied() {
            let found: BTreeSet<HostId> = candidates.iter().map(|candidate| candidate.id).collect();
            let more = self.holders_like(last).into_iter();
            candidates.extend(more.filter(|holder| !found.contains(&holder.id)));
        }
        candidates
    }

    /// The fullest host with room for so many that is not used yet.
    fn fullest(&self, vms: u32, used: &Places) -> Option<HostId> {
        let fits = |c: &Candidate| c.fit >= vms && !used.contains_key(&c.id);
        let first = if self.want.only.is_empty() {
            let (cpus, memory_mib) = self.want.size_of(vms);
            let hosts = self.hosts.rooms().fullest(cpus, memory_mib);
            let mut hosts = hosts.filter(|(id, _)| self.want.may(self.hosts, *id)).take(LOOKED_AT_MAX);
            hosts.find_map(|host| self.candidate(host).filter(fits))?
        } else {
            self.named().into_iter().rev().find(fits)?
        };
        let holder = self.holders_like(first).into_iter().find(fits);
        Some(holder.filter(|holder| holder.holds > first.holds).unwrap_or(first).id)
    }

    fn single(&self) -> Option<Places> {
        let vms = self.want.min.max(1);
        let fits = |c: &Candidate| c.fit >= vms;
        let emptiest = || {
            let (cpus, memory_mib) = self.want.size_of(vms);
            let rooms = self.hosts.rooms().emptiest(cpus, memory_mib);
            rooms.filter_map(|host| self.candidate(host)).find(fits).map(|c| c.id)
        };
        let fullest = || self.fullest(vms, &Places::new());
        let host = match (self.want.only.is_empty(), self.want.policy) {
            (true, Policy::Pack) => fullest().or_else(emptiest),
            (true, Policy::Spread) => emptiest(),
            (false, Policy::Pack) => fullest(),
            (false, Policy::Spread) => self.named().into_iter().find(fits).map(|c| c.id),
        };
        host.map(|id| Places::from([(id, vms)]))
    }

    /// As few hosts as possible: those in which most fits, and for what is left the fullest one
    /// that has room for it.
    fn pack(&self, mut candidates: Vec<Candidate>, total: u32) -> Places {
        let mut places = Places::new();
        if let Some(host) = self.fullest(total, &places) {
            return Places::from([(host, total)]);
        }
        candidates.sort_by_key(|candidate| std::cmp::Reverse((candidate.fit, candidate.holds)));
        let mut left = total;
        for candidate in candidates {
            if candidate.fit >= left {
                let host = self.fullest(left, &places).unwrap_or(candidate.id);
                places.insert(host, left);
                return places;
            }
            left -= candidate.fit;
            places.insert(candidate.id, candidate.fit);
        }
        places
    }

    /// One VM after another, each to the host that then has most left.
    fn spread(&self, candidates: Vec<Candidate>, total: u32) -> Places {
        let by_id: BTreeMap<_, _> = candidates.iter().map(|c| (c.id, c.fit)).collect();
        let mut heap: BinaryHeap<_> = candidates.iter().map(Candidate::key).collect();
        let mut places = Places::new();
        for _ in 0..total {
            let Some((cpus, memory_mib, holds, id)) = heap.pop() else { break };
            let vms = places.entry(id).or_insert(0_u32);
            *vms = vms.saturating_add(1);
            if by_id.get(&id).is_some_and(|fit| *vms < *fit) {
                let left_mib = memory_mib.saturating_sub(self.want.memory_mib.into());
                heap.push((cpus.saturating_sub(self.want.vcpus), left_mib, holds, id));
            }
        }
        places
    }
}
