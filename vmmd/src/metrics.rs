//! Metrics in Prometheus's format. Counters and histograms are updated here as things happen.
//! Gauges are collected by their owner when they are read.

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{sync::Arc, time::Duration};
use tokio::task::spawn_blocking;

/// Which part of a clone's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the call to the authorization to make clones.
    Admit,
    /// The freeze, to having the generation. If an operator asked, the guest's preparation too.
    Freeze,
    /// From the call to the clone's first entry into its guest.
    Executing,
    /// From the arrival of the generation at the clone's vmm until its agent is ready.
    Ready,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// What has happened.
#[derive(Debug)]
pub struct Metrics {
    stages: Family<StageLabel, Histogram, fn() -> Histogram>,
    pauses: Histogram,
    copied_bytes: Counter,
    clones: Family<ResultLabel, Counter>,
    calls: Family<ResultLabel, Counter>,
}

/// From 0.1 ms to 26 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 2.0, 19))
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            stages: Family::new_with_constructor(seconds),
            pauses: seconds(),
            copied_bytes: Counter::default(),
            clones: Family::default(),
            calls: Family::default(),
        }
    }
}

impl Metrics {
    /// Records how long a part of a clone's way took.
    pub fn stage(&self, stage: Stage, took: Duration) {
        let stage = match stage {
            Stage::Admit => "admit",
            Stage::Freeze => "freeze",
            Stage::Executing => "executing",
            Stage::Ready => "ready",
        };
        self.stages.get_or_create(&StageLabel { stage }).observe(took.as_secs_f64());
    }

    /// Records how long a VM was paused, and how much of its RAM was copied.
    pub fn pause(&self, took: Duration, copied_bytes: u64) {
        self.pauses.observe(took.as_secs_f64());
        self.copied_bytes.inc_by(copied_bytes);
    }

    /// So many clones of a call came to be, or did not.
    pub fn clones(&self, made: u64, failed: u64) {
        for (result, count) in [("made", made), ("failed", failed)] {
            self.clones.get_or_create(&ResultLabel { result }).inc_by(count);
        }
    }

    /// A guest's call has been answered.
    pub fn guest_call(&self, is_ok: bool) {
        self.calls.get_or_create(&ResultLabel { result: if is_ok { "ok" } else { "error" } }).inc();
    }

    /// What a registry of this host's says, and after it what the scheduler that is built in says,
    /// in one text.
    pub async fn text(registry: Arc<Registry>, scheduler: Option<String>) -> String {
        // It reads some files of each VM.
        let encode = move || {
            let mut all = String::new();
            text::encode(&mut all, &registry).map(|()| all)
        };
        let mut all = match spawn_blocking(encode).await {
            Ok(Ok(all)) => all,
            _ => {
                tracing::error!("the metrics cannot be written as text");
                String::new()
            }
        };
        if let Some(scheduler) = scheduler {
            // Each text ends with a line that says so.
            all.truncate(all.trim_end_matches("# EOF\n").len());
            all.push_str(&scheduler);
        }
        all
    }

    /// A registry of all of it, and of what there is (`gauges`).
    #[must_use]
    pub fn registry(&self, gauges: Box<dyn Collector>) -> Registry {
        let mut all = Registry::with_prefix("patina");
        all.register_with_unit("clone_stage", "Parts of a clone's way", Unit::Seconds, self.stages.clone());
        all.register_with_unit(
            "clone_pause",
            "How long no vCPU of a VM that was cloned ran",
            Unit::Seconds,
            self.pauses.clone(),
        );
        all.register_with_unit(
            "clone_copied",
            "RAM that was copied into generations",
            Unit::Bytes,
            self.copied_bytes.clone(),
        );
        all.register("clones", "Clones, made or failed", self.clones.clone());
        all.register("guest_calls", "Calls of guests that the host answered", self.calls.clone());
        all.register_collector(gauges);
        all
    }
}
