//! Pagers that are killed, and those that take over.

use super::Test;
use super::host::fuse::{Behaviour, Fuse};
use super::host::sys::View;
use super::host::{Layer, MODES, PATIENCE, Pager, Vm, attach, pattern, userfaultfd};
use patina_control::pager::{Mapping, PagerToVm, RUN_BYTES, VmToPager};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

pub const TESTS: [(&str, Test); 5] = named![
    a_killed_pager_is_replaced_and_who_waits_goes_on,
    a_pager_is_killed_again_and_again_and_no_wrong_byte_is_read,
    half_a_run_of_a_dead_pager_is_not_believed,
    what_a_dead_pager_has_fetched_needs_no_source,
    a_vm_is_asked_again_for_what_a_dead_pager_may_have_read,
];

const RUN: usize = RUN_BYTES as usize;

fn a_killed_pager_is_replaced_and_who_waits_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let content = pattern(16, |run| run == 1);
    let fuse = Fuse::mount(folder.path().to_owned(), content.clone()).expect("mounted");
    let layer = Layer::with("a", content, fuse.open().expect("opened"));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let mut vm = Vm::attach(&mut pager, "one", &layer);
    vm.view.read(0, 1).expect("a byte");
    fuse.set_others(Behaviour::Stalls);
    let view = Arc::clone(&vm.view);
    let readers: Vec<_> = (4..8)
        .map(|run| {
            let view = Arc::clone(&view);
            thread::spawn(move || view.read(run * RUN, RUN).expect("the run"))
        })
        .collect();
    // The pager has read all four faults, so nobody else will see them.
    fuse.wait_for_reads(5);
    let killed = Instant::now();
    pager.child.kill().expect("killed");
    // The kernel ends a process only when its reads have returned. The file system answers them;
    // nobody takes that.
    fuse.release();
    pager.child.wait().expect("an end");
    let mut next = Pager::start();
    next.add(&layer).expect("a layer");
    vm.attach_again(&mut next, "one", &layer);
    for (run, reader) in (4..8).zip(readers) {
        assert!(reader.join().expect("a reader") == layer.content[run * RUN..][..RUN]);
    }
    assert!(killed.elapsed() < PATIENCE, "{:?}", killed.elapsed());
    vm.check(&layer.content);
}

fn a_pager_is_killed_again_and_again_and_no_wrong_byte_is_read() {
    let layer = Layer::new("a", pattern(512, |run| run % 3 == 1));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let mut vms = [0, 1].map(|number| Vm::attach(&mut pager, &number.to_string(), &layer));
    let done = AtomicBool::new(false);
    let views = vms.each_ref().map(|vm| Arc::clone(&vm.view));
    let mut kills = 0;
    thread::scope(|scope| {
        let readers = views.each_ref().map(|view| {
            // Each reads all of it, page by page, in another order.
            let (layer, step) = (&layer, 4096 * if Arc::ptr_eq(view, &views[0]) { 1009 } else { 2003 });
            scope.spawn(move || {
                let length = layer.content.len();
                for at in (0..length / 4096).map(|number| number * step % length) {
                    let read = view.read(at, 4096).expect("a page");
                    assert!(read == layer.content[at..at + 4096], "the page at {at:#x}");
                }
            })
        });
        let done = &done;
        scope.spawn(move || {
            let results = readers.map(|reader| reader.join().is_ok());
            done.store(true, Ordering::Release);
            assert_eq!(results, [true; 2]);
        });
        while !done.load(Ordering::Acquire) {
            pager.kill();
            kills += 1;
            pager = Pager::start();
            pager.add(&layer).expect("a layer");
            for (number, vm) in vms.iter_mut().enumerate() {
                vm.attach_again(&mut pager, &number.to_string(), &layer);
            }
            // Lets it get a little further each time, whatever the machine's speed.
            let before = pager.status(&layer).present;
            let goal = before + 8;
            while !done.load(Ordering::Acquire) && pager.status(&layer).present < goal.min(512) {}
            if goal >= 512 {
                break;
            }
        }
    });
    assert!(kills > 5, "{kills}");
    vms.iter().for_each(|vm| vm.check(&layer.content));
}

fn half_a_run_of_a_dead_pager_is_not_believed() {
    let mut content = pattern(4, |_| false);
    // Run 2 begins with zeros: what stands there in the memfd must go.
    content[2 * RUN..2 * RUN + 8192].fill(0);
    let mut layer = Layer::new("a", content);
    layer.memfd.write_all_at(&layer.content[RUN..RUN + RUN / 2], RUN_BYTES).expect("half a run");
    layer.memfd.write_all_at(&[7; 5000], 2 * RUN_BYTES).expect("what does not belong there");
    layer.fill = true;
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let vm = Vm::attach(&mut pager, "one", &layer);
    vm.check(&layer.content);
    pager.wait_for_completion(&layer);
    let mut read = vec![0; layer.content.len()];
    layer.memfd.read_exact_at(&mut read, 0).expect("read");
    assert!(read == layer.content, "the memfd itself is right, too");
}

fn what_a_dead_pager_has_fetched_needs_no_source() {
    let mut layer = Layer::new("a", pattern(16, |run| run == 1));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let vm = Vm::attach(&mut pager, "one", &layer);
    vm.view.read(5 * RUN, RUN).expect("the run");
    pager.kill();
    layer.source = File::open("/dev/null").expect("nothing");
    let mut next = Pager::start();
    next.add(&layer).expect("a layer");
    let other = Vm::attach(&mut next, "two", &layer);
    assert!(other.view.read(5 * RUN, RUN).expect("the run") == layer.content[5 * RUN..][..RUN]);
    let error = other.view.read(6 * RUN, 1).expect_err("without a source");
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    assert_eq!(next.wait_for_failure(&layer, 6).1, [("two".to_owned(), true)]);
}

fn a_vm_is_asked_again_for_what_a_dead_pager_may_have_read() {
    let layer = Layer::new("a", pattern(4, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let bytes = layer.content.len() as u64;
    // The dead one has read it, or has not.
    for (name, times) in [("read", 1), ("unread", 2)] {
        let (view, uffd) = (View::map(&layer.read_only(), bytes as usize, 0).expect("a view"), userfaultfd());
        uffd.register_with_mode(view.address(), view.bytes, MODES).expect("registered");
        let mappings = Mapping { address: view.address() as u64, bytes, offset: 0, layer: 0 };
        let mappings = Mapping::encode(&[mappings]);
        let mut peer = pager.connect_vm_again(name, &[&layer]);
        assert_eq!(peer.receive::<PagerToVm>().expect("a question"), PagerToVm::AttachAgain);
        (0..times).for_each(|_| attach(&peer, uffd.as_fd(), &mappings, false));
        assert_eq!(peer.receive::<PagerToVm>().expect("an answer"), PagerToVm::Attached);
        // It is served, and is answered only once.
        peer.send(&VmToPager::TrackWrites, &[]);
        assert_eq!(peer.receive::<PagerToVm>().expect("an answer"), PagerToVm::TrackingWrites);
        assert!(view.read(RUN, RUN).expect("the run") == layer.content[RUN..2 * RUN]);
        // Once is enough.
        (times..3).for_each(|_| attach(&peer, uffd.as_fd(), &mappings, false));
        assert!(pager.wait_for_gone(name).contains("a second time"));
    }
}
