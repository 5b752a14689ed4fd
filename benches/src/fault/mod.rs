//! The `fault` benchmark: what a page fault costs that a pager answers, beside a bare loop that
//! does no more than the kernel demands. There are no guests: threads of the benchmark have the
//! faults.
//!
//! - [`host`]: a real pager, a layer whose file the page cache has, and VMs.
//! - [`sys`]: mappings behind safe signatures.

mod host;
mod sys;

use crate::report::{Figures, Metric};
use host::{Layer, Pager, lazy_view};
use patina_control::pager::RUN_BYTES;
use rustix::event::{PollFd, PollFlags, poll};
use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use sys::View;
use userfaultfd::Event;

const RUN: usize = RUN_BYTES as usize;
const PAGE: usize = patina_control::PAGE_BYTES as usize;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Runs of the layer.
    runs: usize,
    /// How often each part is done, in turns.
    rounds: usize,
}

impl Plan {
    /// Less of everything with `quick`.
    pub fn new(quick: bool) -> Self {
        if quick { Self { runs: 512, rounds: 3 } } else { Self { runs: 2048, rounds: 7 } }
    }
}

/// The figures, with the `pager` of `bin_dir`.
pub fn measure(bin_dir: &Path, plan: Plan) -> Result<(Vec<Metric>, Vec<String>), Box<dyn Error>> {
    let layer = Layer::new(bin_dir, plan.runs)?;
    let (mut bare_us, mut fault_us, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut rates = [(1, "pages_per_s_1"), (4, "pages_per_s_4"), (16, "pages_per_s_16")]
        .map(|(vms, name)| (vms, name, Vec::new()));
    for _ in 0..plan.rounds {
        let bare = bare(&layer.again()?)?;
        let served = served(bin_dir, &layer.again()?)?;
        let medians = [&bare, &served].map(|faults| Figures::of("us", faults.clone()).map_or(0.0, |f| f.p50));
        ratios.push(medians[1] / medians[0]);
        bare_us.extend(bare);
        fault_us.extend(served);
        for (vms, _, rates) in &mut rates {
            rates.push(rate(bin_dir, &layer.again()?, *vms)?);
        }
    }
    let floor = Figures::of("us", bare_us).ok_or("no faults")?;
    let fault = Figures::of("us", fault_us).ok_or("no faults")?;
    let floor_us = floor.p50;
    let mut metrics = vec![
        Metric::new("floor_fault_us", floor),
        Metric::new("fault_us", fault).floor(floor_us),
        Metric::of("fault_ratio", "", ratios).ok_or("no rounds")?.limits(1.3, 1.1),
    ];
    let mut alone = None;
    for (vms, name, rates) in rates {
        let metric = Metric::of(name, "1/s", rates).ok_or("no rounds")?;
        let must = *alone.get_or_insert(metric.median());
        metrics.push(if vms == 1 { metric } else { metric.at_least(must, must) });
    }
    let notes = vec![
        "fault_us: a touch of one byte in each run of 64 KiB, one after another; the page cache has the file"
            .into(),
        "floor_fault_us: the same with a loop that reads, copies and continues a run, without a digest"
            .into(),
        "pages_per_s_N: N views, whose threads touch every page of the same layer at once".into(),
    ];
    Ok((metrics, notes))
}

/// Touches one byte of each run. How long each touch takes, microseconds.
fn touch(view: &View) -> Vec<f64> {
    (0..view.bytes / RUN)
        .map(|run| {
            let start = Instant::now();
            view.touch(run * RUN);
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect()
}

fn served(bin_dir: &Path, layer: &Layer) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut pager = Pager::start(bin_dir, layer)?;
    let vm = pager.attach("one", layer)?;
    Ok(touch(&vm.view))
}

/// A loop that reads the run of each fault from the file, copies it into the memfd, and continues
/// it.
fn bare(layer: &Layer) -> Result<Vec<f64>, Box<dyn Error>> {
    let (view, userfaultfd) = lazy_view(layer)?;
    let window = View::shared(&layer.memfd, layer.bytes)?;
    let done = AtomicBool::new(false);
    let answer = || -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut buffer = vec![0; RUN];
        while !done.load(Ordering::Relaxed) {
            let timeout = rustix::time::Timespec::try_from(Duration::from_millis(10))?;
            poll(&mut [PollFd::new(&userfaultfd, PollFlags::IN)], Some(&timeout))?;
            let Some(Event::Pagefault { addr, .. }) = userfaultfd.read_event()? else { continue };
            let start = (addr as usize - view.address() as usize) / RUN * RUN;
            layer.file.read_exact_at(&mut buffer, start as u64)?;
            window.write(start, &buffer)?;
            userfaultfd.r#continue(view.address().wrapping_byte_add(start), RUN, true)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let server = scope.spawn(answer);
        let touched = touch(&view);
        done.store(true, Ordering::Relaxed);
        match server.join() {
            Ok(Ok(())) => Ok(touched),
            Ok(Err(error)) => Err(error as Box<dyn Error>),
            Err(_) => Err("the bare loop failed".into()),
        }
    })
}

/// How many pages a second so many VMs get together, all of the same layer.
fn rate(bin_dir: &Path, layer: &Layer, vms: usize) -> Result<f64, Box<dyn Error>> {
    let mut pager = Pager::start(bin_dir, layer)?;
    let vms = (0..vms).map(|vm| pager.attach(&vm.to_string(), layer)).collect::<Result<Vec<_>, _>>()?;
    let all_there = Barrier::new(vms.len() + 1);
    let start = thread::scope(|scope| {
        for vm in &vms {
            let all_there = &all_there;
            scope.spawn(move || {
                all_there.wait();
                (0..layer.bytes).step_by(PAGE).for_each(|offset| {
                    std::hint::black_box(vm.view.touch(offset));
                });
            });
        }
        all_there.wait();
        Instant::now()
    });
    #[allow(clippy::cast_precision_loss, reason = "far fewer than 2^52 pages")]
    let pages = (vms.len() * layer.bytes / PAGE) as f64;
    Ok(pages / start.elapsed().as_secs_f64())
}
