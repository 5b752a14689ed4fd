//! Decides what a starting `vmmd` does with each folder under `vms/` that an earlier one left.

use crate::{plan::lifecycle::Ended, store::record::Record};

/// What was found in a folder.
#[derive(Debug)]
pub enum Found {
    /// No record: `CreateVm` was cut off before it wrote one, or `RemoveVm` after it deleted it.
    NoRecord,
    /// A record.
    Record(Box<Record>),
}

/// What to do.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Delete the folder; whatever process belongs to it is ended first.
    RemoveHalfMade,
    /// It ended while some `vmmd` looked: only the record is kept.
    KeepEnded(Ended),
    /// Its process runs: supervise it again.
    Adopt,
    /// It ended while no `vmmd` looked: read its end file, clean up and record.
    RecordEnd,
}

/// Decides for one folder. `alive`: the very process of the record runs (same pid, start and boot).
#[must_use]
pub fn decide(found: &Found, alive: bool) -> Decision {
    let record = match found {
        Found::NoRecord => return Decision::RemoveHalfMade,
        Found::Record(record) => record,
    };
    match (&record.ended, &record.process) {
        (Some(ended), _) => Decision::KeepEnded(ended.clone()),
        // The record is written before the process starts; without one, nobody was told that the VM
        // exists.
        (None, None) => Decision::RemoveHalfMade,
        (None, Some(_)) if alive => Decision::Adopt,
        (None, Some(_)) => Decision::RecordEnd,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{process_id::ProcessId, store::record::tests::sample};
    use patina_control::end::{End, EndKind};

    fn with(change: impl FnOnce(&mut Record)) -> Found {
        let mut record = sample("a");
        change(&mut record);
        Found::Record(Box::new(record))
    }

    fn process() -> ProcessId {
        ProcessId { pid: 4, start_ticks: 5, boot: "b".into() }
    }

    #[test]
    fn half_made_folders_go() {
        assert_eq!(decide(&Found::NoRecord, false), Decision::RemoveHalfMade);
        assert_eq!(decide(&with(|r| r.process = None), false), Decision::RemoveHalfMade);
    }

    #[test]
    fn a_running_vm_is_adopted_a_gone_one_recorded() {
        assert_eq!(decide(&with(|r| r.process = Some(process())), true), Decision::Adopt);
        assert_eq!(decide(&with(|r| r.process = Some(process())), false), Decision::RecordEnd);
    }

    #[test]
    fn an_end_stays_even_if_its_pid_lives_again() {
        let ended = Ended { end: End { kind: EndKind::Killed, reason: "x".into() }, unix_ms: 3 };
        let found = with(|r| {
            r.process = Some(process());
            r.ended = Some(ended.clone());
        });
        assert_eq!(decide(&found, true), Decision::KeepEnded(ended));
    }
}
