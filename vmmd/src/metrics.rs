//! Numbers for operators, in Prometheus's form: what clones cost, and what there is.
//!
//! What happens is counted as it happens; what there is, is looked at when somebody asks.

use crate::{plan::lifecycle::Phase, process::usage::Usage, vms::Host};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use scheduler::engine::{Engine, Refusal};
use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::task::spawn_blocking;

/// Which part of a clone's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the call to the right to make clones.
    Admit,
    /// The guest's preparation and the freeze, to having the generation.
    Freeze,
    /// From the call to the clone's first entry into its guest.
    Executing,
    /// From there to its agent's ready.
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
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
    /// A part of a clone's way has taken so long.
    pub fn stage(&self, stage: Stage, took: Duration) {
        let stage = match stage {
            Stage::Admit => "admit",
            Stage::Freeze => "freeze",
            Stage::Executing => "executing",
            Stage::Ready => "ready",
        };
        self.stages.get_or_create(&StageLabel { stage }).observe(took.as_secs_f64());
    }

    /// A VM stood still so long, and so much of its RAM was copied.
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

    /// What a registry of this host's says, and what the scheduler that is built in says, in one text.
    ///
    /// # Errors
    /// The scheduler stops.
    pub async fn text(registry: Arc<Registry>, engine: Option<Engine>) -> Result<String, Refusal> {
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
        if let Some(engine) = engine {
            // Each text ends with a line that says so.
            all.truncate(all.trim_end_matches("# EOF\n").len());
            all.push_str(&engine.metrics().text(&engine).await?);
        }
        Ok(all)
    }

    /// All of it, and what there is on the host.
    #[must_use]
    pub fn registry(host: &Arc<Host>) -> Registry {
        host.metrics.with(Box::new(Now(Arc::downgrade(host))))
    }

    fn with(&self, now: Box<dyn Collector>) -> Registry {
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
        all.register_collector(now);
        all
    }
}

/// What there is at the moment when somebody asks.
struct Now(Weak<Host>);

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Now")
    }
}

impl Collector for Now {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.0.upgrade().map_or(Ok(()), |host| Amounts::of(&host).encode(encoder))
    }
}

/// What there is at a moment.
#[derive(Debug, Default)]
struct Amounts {
    booting: usize,
    ready: usize,
    ended: usize,
    used: Usage,
    private_kib: u64,
    shared_kib: u64,
    warm: u32,
}

impl Amounts {
    fn of(host: &Host) -> Self {
        let all = host.table.all();
        let mut amounts = Self { warm: host.table.warm(), ..Self::default() };
        for vm in &all {
            match vm.status().phase {
                Phase::Booting => amounts.booting += 1,
                Phase::Ready => amounts.ready += 1,
                Phase::Ended(_) => amounts.ended += 1,
            }
        }
        for (usage, is_uncloned) in all.iter().filter_map(|vm| host.usage(vm)) {
            amounts.private_kib += usage.private_kib(is_uncloned);
            amounts.shared_kib += usage.shared_kib(is_uncloned);
            let used = &mut amounts.used;
            used.cpu_us += usage.cpu_us;
            used.minor_faults += usage.minor_faults;
            used.major_faults += usage.major_faults;
        }
        amounts
    }

    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self { booting, ready, ended, used, private_kib, shared_kib, warm } = self;
        let mut states = encoder.encode_descriptor("vms", "VMs by state", None, MetricType::Gauge)?;
        for (state, count) in [("booting", *booting), ("ready", *ready), ("ended", *ended)] {
            let label = StateLabel { state };
            ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX))
                .encode(states.encode_family(&label)?)?;
        }
        let gauges = [
            (
                "vms_memory_private_bytes",
                "Memory of running VMs' own: what they wrote since they were cloned, all RAM of one without clones",
                private_kib * 1024,
            ),
            (
                "vms_memory_shared_bytes",
                "Memory of running VMs in generations and files, which others may share, counted for each",
                shared_kib * 1024,
            ),
            ("vms_minor_faults", "Page faults of running VMs without I/O", used.minor_faults),
            ("vms_major_faults", "Page faults of running VMs with I/O", used.major_faults),
            // No counter: what a VM had goes with it.
            ("vms_cpu_seconds", "Time that the VMs that run had", used.cpu_us / 1_000_000),
            ("vmms_warm", "vmm processes that wait for a generation", u64::from(*warm)),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{cluster, options::Options};
    use clap::Parser as _;
    use patina_proto::v1::ReleaseTicketRequest;
    use scheduler::{embedded::Embedded, store::memory::MemoryStore};
    use std::collections::BTreeSet;
    use uuid::Uuid;

    #[derive(Debug)]
    struct Nothing;

    impl Collector for Nothing {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            Amounts::default().encode(encoder)
        }
    }

    #[tokio::test]
    async fn every_metric_is_in_the_documentation_with_its_kind_and_no_other() {
        let options = Options::try_parse_from(["vmmd", "--standalone"]).unwrap();
        let embedded =
            Embedded::start(Box::new(MemoryStore::default()), cluster::granting(&options)).unwrap();
        // What has labels is there from the first time on.
        let unknown = ReleaseTicketRequest { id: Uuid::new_v4().to_string(), family: String::new() };
        embedded.connection().client().release_ticket(unknown).await.unwrap_err();
        let metrics = Metrics::default();
        metrics.stage(Stage::Admit, Duration::ZERO);
        metrics.clones(1, 0);
        metrics.guest_call(true);
        let registry = metrics.with(Box::new(Nothing));
        let text = Metrics::text(Arc::new(registry), Some(embedded.engine().clone())).await.unwrap();
        embedded.stop().await;
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let told: BTreeSet<(&str, &str)> = types.filter_map(|line| line.split_once(' ')).collect();
        let rows = include_str!("../../docs/metrics.md").lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            Some((name, rest.split_once(" | ")?.0))
        });
        let documented: BTreeSet<(&str, &str)> = rows.collect();
        assert!(told.len() > 15, "{told:?}");
        assert_eq!(told, documented);
    }
}
