//! The vmids of a family: which are given, which come next, and what is kept ready under some of them.
//!
//! ```text
//!            bind            keep               take
//!  never ──────────▶ bound ────────▶ kept ─────────────────▶ given, for good
//!    ▲                 ▲ release       │ pull, trim    ▲
//!    │                 └───────────────┘               │
//!    └──────────────────── take, with nothing kept ────┘
//! ```
//!
//! A vmid is given once. One that was bound to something that went before it was ever used is bound again.

use super::address::VMID_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// The vmids of one family, with a `T` kept ready under each of some.
#[derive(Debug)]
pub struct Places<T> {
    /// From here on no vmid was ever bound or given.
    next: u32,
    /// Below `next`, bound once and never given, with nothing under them now.
    free: BTreeSet<u32>,
    kept: BTreeMap<u32, T>,
    /// Above every vmid that was given.
    mark: u32,
}

impl<T> Places<T> {
    /// All vmids below `next` were given.
    #[must_use]
    pub fn from(next: u32) -> Self {
        Self { next, free: BTreeSet::new(), kept: BTreeMap::new(), mark: next }
    }

    /// All vmids below `next` were given; for a family that is being found again, with nothing kept yet.
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
        let mut places = Places::from(1);
        for _ in 0..2 {
            let vmid = places.bind().unwrap();
            places.keep(vmid, format!("warm {vmid}"));
        }
        assert_eq!(places.take(), Some((1, Some("warm 1".into()))));
        assert_eq!(places.take(), Some((2, Some("warm 2".into()))));
        assert_eq!(places.take(), Some((3, None)));
        assert_eq!((places.mark(), places.kept()), (4, 0));
    }

    #[test]
    fn a_vmid_that_was_never_used_comes_again_and_a_given_one_never() {
        let mut places = Places::from(7);
        let bound = places.bind().unwrap();
        places.keep(bound, ());
        assert_eq!(places.pull(bound), Some(()));
        assert_eq!(places.bind(), Some(8), "not while the old one is being cleared away");
        places.release(bound);
        assert_eq!(places.take(), Some((7, None)));
        assert_eq!((places.bind(), places.mark()), (Some(9), 8));
        places.raise(20);
        assert_eq!((places.bind(), places.mark()), (Some(20), 20));
    }

    #[test]
    fn too_much_goes_from_the_end() {
        let mut places = Places::from(1);
        for what in ["a", "b", "c"] {
            let vmid = places.bind().unwrap();
            places.keep(vmid, what);
        }
        assert_eq!(places.trim(2), Some((3, "c")));
        assert_eq!(places.trim(2), None);
        assert_eq!(places.clear(), ["a", "b"]);
    }

    #[test]
    fn a_family_runs_out_of_vmids() {
        let mut places = Places::from(VMID_MAX);
        assert_eq!(places.left(), 1);
        let last = places.bind().unwrap();
        places.keep(last, ());
        assert_eq!((places.left(), places.bind()), (1, None));
        assert_eq!(places.take(), Some((VMID_MAX, Some(()))));
        assert_eq!((places.left(), places.take()), (0, None));
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
            let mut places = Places::from(1);
            let mut given = BTreeSet::new();
            let mut back = None;
            for step in steps {
                match step {
                    Step::Fill => if let Some(vmid) = places.bind() {
                        prop_assert!(!given.contains(&vmid) && !places.kept.contains_key(&vmid));
                        places.keep(vmid, vmid);
                    },
                    Step::Lose(index) => {
                        let vmid = places.kept.keys().nth(index).copied();
                        if let Some(vmid) = vmid {
                            prop_assert_eq!(places.pull(vmid), Some(vmid));
                            places.release(vmid);
                        }
                    }
                    Step::Take => {
                        let (vmid, what) = places.take().unwrap();
                        prop_assert!(given.insert(vmid), "{} is given twice", vmid);
                        prop_assert!(what.is_none_or(|what| what == vmid));
                        prop_assert!(vmid < places.mark());
                        back = what;
                    }
                    Step::GiveBack => if let Some(what) = back.take() {
                        given.remove(&what);
                        places.keep(what, what);
                    },
                    Step::Trim(most) => if let Some((vmid, what)) = places.trim(most) {
                        prop_assert_eq!(vmid, what);
                        places.release(vmid);
                    },
                }
                let numbered = given.len() + places.kept.len() + places.free.len();
                prop_assert_eq!(u32::try_from(numbered).unwrap(), places.next - 1);
            }
        }
    }
}
