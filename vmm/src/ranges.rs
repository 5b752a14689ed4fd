//! Runs: ascending ranges of bytes that do not overlap, such as the pages that a guest has written.

use std::ops::Range;

/// Joins the runs with the smallest gaps between them until there are at most `most` runs. The
/// joined runs include the gaps: a few more pages give fewer mappings.
#[must_use]
pub fn join(runs: Vec<Range<u64>>, most: usize) -> Vec<Range<u64>> {
    if runs.len() <= most {
        return runs;
    }
    let mut gaps: Vec<u64> = runs.windows(2).map(|pair| pair[1].start - pair[0].end).collect();
    // After this, so many gaps as must go are no longer than `limit`.
    let (_, limit, _) = gaps.select_nth_unstable(runs.len() - most - 1);
    let limit = *limit;
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(most);
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start - last.end <= limit => last.end = run.end,
            _ => joined.push(run),
        }
    }
    joined
}

/// The gaps of up to `most_bytes` between ascending runs.
#[must_use]
pub fn small_gaps(runs: &[Range<u64>], most_bytes: u64) -> Vec<Range<u64>> {
    let gaps = runs.windows(2).map(|pair| pair[0].end..pair[1].start);
    gaps.filter(|gap| gap.end - gap.start <= most_bytes).collect()
}

/// Ascending runs, joined if the gap between them is at most `bytes`.
#[must_use]
pub fn near(runs: &[Range<u64>], bytes: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start - last.end <= bytes => last.end = run.end,
            _ => joined.push(run.clone()),
        }
    }
    joined
}

/// What is in `runs` and not in `others`. Both are ascending, and no run of one overlaps another of
/// it.
#[must_use]
pub fn without(runs: &[Range<u64>], others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut others = others.iter().peekable();
    for run in runs {
        let mut start = run.start;
        while let Some(other) = others.next_if(|other| other.end <= run.end) {
            if other.end > start {
                if other.start > start {
                    left.push(start..other.start);
                }
                start = other.end;
            }
        }
        // The next one goes on behind this run, and may take away from the one after it too.
        let end = others.peek().map_or(run.end, |other| other.start.clamp(start, run.end));
        if start < end {
            left.push(start..end);
        }
    }
    left
}

/// How many bytes are in runs that do not overlap.
#[must_use]
pub fn bytes_of(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|run| run.end - run.start).sum()
}

/// The union of any runs, as ascending runs that do not touch.
#[must_use]
pub fn union(mut runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    runs.sort_unstable_by_key(|run| run.start);
    let mut united: Vec<Range<u64>> = Vec::with_capacity(runs.len());
    for run in runs {
        match united.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => united.push(run),
        }
    }
    united
}

/// What tests of runs share.
#[cfg(test)]
pub(crate) mod testing {
    use patina_control::PAGE_BYTES;
    use std::ops::Range;

    /// The runs of the pages of a set.
    pub fn runs(set: &[bool]) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (page, _) in (0..).zip(set).filter(|(_, is_in)| **is_in) {
            let at: u64 = page * PAGE_BYTES;
            match runs.last_mut() {
                Some(last) if last.end == at => last.end += PAGE_BYTES,
                _ => runs.push(at..at + PAGE_BYTES),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::testing::runs;
    use super::*;
    use patina_control::PAGE_BYTES;
    use proptest::prelude::*;

    const PAGES: u64 = 64;

    proptest! {
        #[test]
        fn joined_runs_are_few_and_cover_all(set in prop::collection::vec(any::<bool>(), PAGES as usize), most in 1usize..20) {
            let before = runs(&set);
            let after = join(before.clone(), most);
            prop_assert!(after.len() <= most.max(1));
            prop_assert!(after.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert!(before.iter().all(|run| after.iter().any(|all| all.start <= run.start && run.end <= all.end)));
            prop_assert!(before.len() > most || before == after);
        }

        #[test]
        fn runs_that_are_near_are_one_and_others_are_not(set in prop::collection::vec(any::<bool>(), PAGES as usize), most in 0u64..5) {
            let before = runs(&set);
            let after = near(&before, most * PAGE_BYTES);
            prop_assert!(after.windows(2).all(|pair| pair[1].start - pair[0].end > most * PAGE_BYTES));
            prop_assert!(before.iter().all(|run| after.iter().any(|all| all.start <= run.start && run.end <= all.end)));
            prop_assert!(after.iter().all(|all| before.iter().any(|run| run.start == all.start)));
            prop_assert!(after.iter().all(|all| before.iter().any(|run| run.end == all.end)));
        }
    }

    proptest! {
        #[test]
        fn what_is_left_of_runs_is_what_others_do_not_have(
            set in prop::collection::vec(any::<bool>(), PAGES as usize),
            other in prop::collection::vec(any::<bool>(), PAGES as usize),
        ) {
            let left: Vec<_> = set.iter().zip(&other).map(|(is_in, is_out)| *is_in && !*is_out).collect();
            // What lies at a border of two runs stays two runs.
            prop_assert_eq!(union(without(&runs(&set), &runs(&other))), runs(&left));
        }
    }

    #[test]
    fn runs_that_touch_are_one() {
        assert_eq!(union(vec![5..9, 0..2, 2..3, 6..7]), [0..3, 5..9]);
        assert_eq!(union(Vec::new()), []);
    }
}
