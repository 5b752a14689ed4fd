//! The cost of a clone for the VM that is cloned.

use super::Plan;
use crate::{
    daemon::{Daemon, DaemonError},
    floors::Floors,
    only::Only,
    report::Metric,
    talk::Program,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

/// Warm VMs that each family has: these figures are of one clone at a time.
pub const WARM: u32 = 1;
/// The program in the `bench` image that holds memory and writes to it.
const TOUCH: &str = "/usr/lib/patina/guest-bench touch";
/// Linux with less than 512 MiB does without huge pages unless it is asked. With them it is the
/// host that serves each page, and the guest need not fault for each, which takes a millisecond
/// where its kernel is emulated.
const HUGE: &str = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
/// Guests that are booted at the same time.
const AT_ONCE: usize = 2;
const PAGES_A_MIB: f64 = 256.0;

/// Rows of VMs that are cloned for the first time.
pub const FIRST_ROWS: [&str; 7] = [
    "pause_first_us",
    "pause_first_1g_us",
    "pause_1g_ratio",
    "freeze_us",
    "first_clone_us",
    "first_clone_1g_us",
    "first_clone_ready_ms",
];
/// Rows of what its pages cost the parent.
pub const TOUCH_ROWS: [&str; 2] = ["parent_touch_us", "floor_parent_touch_us"];
/// Rows of further clones with much that is new.
pub const AGAIN_ROWS: [&str; 2] = ["pause_again_us", "copied_again_mib"];
/// Rows of clones one at a time.
pub const SINGLE_ROWS: [&str; 4] =
    ["first_instruction_us", "first_instruction_prepared_us", "start_us", "ready_1_ms"];

/// All rows of this module.
pub fn rows() -> Vec<&'static str> {
    [&FIRST_ROWS[..], &TOUCH_ROWS, &AGAIN_ROWS, &SINGLE_ROWS].concat()
}

/// A VM of a kind, and what is touched of its RAM.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its RAM.
    pub memory_mib: u32,
    /// What the guest maps its memory with.
    pub pages: &'static str,
    /// Touched before the first clone.
    pub touched_mib: u32,
    /// Touched before each further one.
    pub again_mib: u32,
}

const SMALL: Kind = Kind { memory_mib: 256, pages: "--huge", touched_mib: 64, again_mib: 100 };
const LARGE: Kind = Kind { memory_mib: 1024, pages: "--huge", touched_mib: 512, again_mib: 512 };
/// What its own pages cost a parent is measured as most programs have them, in small pages. It
/// takes half a minute to touch them.
const SMALL_PAGES: Kind = Kind { pages: "", again_mib: 64, ..SMALL };

/// A VM with a program that holds memory.
#[derive(Debug)]
pub struct Master {
    name: String,
    kind: Kind,
    program: Program,
}

/// Pauses of first clones.
#[derive(Debug, Default)]
struct Firsts {
    pause_us: Vec<f64>,
    freeze_us: Vec<f64>,
    executing_us: Vec<f64>,
    ready_ms: Vec<f64>,
}

/// What a small page costs.
#[derive(Debug, Default)]
struct Touches {
    before_us: Vec<f64>,
    after_us: Vec<f64>,
}

/// All figures of this kind.
pub async fn measure(
    daemon: &Daemon,
    floors: &Floors,
    plan: Plan,
    only: &Only,
) -> Result<Vec<Metric>, DaemonError> {
    let (wants_first, wants_touches) = (only.wants(&FIRST_ROWS), only.wants(&TOUCH_ROWS));
    let (wants_again, wants_singles) = (only.wants(&AGAIN_ROWS), only.wants(&SINGLE_ROWS));
    // What takes longest is begun first.
    let large_count = if wants_first { plan.large } else { 0 };
    let touches_count = usize::from(wants_first || wants_touches);
    let small_count = if wants_first { plan.masters.saturating_sub(1) } else { 0 };
    let small_count = small_count.max(usize::from(wants_again || wants_singles));
    let kinds = std::iter::repeat_n(LARGE, large_count)
        .chain(std::iter::repeat_n(SMALL_PAGES, touches_count))
        .chain(std::iter::repeat_n(SMALL, small_count));
    let made = stream::iter(kinds.enumerate().map(|(index, kind)| Master::make(daemon, index, kind)));
    let mut large: Vec<Master> = made.buffered(AT_ONCE).try_collect().await?;
    let warm = u32::try_from(large.len()).unwrap_or(u32::MAX).saturating_mul(WARM);
    let mut small = large.split_off(large_count);
    let (mut large_firsts, mut small_firsts, mut touches) = Default::default();
    for master in &mut small {
        daemon.warm(warm).await?;
        master.first(daemon, &mut small_firsts, &mut touches).await?;
    }
    for master in &mut large {
        daemon.warm(warm).await?;
        master.first(daemon, &mut large_firsts, &mut touches).await?;
    }
    let mut rows = if wants_first { first_rows(small_firsts, large_firsts, floors) } else { Vec::new() };
    if let Some(master) = small.first_mut().filter(|_| wants_touches) {
        rows.extend(master.touches(daemon, warm, plan.again, touches).await?);
    }
    if let Some(master) = small.last_mut() {
        if wants_again {
            rows.extend(master.again(daemon, warm, floors, plan.again).await?);
        }
        if wants_singles {
            rows.extend(master.singles(daemon, warm, floors, plan.singles).await?);
        }
    }
    Ok(rows.into_iter().flatten().collect())
}

fn first_rows(small: Firsts, large: Firsts, floors: &Floors) -> Vec<Option<Metric>> {
    let map_us = floors.map_us.p50;
    let first =
        Metric::of("pause_first_us", "us", small.pause_us).map(|m| m.limits(1300.0, 800.0).floor(map_us));
    let first_1g = Metric::of("pause_first_1g_us", "us", large.pause_us).map(|m| m.floor(map_us));
    let ratio = first.as_ref().zip(first_1g.as_ref()).map(|(small, large)| large.median() / small.median());
    let ratio = ratio.and_then(|x| Metric::of("pause_1g_ratio", "x", vec![x])).map(|m| m.limits(2.0, 1.3));
    vec![
        first,
        first_1g,
        ratio,
        Metric::of("freeze_us", "us", small.freeze_us),
        Metric::of("first_clone_us", "us", small.executing_us),
        Metric::of("first_clone_1g_us", "us", large.executing_us),
        Metric::of("first_clone_ready_ms", "ms", small.ready_ms),
    ]
}

impl Master {
    /// Boots it and has it touch memory.
    pub async fn make(daemon: &Daemon, index: usize, kind: Kind) -> Result<Self, DaemonError> {
        let name = format!("master-{index}");
        daemon.boot(&name, kind.memory_mib).await?;
        let holds_mib = kind.touched_mib.max(kind.again_mib);
        let script = format!("{HUGE}; exec {TOUCH} {} {holds_mib}", kind.pages);
        let program = Program::start(daemon, &name, &["sh", "-c", &script]).await?;
        let mut master = Self { name, kind, program };
        master.touch(kind.touched_mib).await?;
        patina_daemon::say!("{}: {} MiB, {} MiB touched", master.name, kind.memory_mib, kind.touched_mib);
        Ok(master)
    }

    /// Has it write to so much of its memory: microseconds a page.
    pub async fn touch(&mut self, mib: u32) -> Result<f64, DaemonError> {
        let answer = self.program.ask(&mib.to_string()).await?;
        let said =
            || DaemonError::Said { what: "guest-bench", name: self.name.clone(), said: answer.clone() };
        let ns: f64 = answer.trim().parse().map_err(|_| said())?;
        Ok(ns / 1e3)
    }

    /// Writes, clones it once, and removes the clone when it is ready: how long it stood still.
    pub async fn pause_us(&mut self, daemon: &Daemon, written_mib: u32) -> Result<f64, DaemonError> {
        self.touch(written_mib).await?;
        daemon.warm(WARM).await?;
        let cloned = daemon.clone_vm(&self.name, 1).await?;
        daemon.all_ready(&cloned.names).await?;
        daemon.remove(&cloned.names).await?;
        patina_daemon::say!(
            "{}: {:.0} us, {:.1} MiB copied",
            self.name,
            cloned.pause_us,
            cloned.copied_kib / 1024.0
        );
        Ok(cloned.pause_us)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends it.
    pub async fn remove(self, daemon: &Daemon) -> Result<(), DaemonError> {
        daemon.remove(&[self.name]).await
    }

    /// The first clone of a VM.
    async fn first(
        &mut self,
        daemon: &Daemon,
        firsts: &mut Firsts,
        touches: &mut Touches,
    ) -> Result<(), DaemonError> {
        let before_us = self.touch(self.kind.touched_mib).await?;
        let cloned = daemon.clone_vm(&self.name, 1).await?;
        firsts.pause_us.push(cloned.pause_us);
        firsts.freeze_us.push(cloned.freeze_us);
        firsts.executing_us.push(cloned.all_executing_us());
        if self.kind.pages == SMALL_PAGES.pages {
            touches.before_us.push(before_us);
            touches.after_us.push(self.touch(self.kind.touched_mib).await?);
            daemon.all_ready(&cloned.names).await?;
        } else {
            daemon.all_ready(&cloned.names).await?;
            firsts.ready_ms.push(cloned.called.elapsed().as_secs_f64() * 1e3);
        }
        daemon.remove(&cloned.names).await
    }

    /// What its pages cost it after further clones.
    async fn touches(
        &mut self,
        daemon: &Daemon,
        warm: u32,
        rounds: usize,
        mut seen: Touches,
    ) -> Result<Vec<Option<Metric>>, DaemonError> {
        for _ in 0..rounds {
            daemon.warm(warm).await?;
            seen.before_us.push(self.touch(self.kind.touched_mib).await?);
            let cloned = daemon.clone_vm(&self.name, 1).await?;
            seen.after_us.push(self.touch(self.kind.touched_mib).await?);
            daemon.all_ready(&cloned.names).await?;
            daemon.remove(&cloned.names).await?;
        }
        let before = Metric::of("floor_parent_touch_us", "us", seen.before_us);
        let after = Metric::of("parent_touch_us", "us", seen.after_us);
        let after = after.zip(before.as_ref()).map(|(after, before)| after.floor(before.median()));
        Ok(vec![before, after])
    }

    /// Further clones, each after much has been written.
    async fn again(
        &mut self,
        daemon: &Daemon,
        warm: u32,
        floors: &Floors,
        rounds: usize,
    ) -> Result<Vec<Option<Metric>>, DaemonError> {
        let (mut pause_us, mut copied_mib) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            self.touch(SMALL.again_mib).await?;
            daemon.warm(warm).await?;
            let cloned = daemon.clone_vm(&self.name, 1).await?;
            pause_us.push(cloned.pause_us);
            copied_mib.push(cloned.copied_kib / 1024.0);
            daemon.all_ready(&cloned.names).await?;
            daemon.remove(&cloned.names).await?;
        }
        let pages = f64::from(SMALL.again_mib) * PAGES_A_MIB;
        let floor = floors.map_us.p50 + pages * floors.populate_us.p50;
        let pause =
            Metric::of("pause_again_us", "us", pause_us).map(|m| m.limits(60_000.0, 20_000.0).floor(floor));
        Ok(vec![pause, Metric::of("copied_again_mib", "MiB", copied_mib)])
    }

    /// Clones one at a time, with little written in between.
    async fn singles(
        &self,
        daemon: &Daemon,
        warm: u32,
        floors: &Floors,
        rounds: usize,
    ) -> Result<Vec<Option<Metric>>, DaemonError> {
        let (mut first_us, mut prepared_us) = (Vec::new(), Vec::new());
        let (mut start_us, mut ready_ms) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            daemon.warm(warm).await?;
            let cloned = daemon.clone_unprepared(&self.name).await?;
            first_us.push(cloned.all_executing_us());
            start_us.push(cloned.all_executing_us() - cloned.freeze_us);
            daemon.all_ready(&cloned.names).await?;
            daemon.remove(&cloned.names).await?;

            daemon.warm(warm).await?;
            let cloned = daemon.clone_vm(&self.name, 1).await?;
            prepared_us.push(cloned.all_executing_us());
            daemon.all_ready(&cloned.names).await?;
            ready_ms.push(cloned.called.elapsed().as_secs_f64() * 1e3);
            daemon.remove(&cloned.names).await?;
        }
        let floor = floors.map_us.p50 + floors.first_run_us.p50;
        let first = Metric::of("first_instruction_us", "us", first_us);
        let first = first.map(|m| m.limits(3000.0, 1200.0).floor(floor));
        let prepared = Metric::of("first_instruction_prepared_us", "us", prepared_us);
        let start = Metric::of("start_us", "us", start_us);
        let [prepared, start] = [prepared, start].map(|metric| metric.map(|m| m.floor(floor)));
        Ok(vec![first, prepared, start, Metric::of("ready_1_ms", "ms", ready_ms)])
    }
}
