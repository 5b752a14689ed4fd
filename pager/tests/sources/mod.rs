//! Sources that stall, lie and die.

use super::Test;
use super::host::fuse::{Behaviour, Fuse};
use super::host::sys::View;
use super::host::{Layer, PATIENCE, Pager, Vm, pattern};
use patina_control::memfd;
use patina_control::pager::{DemandBitmap, FromPager, RUN_BYTES, ToPager};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

pub const TESTS: [(&str, Test); 12] = named![
    two_vms_one_stalled_source_one_read,
    a_wrong_byte_is_never_seen,
    a_source_that_fails_is_reported_with_layer_and_run,
    a_source_that_is_cut_short_is_reported_with_layer_and_run,
    a_source_that_dies_is_reported_with_layer_and_run,
    a_source_that_stalls_is_reported,
    a_run_that_comes_too_late_is_there_for_others,
    a_stalled_read_holds_up_nobody_else,
    what_was_demanded_before_is_fetched_first,
    the_first_buckets_of_all_layers_go_first,
    what_a_vm_demands_goes_before_what_was_demanded_earlier,
    a_fill_stops_when_the_source_fails,
];

pub const RUN: usize = RUN_BYTES as usize;

struct Setup {
    // Before the pager: it must be able to end.
    fuse: Fuse,
    pager: Pager,
    layer: Layer,
    _folder: tempfile::TempDir,
}

fn setup(runs: usize) -> Setup {
    let folder = tempfile::tempdir().expect("a folder");
    let content = pattern(runs, |run| run == 1);
    let fuse = Fuse::mount(folder.path().to_owned(), content.clone()).expect("mounted");
    let layer = Layer::with("layer-a", content, fuse.open().expect("opened"));
    let pager = Pager::start();
    Setup { fuse, pager, layer, _folder: folder }
}

/// Reads a run in a thread. The error is that of an access that fails.
pub fn reads(view: &Arc<View>, run: usize) -> JoinHandle<Result<Vec<u8>, i32>> {
    let view = Arc::clone(view);
    thread::spawn(move || view.read(run * RUN, RUN).map_err(|error| error.raw_os_error().expect("a number")))
}

pub fn expected(layer: &Layer, run: usize) -> Result<Vec<u8>, i32> {
    Ok(layer.content[run * RUN..][..RUN].to_vec())
}

fn two_vms_one_stalled_source_one_read() {
    let mut with = setup(8);
    with.pager.add(&with.layer).expect("a layer");
    with.fuse.set(4, Behaviour::Stalls);
    let vms = ["one", "two"].map(|name| Vm::attach(&mut with.pager, name, &with.layer));
    let readers = vms.each_ref().map(|vm| reads(&vm.view, 4));
    with.fuse.wait_for_reads(1);
    with.pager.wait_for_waiting(2);
    with.fuse.release();
    for reader in readers {
        assert!(reader.join().expect("a reader") == expected(&with.layer, 4));
    }
    assert_eq!(with.fuse.reads(), [4], "one read at the source");
}

fn a_wrong_byte_is_never_seen() {
    let mut with = setup(8);
    with.pager.add(&with.layer).expect("a layer");
    with.fuse.set(4, Behaviour::Wrong);
    let vm = Vm::attach(&mut with.pager, "one", &with.layer);
    let asked = Instant::now();
    assert_eq!(reads(&vm.view, 4).join().expect("a reader"), Err(libc::EFAULT));
    let (reason, vms) = with.pager.wait_for_failure(&with.layer, 4);
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
    assert!(reason.contains("digest"), "{reason}");
    assert_eq!(vms, [("one".to_owned(), true)]);
    assert_eq!(with.layer.used(), 0, "nothing of it is in the memfd");
    // Others do not see it either, and the source is not asked again.
    let other = Vm::attach(&mut with.pager, "two", &with.layer);
    assert_eq!(reads(&other.view, 4).join().expect("a reader"), Err(libc::EFAULT));
    let (_, vms) = with.pager.wait_for_failure(&with.layer, 4);
    assert_eq!(vms, [("two".to_owned(), true)]);
    assert!(reads(&other.view, 5).join().expect("a reader") == expected(&with.layer, 5));
    assert_eq!(with.fuse.reads(), [4, 5]);
}

/// Run 4 fails with `behaviour`; a VM that has what it needs goes on.
fn fails(behaviour: Behaviour, words: &str) {
    let mut with = setup(8);
    with.pager.add(&with.layer).expect("a layer");
    let present = Vm::attach(&mut with.pager, "present", &with.layer);
    assert!(reads(&present.view, 2).join().expect("a reader") == expected(&with.layer, 2));
    let vm = Vm::attach(&mut with.pager, "one", &with.layer);
    with.fuse.set_others(behaviour);
    let asked = Instant::now();
    let reader = reads(&vm.view, 4);
    let (reason, vms) = with.pager.wait_for_failure(&with.layer, 4);
    assert!(asked.elapsed() < PATIENCE, "{:?}", asked.elapsed());
    assert!(reason.contains(words), "{reason}");
    assert_eq!(vms, [("one".to_owned(), true)]);
    assert_eq!(reader.join().expect("a reader"), Err(libc::EFAULT));
    for vm in [&present, &vm] {
        assert!(reads(&vm.view, 2).join().expect("a reader") == expected(&with.layer, 2));
        assert!(
            reads(&vm.view, 1).join().expect("a reader") == expected(&with.layer, 1),
            "zeros need no source"
        );
    }
    let status = with.pager.status(&with.layer);
    assert_eq!((status.failed, status.present), (1, 2));
}

fn a_source_that_fails_is_reported_with_layer_and_run() {
    fails(Behaviour::Fails, "Input/output error");
}

fn a_source_that_is_cut_short_is_reported_with_layer_and_run() {
    fails(Behaviour::Short, "too short");
}

fn a_source_that_stalls_is_reported() {
    fails(Behaviour::Stalls, "does not answer");
}

fn a_source_that_dies_is_reported_with_layer_and_run() {
    let mut with = setup(8);
    with.pager.add(&with.layer).expect("a layer");
    with.fuse.set(4, Behaviour::Stalls);
    let vm = Vm::attach(&mut with.pager, "one", &with.layer);
    let readers = [reads(&vm.view, 4)];
    with.fuse.wait_for_reads(1);
    with.fuse.die();
    with.pager.wait_for_failure(&with.layer, 4);
    assert_eq!(reads(&vm.view, 5).join().expect("a reader"), Err(libc::EFAULT));
    with.pager.wait_for_failure(&with.layer, 5);
    for reader in readers {
        assert_eq!(reader.join().expect("a reader"), Err(libc::EFAULT));
    }
}

fn a_run_that_comes_too_late_is_there_for_others() {
    let mut with = setup(8);
    with.pager.add(&with.layer).expect("a layer");
    with.fuse.set(4, Behaviour::Stalls);
    let vm = Vm::attach(&mut with.pager, "one", &with.layer);
    let reader = reads(&vm.view, 4);
    with.pager.wait_for_failure(&with.layer, 4);
    assert_eq!(reader.join().expect("a reader"), Err(libc::EFAULT));
    with.fuse.release();
    while with.pager.status(&with.layer).present < 2 {
        thread::yield_now();
    }
    let other = Vm::attach(&mut with.pager, "two", &with.layer);
    assert!(reads(&other.view, 4).join().expect("a reader") == expected(&with.layer, 4));
    assert_eq!(with.fuse.reads(), [4]);
}

fn a_stalled_read_holds_up_nobody_else() {
    let mut with = setup(32);
    with.pager.add(&with.layer).expect("a layer");
    // More than there are workers at first.
    let stalled: Vec<usize> = (4..16).collect();
    stalled.iter().for_each(|run| with.fuse.set(*run as u64, Behaviour::Stalls));
    let vm = Vm::attach(&mut with.pager, "one", &with.layer);
    let readers: Vec<_> = stalled.iter().map(|run| reads(&vm.view, *run)).collect();
    with.fuse.wait_for_reads(4);
    let other = Vm::attach(&mut with.pager, "two", &with.layer);
    // The stalled reads are still waited for then: below they succeed.
    assert!(reads(&other.view, 20).join().expect("a reader") == expected(&with.layer, 20));
    with.pager.peer.send(&ToPager::Status, &[]);
    let status = with.pager.wait(|message| match message {
        FromPager::Status(status) => Some(*status),
        _ => None,
    });
    assert!(status.stuck_workers >= 4 && status.workers > status.stuck_workers, "{status:?}");
    with.fuse.release();
    for (run, reader) in stalled.iter().zip(readers) {
        assert!(reader.join().expect("a reader") == expected(&with.layer, *run));
    }
}

fn what_was_demanded_before_is_fetched_first() {
    let mut with = setup(32);
    let mut demand = DemandBitmap::new(with.layer.content.len() as u64);
    for (run, after_ms) in [(9, 50), (30, 5), (12, 5000), (3, 60)] {
        assert!(demand.insert(run, DemandBitmap::bucket(after_ms)));
    }
    with.layer.demand = Some(memfd::sealed("demand", demand.encode()).expect("a memfd"));
    with.layer.fill = true;
    with.pager.add(&with.layer).expect("a layer");
    with.pager.wait_for_completion(&with.layer);
    let reads = with.fuse.reads();
    assert_eq!(reads[..4], [30, 3, 9, 12]);
    let rest: Vec<u64> = (0..32).filter(|run| ![30, 3, 9, 12, 1].contains(run)).collect();
    assert_eq!(reads[4..], rest);
}

fn demand(layer: &Layer, runs: &[(usize, u8)]) -> Option<std::fs::File> {
    let mut demand = DemandBitmap::new(layer.content.len() as u64);
    runs.iter().for_each(|(run, bucket)| assert!(demand.insert(*run, *bucket)));
    Some(memfd::sealed("demand", demand.encode()).expect("a memfd"))
}

fn the_first_buckets_of_all_layers_go_first() {
    let mut with = setup(32);
    let mut other = Layer::with("layer-b", with.layer.content.clone(), with.fuse.open().expect("opened"));
    with.layer.demand = demand(&with.layer, &[(30, 0), (3, 1), (5, 3)]);
    other.demand = demand(&other, &[(20, 0), (2, 1), (4, 3)]);
    // The first read waits until both layers are there.
    with.fuse.set(30, Behaviour::Stalls);
    with.pager.add(&with.layer).expect("a layer");
    with.pager.add(&other).expect("a layer");
    with.fuse.release();
    with.fuse.wait_for_reads(6);
    assert_eq!(with.fuse.reads(), [30, 20, 3, 2, 5, 4]);
}

fn what_a_vm_demands_goes_before_what_was_demanded_earlier() {
    let mut with = setup(32);
    with.layer.demand = demand(&with.layer, &[(2, 0), (3, 0), (4, 0), (5, 0)]);
    with.fuse.set(2, Behaviour::Stalls);
    with.pager.add(&with.layer).expect("a layer");
    with.fuse.wait_for_reads(1);
    let vm = Vm::attach(&mut with.pager, "one", &with.layer);
    assert!(reads(&vm.view, 20).join().expect("a reader") == expected(&with.layer, 20));
    assert_eq!(with.fuse.reads()[..2], [2, 20]);
    with.fuse.release();
    with.fuse.wait_for_reads(5);
}

fn a_fill_stops_when_the_source_fails() {
    let mut with = setup(32);
    with.layer.fill = true;
    with.fuse.set_others(Behaviour::Fails);
    with.pager.add(&with.layer).expect("a layer");
    with.pager.wait(|message| match message {
        FromPager::FillStopped { layer, reason, .. } if *layer == with.layer.id => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(with.fuse.reads().len(), 8);
    // What a VM needs is read still.
    with.fuse.set(4, Behaviour::Good);
    let vm = Vm::attach(&mut with.pager, "one", &with.layer);
    assert!(reads(&vm.view, 4).join().expect("a reader") == expected(&with.layer, 4));
}
