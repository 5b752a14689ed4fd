//! Figures, their limits, and their output.

use crate::host::HostFacts;
use comfy_table::{ContentArrangement, Table, presets};
use serde::{Deserialize, Serialize, Serializer};

/// One figure: how it is spread, and the limits that the specification sets for its median.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    name: String,
    figures: Figures,
    /// Which side of the limits is the good one.
    good: Good,
    /// What the median must reach.
    must: Option<f64>,
    /// What it should reach.
    aim: Option<f64>,
    /// What the least that must be done costs, measured in the same run.
    floor: Option<f64>,
}

/// On which side of a limit a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Good {
    /// Times, sizes.
    AtMost,
    /// Rates.
    AtLeast,
}

impl Good {
    fn reaches(self, figure: f64, limit: f64) -> bool {
        match self {
            Self::AtMost => figure <= limit,
            Self::AtLeast => figure >= limit,
        }
    }
}

/// How a figure is spread.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// For example `ms`.
    pub unit: String,
    /// How many samples.
    pub n: usize,
    /// The median.
    pub p50: f64,
    /// Only one of a hundred is above.
    pub p99: f64,
    /// The worst.
    pub max: f64,
}

impl Figures {
    /// Of samples; `None` when there are none.
    pub fn of(unit: &str, mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| quantile(&samples, part));
        Some(Self { unit: unit.to_owned(), n: samples.len(), p50: p50?, p99: p99?, max: max? })
    }
}

/// The smallest sample that at least this part of all samples does not exceed (nearest rank).
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank between 1 and the number of samples"
    )]
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

impl Metric {
    /// A figure; its name ends with its unit, as in `agent_ready_ms`.
    pub fn new(name: &str, figures: Figures) -> Self {
        Self { name: name.to_owned(), figures, good: Good::AtMost, must: None, aim: None, floor: None }
    }

    /// Of samples; `None` when there are none.
    pub fn of(name: &str, unit: &str, samples: Vec<f64>) -> Option<Self> {
        Figures::of(unit, samples).map(|figures| Self::new(name, figures))
    }

    /// With limits that its median must not, and should not, be above.
    pub fn limits(mut self, must: f64, aim: f64) -> Self {
        (self.must, self.aim) = (Some(must), Some(aim));
        self
    }

    /// With limits that its median must not, and should not, be below.
    pub fn at_least(self, must: f64, aim: f64) -> Self {
        Self { good: Good::AtLeast, ..self.limits(must, aim) }
    }

    /// With what it is measured against, in the same unit.
    pub fn floor(mut self, floor: f64) -> Self {
        self.floor = Some(floor);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.figures.p50
    }

    fn holds(&self) -> bool {
        self.must.is_none_or(|must| self.good.reaches(self.figures.p50, must))
    }

    fn verdict(&self) -> &'static str {
        let median = self.figures.p50;
        match (self.must, self.aim) {
            (Some(must), _) if !self.good.reaches(median, must) => "MISSED",
            (_, Some(aim)) if !self.good.reaches(median, aim) => match self.good {
                Good::AtMost => "ok, above aim",
                Good::AtLeast => "ok, below aim",
            },
            (Some(_), _) => "ok",
            (None, _) => "",
        }
    }
}

/// All figures of one benchmark, in the form that every benchmark of this project has.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: String,
    revision: String,
    host: HostFacts,
    #[serde(serialize_with = "by_name")]
    metrics: Vec<Metric>,
    /// What has to be known to read the figures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// A figure as JSON has it.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    figures: &'a Figures,
    /// Whether `must` and `aim` are what it must not be below.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    at_least: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    must: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aim: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<f64>,
}

fn by_name<S: Serializer>(metrics: &[Metric], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(metrics.iter().map(|metric| {
        let Metric { name, figures, good, must, aim, floor } = metric;
        let at_least = *good == Good::AtLeast;
        (name, Row { figures, at_least, must: *must, aim: *aim, floor: *floor })
    }))
}

impl Report {
    /// The figures of `bench`, measured now on this host with this revision.
    pub fn new(bench: String, host: HostFacts, metrics: Vec<Metric>, notes: Vec<String>) -> Self {
        Self { bench, revision: crate::host::revision(), host, metrics, notes }
    }

    /// Whether every figure reaches what it must.
    pub fn holds(&self) -> bool {
        self.metrics.iter().all(Metric::holds)
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["METRIC", "UNIT", "N", "P50", "P99", "MAX", "FLOOR", "MUST", "AIM", ""]);
        let plain = |limit: Option<f64>| limit.map(number).unwrap_or_default();
        for metric in &self.metrics {
            let sign = if metric.good == Good::AtLeast { ">= " } else { "" };
            let limit = |limit: Option<f64>| {
                limit.map(|limit| format!("{sign}{}", number(limit))).unwrap_or_default()
            };
            table.add_row([
                metric.name.clone(),
                metric.figures.unit.clone(),
                metric.figures.n.to_string(),
                number(metric.figures.p50),
                number(metric.figures.p99),
                number(metric.figures.max),
                plain(metric.floor),
                limit(metric.must),
                limit(metric.aim),
                metric.verdict().to_owned(),
            ]);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let HostFacts { cpus, memory_mib, processor, kvm } = &self.host;
        let host = format!(
            "{}: {cpus} CPUs, {processor}, {memory_mib} MiB, KVM: {kvm}, revision {}",
            self.bench, self.revision
        );
        let rows = table.lines().map(|line| line.trim_end().to_owned());
        let notes = self.notes.iter().map(|note| format!("- {note}"));
        std::iter::once(host).chain(rows).chain(notes).collect::<Vec<_>>().join("\n")
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    if value >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> HostFacts {
        HostFacts { cpus: 2, memory_mib: 1024, processor: "a CPU".into(), kvm: "software".into() }
    }

    fn metric(samples: &[f64]) -> Metric {
        Metric::new("agent_ready_ms", Figures::of("ms", samples.to_vec()).unwrap())
    }

    #[test]
    fn quantiles_are_samples() {
        let few = metric(&[5.0, 1.0, 3.0]).figures;
        assert_eq!((few.n, few.p50, few.p99, few.max), (3, 3.0, 5.0, 5.0));
        let hundred = metric(&(1..=100).map(f64::from).collect::<Vec<_>>()).figures;
        assert_eq!((hundred.p50, hundred.p99), (50.0, 99.0));
        assert_eq!(Figures::of("ms", Vec::new()), None);
    }

    #[test]
    fn a_median_above_its_limit_is_missed() {
        let slow = metric(&[30.0]).limits(20.0, 10.0);
        assert!(!slow.holds() && slow.verdict() == "MISSED");
        let fair = metric(&[15.0]).limits(20.0, 10.0);
        assert!(fair.holds() && fair.verdict() == "ok, above aim");
        assert!(metric(&[9.0]).limits(20.0, 10.0).verdict() == "ok");
    }

    #[test]
    fn a_rate_below_its_limit_is_missed() {
        let slow = metric(&[9.0]).at_least(10.0, 20.0);
        assert!(!slow.holds() && slow.verdict() == "MISSED");
        let fair = metric(&[15.0]).at_least(10.0, 20.0);
        assert!(fair.holds() && fair.verdict() == "ok, below aim");
        assert!(metric(&[30.0]).at_least(10.0, 20.0).verdict() == "ok");
        let host = facts();
        let report = Report::new("ticket".into(), host, vec![fair], Vec::new());
        assert!(report.table().contains(">= 10"), "{}", report.table());
        assert_eq!(serde_json::to_value(report).unwrap()["metrics"]["agent_ready_ms"]["at_least"], true);
    }

    #[test]
    fn the_json_has_the_form_that_is_promised() {
        let host = facts();
        let limited = Metric::of("pause_us", "us", vec![4.0]).unwrap().limits(5.0, 1.0).floor(0.5);
        let report = Report::new("boot".into(), host, vec![metric(&[1.0, 2.0]), limited], Vec::new());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["host"]["kvm"], "software");
        assert_eq!(json["host"]["processor"], "a CPU");
        assert!(report.table().starts_with("boot: 2 CPUs, a CPU, 1024 MiB, KVM: software, revision "));
        let expected = serde_json::json!({"unit": "ms", "n": 2, "p50": 1.0, "p99": 2.0, "max": 2.0});
        assert_eq!(json["metrics"]["agent_ready_ms"], expected);
        let expected = serde_json::json!({"unit": "us", "n": 1, "p50": 4.0, "p99": 4.0, "max": 4.0,
            "must": 5.0, "aim": 1.0, "floor": 0.5});
        assert_eq!(json["metrics"]["pause_us"], expected);
        assert!(json.get("notes").is_none());
        assert!(json["revision"].is_string() && json["bench"] == "boot");
    }
}
