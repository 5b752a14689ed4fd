//! The `boot` benchmark: from `vmctl run` to a ready agent, the memory of a `vmm`, and the cost of
//! a guest's kernel.

use crate::{
    report::{Figures, Metric},
    smaps,
};
use patina_tests::{
    host::{Host, HostError},
    setup::Setup,
    vm::Vm,
};
use std::{collections::BTreeMap, error::Error, fs, io};

/// What the specification promises, medians.
const READY_MUST_MS: f64 = 20_000.0;
const READY_AIM_MS: f64 = 10_000.0;
const OVERHEAD_MUST_KIB: f64 = 8192.0;
const OVERHEAD_AIM_KIB: f64 = 4096.0;

/// The program in the `bench` image that measures the guest's kernel.
const GUEST_BENCH: &str = "/usr/lib/patina/guest-bench";
/// How often `gc vmid` is started.
const GC_CALLS: &str = "50";
/// What `gc vmid` reads.
const IDENTITY_FILE: &str = "/run/gridcentric/identity";

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A host or a guest failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The vmm's memory cannot be read.
    #[error("read {path}: {source}")]
    Smaps {
        /// The file.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// What was read is not a vmm's memory.
    #[error("{0} shows no guest RAM")]
    NoRam(String),
    /// A program in the guest printed something else than figures.
    #[error("{program} printed no figures: {text}")]
    Figures {
        /// The program.
        program: &'static str,
        /// What it printed.
        text: String,
    },
}

/// Boots `boots` guests one after another and measures; the last one also measures its kernel.
pub fn measure(setup: &Setup, boots: u32) -> Result<Vec<Metric>, Box<dyn Error>> {
    let host = Host::start_with(setup, &["--image-cache", "none"])?;
    let measured = all(&host, boots);
    host.stop()?;
    Ok(measured?)
}

fn all(host: &Host, boots: u32) -> Result<Vec<Metric>, BootError> {
    let (mut ready_ms, mut overhead_kib, mut vmm_ready_ms) = (Vec::new(), Vec::new(), Vec::new());
    let mut guest = Vec::new();
    for boot in 1..=boots {
        let output = host.vmctl(&["run", "--name", "bench"])?;
        patina_tests::host::succeeded(&["run"], &output)?;
        let vm = host.vm("bench");
        let state = vm.inspect()?;
        ready_ms.push(output.elapsed.as_secs_f64() * 1e3);
        vmm_ready_ms.push(state["ready_after_us"].as_f64().unwrap_or_default() / 1e3);
        overhead_kib.push(overhead(state["pid"].as_u64().unwrap_or_default())?);
        patina_daemon::say!("boot {boot} of {boots}: {:.2} s", output.elapsed.as_secs_f64());
        if boot == boots {
            guest = guest_metrics(&vm)?;
        }
        vm.remove()?;
    }
    let figures = |samples| Figures::of("ms", samples);
    let own = [
        figures(ready_ms)
            .map(|figures| Metric::new("agent_ready_ms", figures).limits(READY_MUST_MS, READY_AIM_MS)),
        figures(vmm_ready_ms).map(|figures| Metric::new("vmm_ready_ms", figures)),
        Figures::of("KiB", overhead_kib).map(|figures| {
            Metric::new("vmm_overhead_kib", figures).limits(OVERHEAD_MUST_KIB, OVERHEAD_AIM_KIB)
        }),
    ];
    Ok(own.into_iter().flatten().chain(guest).collect())
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn overhead(pid: u64) -> Result<f64, BootError> {
    let path = format!("/proc/{pid}/smaps");
    let smaps =
        fs::read_to_string(&path).map_err(|source| BootError::Smaps { path: path.clone(), source })?;
    smaps::overhead_kib(&smaps).map(|kib| kib as f64).ok_or(BootError::NoRam(path))
}

/// What programs in the guest measure.
fn guest_metrics(vm: &Vm<'_>) -> Result<Vec<Metric>, BootError> {
    let text = vm.call(&[GUEST_BENCH, "--all"])?;
    let measured: BTreeMap<String, Figures> = serde_json::from_str(&text)
        .map_err(|_| BootError::Figures { program: GUEST_BENCH, text: text.clone() })?;
    let mut metrics: Vec<Metric> =
        measured.into_iter().map(|(name, figures)| Metric::new(&name, figures)).collect();
    let check = vm.install("guest-check")?;
    let mut gc = |name, unit, arguments: &[&str]| -> Result<(), BootError> {
        let text = vm.call(&[&[check.as_str()], arguments].concat())?;
        let samples: Result<Vec<f64>, _> = text.lines().map(|line| line.trim().parse()).collect();
        let figures = samples.ok().and_then(|samples| Figures::of(unit, samples));
        let figures = figures.ok_or(BootError::Figures { program: "guest-check", text })?;
        metrics.push(Metric::new(name, figures));
        Ok(())
    };
    gc("gc_vmid_us", "us", &["spawn", GC_CALLS, "/usr/bin/gc", "vmid"])?;
    gc("gc_vmid_answer_us", "us", &["read", GC_CALLS, IDENTITY_FILE])?;
    gc("gc_vmid_syscalls", "calls", &["syscalls", "/usr/bin/gc", "vmid"])?;
    Ok(metrics)
}
