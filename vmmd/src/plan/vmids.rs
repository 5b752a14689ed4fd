//! The vmids of a family: which are given, which come next, and what is kept ready under some of
//! them.
//!
//! ```text
//!            bind            keep               take
//!  never ──────────▶ bound ────────▶ kept ─────────────────▶ given
//!    ▲                 ▲ release       │ pull, trim    ▲
//!    │                 └───────────────┘               │
//!    └──────────────────── take, with nothing kept ────┘
//! ```
//!
//! A vmid is given once. If it was bound to a warm VM that went away before a clone used it, it can
//! be bound again.

use super::address::VMID_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// The vmids of one family, with a `T` kept ready under each of some.
#[derive(Debug)]
pub struct Vmids<T> {
    /// From here on no vmid was ever bound or given.
    next: u32,
    /// Below `next`, bound once and never given, with nothing under them now.
    free: BTreeSet<u32>,
    kept: BTreeMap<u32, T>,
    /// Above every vmid that was given.
    mark: u32,
}

impl<T> Vmids<T> {
    /// All vmids below `next` were given.
    #[must_use]
    pub fn from(next: u32) -> Self {
        Self { next, free: BTreeSet::new(), kept: BTreeMap::new(), mark: next }
    }

    /// All vmids below `next` were given; for a family that is being found again, with nothing kept
    /// yet.
    pub fn raise(&mut self, next: u32) {
        self.next = self.next.max(next);
        self.mark = self.mark.max(next);
    }

    /// What must be written down before a vmid that was taken is used: all vmids below were given.
    #[must_use]
    pub fn mark(&self) -> u32 {
        self.mark
    }

    /// How many vmids can still be taken.
    #[must_use]
    pub fn left(&self) -> u32 {
        let more = self.free.len() + self.kept.len();
        (VMID_MAX + 1).saturating_sub(self.next) + u32::try_from(more).unwrap_or(u32::MAX)
    }

    /// All that is kept.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.kept.values()
    }

    /// How much is kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// The least vmid that something may be kept under; None when all are given or bound.
    pub fn bind(&mut self) -> Option<u32> {
        if let Some(vmid) = self.free.pop_first() {
            return Some(vmid);
        }
        let vmid = (self.next <= VMID_MAX).then_some(self.next)?;
        self.next += 1;
        Some(vmid)
    }

    /// Keeps something under a vmid that was bound for it, or taken and not used.
    pub fn keep(&mut self, vmid: u32, what: T) {
        self.kept.insert(vmid, what);
    }

    /// Takes out what is kept under a vmid; [`Self::release`] is due when nothing of it is left.
    pub fn pull(&mut self, vmid: u32) -> Option<T> {
        self.kept.remove(&vmid)
    }

    /// Takes out what would be used last, when more than `most` are kept; [`Self::release`] is due.
    pub fn trim(&mut self, most: usize) -> Option<(u32, T)> {
        if self.kept.len() > most { self.kept.pop_last() } else { None }
    }

    /// A vmid that was bound may be bound again.
    pub fn release(&mut self, vmid: u32) {
        self.free.insert(vmid);
    }

    /// Gives a vmid: the least one with something kept, or else the least one there is.
    pub fn take(&mut self) -> Option<(u32, Option<T>)> {
        let (vmid, what) = match self.kept.pop_first() {
            Some((vmid, what)) => (vmid, Some(what)),
            None => (self.bind()?, None),
        };
        self.mark = self.mark.max(vmid + 1);
        Some((vmid, what))
    }

    /// From now on only vmids that are [added](Self::add) are given, and those that something is
    /// kept under. All below the result may have been given or bound.
    pub fn close(&mut self) -> u32 {
        let next = self.next;
        self.raise(VMID_MAX + 1);
        next
    }

    /// These vmids may be given, too: nobody else gives them.
    pub fn add(&mut self, vmids: std::ops::Range<u32>) {
        self.free.extend(vmids);
    }

    /// Whether a vmid is still to be given.
    #[must_use]
    pub fn may_give(&self, vmid: u32) -> bool {
        self.free.contains(&vmid) || self.kept.contains_key(&vmid) || (self.next..=VMID_MAX).contains(&vmid)
    }

    /// How many vmids can be taken with nothing under them.
    #[must_use]
    pub fn left_bare(&self) -> u32 {
        self.left().saturating_sub(u32::try_from(self.kept.len()).unwrap_or(u32::MAX))
    }

    /// Gives a vmid with nothing kept under it.
    pub fn take_bare(&mut self) -> Option<u32> {
        let vmid = self.bind()?;
        self.mark = self.mark.max(vmid + 1);
        Some(vmid)
    }

    /// Takes out all that is kept.
    pub fn clear(&mut self) -> Vec<T> {
        std::mem::take(&mut self.kept).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_ready_goes_first_in_the_order_of_vmids() {
        let mut vmids = Vmids::from(1);
        for _ in 0..2 {
            let vmid = vmids.bind().unwrap();
            vmids.keep(vmid, format!("warm {vmid}"));
        }
        assert_eq!(vmids.take(), Some((1, Some("warm 1".into()))));
        assert_eq!(vmids.take(), Some((2, Some("warm 2".into()))));
        assert_eq!(vmids.take(), Some((3, None)));
        assert_eq!((vmids.mark(), vmids.kept()), (4, 0));
    }

    #[test]
    fn a_vmid_that_was_never_used_comes_again_and_a_given_one_never() {
        let mut vmids = Vmids::from(7);
        let bound = vmids.bind().unwrap();
        vmids.keep(bound, ());
        assert_eq!(vmids.pull(bound), Some(()));
        assert_eq!(vmids.bind(), Some(8), "not while the old one is being cleared away");
        vmids.release(bound);
        assert_eq!(vmids.take(), Some((7, None)));
        assert_eq!((vmids.bind(), vmids.mark()), (Some(9), 8));
        vmids.raise(20);
        assert_eq!((vmids.bind(), vmids.mark()), (Some(20), 20));
    }

    #[test]
    fn too_much_goes_from_the_end() {
        let mut vmids = Vmids::from(1);
        for what in ["a", "b", "c"] {
            let vmid = vmids.bind().unwrap();
            vmids.keep(vmid, what);
        }
        assert_eq!(vmids.trim(2), Some((3, "c")));
        assert_eq!(vmids.trim(2), None);
        assert_eq!(vmids.clear(), ["a", "b"]);
    }

    #[test]
    fn a_family_runs_out_of_vmids() {
        let mut vmids = Vmids::from(VMID_MAX);
        assert_eq!(vmids.left(), 1);
        let last = vmids.bind().unwrap();
        vmids.keep(last, ());
        assert_eq!((vmids.left(), vmids.bind()), (1, None));
        assert_eq!(vmids.take(), Some((VMID_MAX, Some(()))));
        assert_eq!((vmids.left(), vmids.take()), (0, None));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Fill,
        Lose(usize),
        Take,
        GiveBack,
        Trim(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Fill),
            (0..4usize).prop_map(Step::Lose),
            Just(Step::Take),
            Just(Step::GiveBack),
            (0..4usize).prop_map(Step::Trim),
        ]
    }

    proptest! {
        #[test]
        fn no_vmid_is_given_twice_or_kept_under_another(steps in proptest::collection::vec(any_step(), 0..60)) {
            let mut vmids = Vmids::from(1);
            let mut given = BTreeSet::new();
            let mut back = None;
            for step in steps {
                match step {
                    Step::Fill => if let Some(vmid) = vmids.bind() {
                        prop_assert!(!given.contains(&vmid) && !vmids.kept.contains_key(&vmid));
                        vmids.keep(vmid, vmid);
                    },
                    Step::Lose(index) => {
                        let vmid = vmids.kept.keys().nth(index).copied();
                        if let Some(vmid) = vmid {
                            prop_assert_eq!(vmids.pull(vmid), Some(vmid));
                            vmids.release(vmid);
                        }
                    }
                    Step::Take => {
                        let (vmid, what) = vmids.take().unwrap();
                        prop_assert!(given.insert(vmid), "{} is given twice", vmid);
                        prop_assert!(what.is_none_or(|what| what == vmid));
                        prop_assert!(vmid < vmids.mark());
                        back = what;
                    }
                    Step::GiveBack => if let Some(what) = back.take() {
                        given.remove(&what);
                        vmids.keep(what, what);
                    },
                    Step::Trim(most) => if let Some((vmid, what)) = vmids.trim(most) {
                        prop_assert_eq!(vmid, what);
                        vmids.release(vmid);
                    },
                }
                let numbered = given.len() + vmids.kept.len() + vmids.free.len();
                prop_assert_eq!(u32::try_from(numbered).unwrap(), vmids.next - 1);
            }
        }
    }
}
