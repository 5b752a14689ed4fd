//! What one host knows of families that have VMs on several hosts, and who is to be told of it.
//! Nothing here waits or calls.
//!
//! Each host says which VMs of a family it has, and only that host does: whoever hears it replaces
//! what it knew of that host. What a host says of others is used only where nothing is known. So a
//! message that is lost, late or doubled does no harm: each is whole, and an old one is known by
//! its number. Who learns of a host tells all others, so that in the end all know of all.
//!
//! The host that has clones made on several hosts announces them to all of these: they know of each
//! other before the first one runs.

use super::{
    error::TellError,
    family::{Family, Known},
    told::{Came, HOSTS_MAX, OnHost, Place, Told, Version},
};
use crate::plan::address::FamilyNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use uuid::Uuid;

/// What this host knows.
#[derive(Debug)]
pub struct Book {
    own: Uuid,
    place: Place,
    version: Version,
    families: BTreeMap<Uuid, Family>,
}

impl Book {
    /// Of a host whose vmmd was started so often.
    #[must_use]
    pub fn new(own: Uuid, place: Place, start: u64) -> Self {
        Self { own, place, version: Version { start, number: 0 }, families: BTreeMap::new() }
    }

    fn next(&mut self) -> u64 {
        self.version.number += 1;
        self.version.number
    }

    /// The families that have VMs on several hosts, with their networks.
    #[must_use]
    pub fn families(&self) -> Vec<(Uuid, FamilyNet)> {
        self.families.iter().map(|(uuid, family)| (*uuid, family.net)).collect()
    }

    /// The network of a family that has VMs on several hosts.
    #[must_use]
    pub fn net(&self, family: Uuid) -> Option<FamilyNet> {
        self.families.get(&family).map(|family| family.net)
    }

    /// Clones of a family are about to be made on these hosts: the call for each follows, and then
    /// [`Self::answered`].
    pub fn announce(&mut self, family: Uuid, net: FamilyNet, own: BTreeSet<u32>, there: Vec<OnHost>) {
        let said = self.next();
        let entry = self.open(family, net);
        (entry.own, entry.said) = (own, said);
        for OnHost { host, place, vmids } in there {
            if entry.has_room(host) {
                let known = entry.hosts.entry(host).or_insert_with(|| Known::at(place.clone()));
                (known.place, known.is_found) = (place, true);
                known.announced.extend(vmids);
                known.calls += 1;
            }
        }
    }

    fn open(&mut self, family: Uuid, net: FamilyNet) -> &mut Family {
        let (own, hosts) = (BTreeSet::new(), BTreeMap::new());
        self.families.entry(family).or_insert(Family { net, own, said: 0, hosts })
    }

    /// A call for clones has ended. Those that were announced and that the host does not speak of
    /// were not made.
    pub fn answered(&mut self, family: Uuid, host: Uuid, vmids: &[u32]) {
        let known = self.families.get_mut(&family).and_then(|family| family.hosts.get_mut(&host));
        if let Some(known) = known {
            known.calls = known.calls.saturating_sub(1);
            known.announced.retain(|vmid| !vmids.contains(vmid));
        }
        self.close(family);
    }

    /// Clones of a family of another host are made here.
    pub fn join(&mut self, family: Uuid, net: FamilyNet, own: BTreeSet<u32>) {
        self.open(family, net);
        self.set_own(family, own);
    }

    /// These are the family's VMs here. Returns whether that is news.
    pub fn set_own(&mut self, family: Uuid, own: BTreeSet<u32>) -> bool {
        let number = self.version.number + 1;
        let Some(entry) = self.families.get_mut(&family).filter(|entry| entry.own != own) else {
            return false;
        };
        (entry.own, entry.said) = (own, number);
        self.version.number = number;
        self.close(family);
        true
    }

    /// Takes what another host says. Returns whether that is news.
    ///
    /// # Errors
    /// The host may not speak of the family.
    pub fn hear(&mut self, told: &Told, came: Came) -> Result<bool, TellError> {
        let (own, number) = (self.own, self.version.number + 1);
        let host = told.speaker.host;
        let unknown = || TellError::Unknown(host);
        let family = self.families.get_mut(&told.family).ok_or_else(unknown)?;
        if host == own {
            return Err(TellError::Own(own));
        }
        let is_new = !family.hosts.contains_key(&host);
        if is_new && told.speaker.vmids.is_empty() {
            return Ok(false);
        }
        if is_new && came != Came::WithClones {
            return Err(unknown());
        }
        if !family.has_room(host) {
            return Err(TellError::TooMany(HOSTS_MAX));
        }
        let vmids = family.free_for(host, &told.speaker.vmids);
        if vmids.len() < told.speaker.vmids.len() {
            tracing::warn!(%host, family = %told.family, "a host says that it has VMs of others");
        }
        let known = family.hosts.entry(host).or_insert_with(|| Known::at(told.speaker.place.clone()));
        let had_none = !known.has_vms();
        if known.heard == Some(told.version) && came == Came::AsAnswer && known.calls == 0 {
            // All that it has is known.
            let is_news = !known.announced.is_empty();
            known.announced.clear();
            self.close(told.family);
            return Ok(is_news);
        }
        if known.heard >= Some(told.version) {
            return Ok(false);
        }
        if came == Came::AsAnswer && !known.is_found {
            // It will speak itself, now that it knows of this host.
            if vmids.is_empty() {
                known.announced.clear();
            }
            self.close(told.family);
            return Ok(true);
        }
        if known.calls == 0 {
            known.announced.clear();
        } else {
            known.announced.retain(|vmid| !vmids.contains(vmid));
        }
        if came != Came::AsAnswer {
            (known.place, known.is_found) = (told.speaker.place.clone(), true);
        }
        known.vmids = vmids;
        known.heard = Some(told.version);
        let mut learned = had_none && known.has_vms();
        for other in told.others.iter().filter(|other| other.host != own && other.host != host) {
            learned |= family.learn(other, came);
        }
        if learned {
            // The others may not know of them.
            family.said = number;
            self.version.number = number;
        }
        self.close(told.family);
        Ok(true)
    }

    /// What this host says of a family. One that is not here has no VM here.
    pub fn tell(&mut self, family: Uuid) -> Told {
        let speaker = |vmids| OnHost { host: self.own, place: self.place.clone(), vmids };
        let Some(entry) = self.families.get(&family) else {
            let speaker = speaker(BTreeSet::new());
            let version = Version { number: self.next(), ..self.version };
            return Told { family, version, speaker, others: Vec::new() };
        };
        let on_host = |(host, known): (&Uuid, &Known)| OnHost {
            host: *host,
            place: known.place.clone(),
            vmids: known.all().collect(),
        };
        let others = entry.hosts.iter().filter(|(_, known)| known.has_vms()).map(on_host).collect();
        let version = Version { number: entry.said, ..self.version };
        Told { family, version, speaker: speaker(entry.own.clone()), others }
    }

    /// The hosts that are to be told something and whom nobody tells yet: the caller does, with
    /// [`Self::next_for`], until there is nothing more.
    pub fn begin_telling(&mut self) -> Vec<(Uuid, Uuid)> {
        let mut to_tell = Vec::new();
        for (uuid, family) in &mut self.families {
            let said = family.said;
            let behind = |known: &Known| known.has_vms() && known.knows < said && known.calls == 0;
            let hosts = family.hosts.iter_mut().filter(|(_, known)| behind(known) && !known.is_being_told);
            to_tell.extend(hosts.map(|(host, known)| {
                known.is_being_told = true;
                (*uuid, *host)
            }));
        }
        to_tell
    }

    /// What a host is to be told now, and where it is. None: nothing more, and who told it stops.
    pub fn next_for(&mut self, family: Uuid, host: Uuid) -> Option<(String, Told)> {
        let entry = self.families.get_mut(&family)?;
        let said = entry.said;
        let known = entry.hosts.get_mut(&host)?;
        if !known.has_vms() || known.knows >= said || known.calls > 0 {
            known.is_being_told = false;
            return None;
        }
        let address = known.place.address.clone();
        Some((address, self.tell(family)))
    }

    /// A host has heard this of this host, and has answered.
    pub fn heard_by(&mut self, family: Uuid, host: Uuid, version: Version) {
        let known = self.families.get_mut(&family).and_then(|family| family.hosts.get_mut(&host));
        if let Some(known) = known.filter(|_| version.start == self.version.start) {
            known.knows = known.knows.max(version.number);
        }
        self.close(family);
    }

    /// Whether others say of a host that it has more VMs than these.
    #[must_use]
    pub fn expects_more(&self, family: Uuid, host: Uuid, than: &BTreeSet<u32>) -> bool {
        let known = self.families.get(&family).and_then(|family| family.hosts.get(&host));
        known.is_some_and(|known| !known.announced.is_subset(than))
    }

    /// A host that does not answer is given up, if this one has no VM of the family any more.
    /// Returns whether it was.
    pub fn give_up(&mut self, family: Uuid, host: Uuid) -> bool {
        let Some(entry) = self.families.get_mut(&family).filter(|entry| entry.own.is_empty()) else {
            return false;
        };
        entry.hosts.remove(&host);
        self.close(family);
        true
    }

    /// All hosts are to be told again what they know.
    pub fn tell_again(&mut self) {
        for known in self.families.values_mut().flat_map(|family| family.hosts.values_mut()) {
            known.knows = 0;
        }
    }

    /// Where the family's VMs on other hosts are.
    #[must_use]
    pub fn routes(&self, family: Uuid) -> BTreeMap<u32, IpAddr> {
        let Some(family) = self.families.get(&family) else { return BTreeMap::new() };
        let routes = |known: &Known| {
            let ip = known.place.overlay.ip();
            known.all().map(|vmid| (vmid, ip)).collect::<Vec<_>>()
        };
        let routes = family.hosts.values().flat_map(routes);
        routes.filter(|(vmid, _)| !family.own.contains(vmid)).collect()
    }

    /// The hosts of a family, for a vmmd that is started later. None: they need not be known.
    #[must_use]
    pub fn saved(&self, family: Uuid) -> Option<(FamilyNet, Vec<(OnHost, Version)>)> {
        let entry = self.families.get(&family)?;
        let save = |(host, known): (&Uuid, &Known)| {
            // What is said of a host that speaks itself, it will say again.
            let vmids = if known.heard.is_some() { &known.vmids } else { &known.announced };
            let on_host = OnHost { host: *host, place: known.place.clone(), vmids: vmids.clone() };
            (on_host, known.heard.unwrap_or_default())
        };
        Some((entry.net, entry.hosts.iter().map(save).collect()))
    }

    /// Hosts that an earlier vmmd knew. They are told what runs here now.
    pub fn restore(
        &mut self,
        family: Uuid,
        net: FamilyNet,
        own: BTreeSet<u32>,
        hosts: Vec<(OnHost, Version)>,
    ) {
        let said = self.next();
        let entry = self.open(family, net);
        (entry.own, entry.said) = (own, said);
        for (OnHost { host, place, vmids }, version) in hosts.into_iter().take(HOSTS_MAX) {
            let heard = Some(version).filter(|version| *version > Version::default());
            let (free, is_found) = (entry.free_for(host, &vmids), heard.is_some());
            let (vmids, announced) = if is_found { (free, BTreeSet::new()) } else { (BTreeSet::new(), free) };
            entry.hosts.insert(host, Known { vmids, announced, heard, is_found, ..Known::at(place) });
        }
        self.close(family);
    }

    /// Forgets a family that is here only, or not any more once all others know that.
    fn close(&mut self, family: Uuid) {
        let Some(entry) = self.families.get(&family) else { return };
        let said = entry.said;
        let is_left = |known: &Known| known.calls > 0 || (known.has_vms() && known.knows < said);
        if entry.own.is_empty() && !entry.hosts.values().any(is_left) {
            self.families.remove(&family);
        }
    }
}

#[cfg(test)]
#[path = "book_test.rs"]
mod tests;
