//! Which hosts may have the memory of a family: those that got a generation of it.

use crate::pager::lender::target;
use patina_daemon::lock;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Most hosts of a family.
pub const HOLDERS_MAX: usize = 256;
/// Most families. With one more, all are forgotten: the scheduler knows their hosts, too.
const FAMILIES_MAX: usize = 1024;
/// Longest address of a vmmd.
const ADDRESS_MAX_BYTES: usize = 256;
/// How long a host that did not answer, or had other bytes, is not asked again.
const FAILING: Duration = Duration::from_secs(30);

/// A host, and where its vmmd is.
pub type Place = (Uuid, String);

/// See the module.
#[derive(Debug, Default)]
pub struct KnownHolders {
    families: Mutex<HashMap<Uuid, BTreeMap<Uuid, String>>>,
    failing: Mutex<HashMap<Uuid, Instant>>,
}

impl KnownHolders {
    /// These hosts may have memory of a family. What cannot be an address is left out.
    pub fn note(&self, family: Uuid, places: impl IntoIterator<Item = Place>) {
        let mut families = lock(&self.families);
        if families.len() >= FAMILIES_MAX && !families.contains_key(&family) {
            families.clear();
        }
        let known = families.entry(family).or_default();
        for (host, address) in places {
            let is_address = address.len() <= ADDRESS_MAX_BYTES && target(&address).is_ok();
            if is_address && (known.len() < HOLDERS_MAX || known.contains_key(&host)) {
                known.insert(host, address);
            }
        }
    }

    /// The hosts that may have memory of a family.
    #[must_use]
    pub fn of(&self, family: Uuid) -> Vec<Place> {
        let families = lock(&self.families);
        let known = families.get(&family).into_iter().flatten();
        known.map(|(host, address)| (*host, address.clone())).collect()
    }

    /// Whether a host is one of them.
    #[must_use]
    pub fn names(&self, family: Uuid, host: Uuid) -> bool {
        lock(&self.families).get(&family).is_some_and(|known| known.contains_key(&host))
    }

    /// A host does not answer, or has other bytes than it should.
    pub fn fails(&self, host: Uuid, now: Instant) {
        let mut failing = lock(&self.failing);
        failing.retain(|_, since| now.saturating_duration_since(*since) < FAILING);
        failing.insert(host, now);
    }

    /// Whether it did so a short while ago.
    #[must_use]
    pub fn is_failing(&self, host: Uuid, now: Instant) -> bool {
        let since = lock(&self.failing).get(&host).copied();
        since.is_some_and(|since| now.saturating_duration_since(since) < FAILING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    #[test]
    fn the_hosts_of_a_family_are_known_and_bounded() {
        let holders = KnownHolders::default();
        holders.note(A, [(A, "tcp:a:1".to_owned()), (B, "no address".to_owned())]);
        holders.note(A, [(A, "tcp:a:2".to_owned()), (B, "x".repeat(ADDRESS_MAX_BYTES + 1))]);
        assert_eq!(holders.of(A), [(A, "tcp:a:2".to_owned())]);
        assert!(holders.names(A, A) && !holders.names(A, B) && !holders.names(B, A));
        holders.note(B, (10..1000).map(|host| (Uuid::from_u128(host), "tcp:a:1".to_owned())));
        assert_eq!(holders.of(B).len(), HOLDERS_MAX);
        (0..2 * FAMILIES_MAX as u128).for_each(|family| holders.note(Uuid::from_u128(family), []));
        assert!(lock(&holders.families).len() <= FAMILIES_MAX);
    }

    #[test]
    fn a_host_that_fails_is_not_asked_for_a_while() {
        let (holders, now) = (KnownHolders::default(), Instant::now());
        holders.fails(A, now);
        assert!(holders.is_failing(A, now) && !holders.is_failing(B, now));
        assert!(!holders.is_failing(A, now + FAILING));
        holders.fails(B, now + FAILING);
        assert_eq!(lock(&holders.failing).len(), 1, "what is over is forgotten");
    }
}
