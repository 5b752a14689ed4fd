//! Reports the outcome of a clone call: in the log, as an event, and in the metrics.

use super::{Outcome, Source, Times};
use crate::{metrics::Stage, store::record::Record, vms::host::Host};
use patina_control::{PAGE_BYTES, messages::Frozen};
use patina_proto::v1::EventKind;
use std::time::Duration;

impl Host {
    pub(super) fn count(&self, freeze: Duration, frozen: Frozen, outcomes: &[Outcome]) {
        self.metrics.stage(Stage::Freeze, freeze);
        self.metrics
            .pause(Duration::from_micros(frozen.pause_us), frozen.copied_pages.saturating_mul(PAGE_BYTES));
        let made = outcomes.iter().filter_map(|outcome| outcome.made.as_ref().ok());
        made.clone().for_each(|(_, times)| self.metrics.stage(Stage::Executing, times.executing));
        let made = made.count();
        self.metrics.clones(made as u64, (outcomes.len() - made) as u64);
    }

    pub(super) fn tell_cloned(&self, source: &Source, frozen: Frozen, outcomes: &[Outcome]) {
        let vmids = |made: bool| -> Vec<u32> {
            outcomes.iter().filter(|o| o.made.is_ok() == made).map(|o| o.vmid).collect()
        };
        let (made, failed) = (vmids(true), vmids(false));
        let of = Record { ticket: source.ticket, ..source.parent.clone() };
        let text = format!("vmids {made:?}, paused for {} us", frozen.pause_us);
        self.tell(
            &of,
            EventKind::Cloned,
            if failed.is_empty() { text } else { format!("{text}; failed: {failed:?}") },
        );
    }
}

/// Says where the time went: all from the call's arrival on, but for the freeze itself.
pub(super) fn log(source: &Source, asked: Duration, freeze: Duration, frozen: Frozen, outcomes: &[Outcome]) {
    let times: Vec<&Times> =
        outcomes.iter().filter_map(|outcome| Some(&outcome.made.as_ref().ok()?.1)).collect();
    let us = |time: fn(&Times) -> Duration| {
        let us = times.iter().map(|times| time(times).as_micros());
        us.clone().min().zip(us.max())
    };
    let record = &source.parent;
    tracing::info!(
        vm = record.name,
        family = %record.family,
        vmid = record.vmid,
        ticket = source.ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
        clones = times.len(),
        failed = outcomes.len() - times.len(),
        asked_us = asked.as_micros(),
        freeze_us = freeze.as_micros(),
        frozen.pause_us,
        frozen.copied_pages,
        frozen.copied_beside_pages,
        sent_us = ?us(|times| times.sent).unwrap_or_default(),
        executing_us = ?us(|times| times.executing).unwrap_or_default(),
        "cloned"
    );
}
