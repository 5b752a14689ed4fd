//! Collects the gauges: how many VMs and warm VMs the host has now, and what they use of it.

use super::host::Host;
use crate::{plan::lifecycle::Phase, process::usage::Usage};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};
use std::{
    fmt,
    sync::{Arc, Weak},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// What there is on a host at the moment when somebody asks.
#[derive(Debug)]
pub struct Gauges(Weak<Host>);

impl Gauges {
    /// Of this host, which may be gone by then.
    #[must_use]
    pub fn new(host: &Arc<Host>) -> Self {
        Self(Arc::downgrade(host))
    }
}

impl Collector for Gauges {
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
    spare: u32,
}

impl Amounts {
    fn of(host: &Host) -> Self {
        let all = host.table.all();
        let mut amounts = Self { warm: host.table.warm(), spare: host.spares.count(), ..Self::default() };
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
        let Self { booting, ready, ended, used, private_kib, shared_kib, warm, spare } = self;
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
            ("vmms_warm", "vmm processes of families that wait for a generation", u64::from(*warm)),
            (
                "vmms_spare",
                "vmm processes of no family yet, for VMs that are restored or start from an image",
                u64::from(*spare),
            ),
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
    use crate::{
        cluster,
        metrics::{Metrics, Stage},
        options::Options,
    };
    use clap::Parser as _;
    use patina_proto::v1::ReleaseTicketRequest;
    use scheduler::{embedded::Embedded, store::memory::MemoryStore};
    use std::{collections::BTreeSet, time::Duration};
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
        let registry = metrics.registry(Box::new(Nothing));
        let scheduler = embedded.engine().metrics_text().await.unwrap();
        let text = Metrics::text(Arc::new(registry), Some(scheduler)).await;
        embedded.stop().await;
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let told: BTreeSet<(&str, &str)> = types.filter_map(|line| line.split_once(' ')).collect();
        let rows = include_str!("../../../docs/metrics.md").lines().filter_map(|line| {
            let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            Some((name, rest.split_once(" | ")?.0))
        });
        let documented: BTreeSet<(&str, &str)> = rows.collect();
        assert!(told.len() > 15, "{told:?}");
        assert_eq!(told, documented);
    }
}
