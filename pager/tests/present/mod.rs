//! What a layer has, and what it costs.

use super::Test;
use super::host::sys::View;
use super::host::{Layer, MODES, Pager, Vm, attach, pattern, userfaultfd};
use patina_control::memfd;
use patina_control::pager::{DemandBitmap, FromPager, Mapping, PagerToVm, RUN_BYTES, ToPager, VmToPager};
use rustix::fs::{SealFlags, fcntl_get_seals};
use std::fs::File;
use std::os::fd::AsFd;
use userfaultfd::RegisterMode;

pub const TESTS: [(&str, Test); 13] = named![
    zeros_cost_no_memory,
    a_layer_that_is_complete_is_sealed_and_needs_no_pager,
    a_vm_hears_of_each_number_of_a_layer_that_is_complete,
    vmmd_hears_of_a_vm_before_its_vmm_does,
    what_a_vm_writes_is_its_own,
    a_vm_that_tracks_writes_keeps_its_registration,
    zeros_are_served_where_writes_are_tracked,
    a_vm_attaches_to_a_complete_layer,
    what_was_demanded_is_known_with_its_time,
    the_time_of_a_demand_counts_from_the_start_of_the_vm,
    what_was_fetched_ahead_does_not_count_as_demanded,
    a_layer_that_ends_within_a_run_is_served,
    a_restarted_vmmd_finds_layers_and_vms,
];

const RUN: usize = RUN_BYTES as usize;

fn zeros_cost_no_memory() {
    // Half of the runs are known to be zero; of the others each second page is found to be.
    let mut content = pattern(32, |run| run % 2 == 0);
    content.chunks_mut(4096).step_by(2).for_each(|page| page.fill(0));
    let layer = Layer::new("a", content);
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let vm = Vm::attach(&mut pager, "one", &layer);
    vm.check(&layer.content);
    assert_eq!(layer.used(), 16 * RUN_BYTES / 2);
}

fn a_layer_that_is_complete_is_sealed_and_needs_no_pager() {
    let mut layer = Layer::new("a", pattern(32, |run| run == 3));
    layer.fill = true;
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let mut vm = Vm::attach(&mut pager, "one", &layer);
    assert_eq!(vm.hear(), PagerToVm::Complete { layer: 0, is_unregistered: true });
    pager.wait_for_completion(&layer);
    assert!(pager.status(&layer).is_complete);
    let seals = fcntl_get_seals(&layer.memfd).expect("seals");
    assert!(seals.contains(SealFlags::WRITE | SealFlags::SEAL));
    pager.kill();
    vm.check(&layer.content);
}

fn a_vm_hears_of_each_number_of_a_layer_that_is_complete() {
    for is_complete_before in [false, true] {
        let mut layer = Layer::new("a", pattern(32, |run| run == 3));
        layer.fill = is_complete_before;
        let mut pager = Pager::start();
        pager.add(&layer).expect("a layer");
        if is_complete_before {
            pager.wait_for_completion(&layer);
        }
        // Two layers of the same content are one.
        let views = [(); 2].map(|()| View::map(&layer.read_only(), layer.content.len(), 0).expect("a view"));
        let uffd = userfaultfd();
        for view in &views {
            uffd.register_with_mode(view.address(), view.bytes, MODES).expect("registered");
        }
        let at = |(number, view): (u32, &View)| {
            let (address, bytes) = (view.address() as u64, view.bytes as u64);
            Mapping { address, bytes, offset: 0, layer: number }
        };
        let mut mappings: Vec<_> = (0..).zip(&views).map(at).collect();
        mappings.sort_by_key(|mapping| mapping.address);
        let mut peer = pager.connect_vm("one", &[&layer, &layer]);
        attach(&peer, uffd.as_fd(), &Mapping::encode(&mappings), false);
        assert_eq!(peer.receive::<PagerToVm>().expect("an answer"), PagerToVm::Attached);
        for view in &views {
            assert!(view.read(0, view.bytes).expect("all of it") == layer.content);
        }
        for layer in [0, 1] {
            let complete = PagerToVm::Complete { layer, is_unregistered: true };
            assert_eq!(peer.receive::<PagerToVm>().expect("a line"), complete);
        }
        pager.kill();
        assert!(peer.receive::<PagerToVm>().is_err(), "it hears nothing twice");
    }
}

fn vmmd_hears_of_a_vm_before_its_vmm_does() {
    let layer = Layer::new("a", pattern(8, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    for number in 0..50 {
        let _vm = Vm::attach(&mut pager, &number.to_string(), &layer);
        // The vmm knows: the line must be there already.
        pager.peer.stream.set_nonblocking(true).expect("set");
        pager.wait(|message| matches!(message, FromPager::Vm { .. }).then_some(()));
        pager.peer.stream.set_nonblocking(false).expect("set");
    }
}

fn what_a_vm_writes_is_its_own() {
    let layer = Layer::new("a", pattern(16, |run| run % 4 == 0));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let (one, two) = (Vm::attach(&mut pager, "one", &layer), Vm::attach(&mut pager, "two", &layer));
    let mut changed = layer.content.clone();
    for page in (0..changed.len()).step_by(4096 * 3) {
        changed[page..page + 8].copy_from_slice(b"my words");
        one.view.write(page, b"my words").expect("written");
    }
    two.check(&layer.content);
    one.check(&changed);
}

fn a_vm_that_tracks_writes_keeps_its_registration() {
    let layer = Layer::new("a", pattern(8, |run| run == 3));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let mut before = Vm::attach(&mut pager, "before", &layer);
    let mut from_the_start =
        Vm::attach_with(&mut pager, "start", &layer, MODES | RegisterMode::WRITE_PROTECT, true);
    before.peer.send(&VmToPager::TrackWrites, &[]);
    assert_eq!(before.hear(), PagerToVm::TrackingWrites);
    let (view, uffd) = (&before.view, &before.uffd);
    let modes = MODES | RegisterMode::WRITE_PROTECT;
    uffd.register_with_mode(view.address(), view.bytes, modes).expect("with one mode more");
    before.check(&layer.content);
    for vm in [&mut before, &mut from_the_start] {
        assert_eq!(vm.hear(), PagerToVm::Complete { layer: 0, is_unregistered: false });
        // Another userfaultfd cannot have what this one still has.
        let other = userfaultfd().register_with_mode(vm.view.address(), vm.view.bytes, MODES);
        assert!(other.is_err());
    }
    pager.wait_for_completion(&layer);
    from_the_start.check(&layer.content);
}

fn zeros_are_served_where_writes_are_tracked() {
    let layer = Layer::new("a", pattern(8, |run| run % 2 == 0));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let vm = Vm::attach_with(&mut pager, "one", &layer, MODES | RegisterMode::WRITE_PROTECT, true);
    // As a search for written pages does: marks all, also what is not there.
    vm.uffd.write_protect(vm.view.address(), vm.view.bytes).expect("protected");
    vm.check(&layer.content);
}

fn a_vm_attaches_to_a_complete_layer() {
    let content = pattern(16, |run| run % 2 == 0);
    let mut layer = Layer::new("a", content);
    layer.fill = true;
    let mut first = Pager::start();
    first.add(&layer).expect("a layer");
    first.wait_for_completion(&layer);
    // The second has only a memfd that an earlier pager completed. A source there is not.
    layer.source = File::open("/dev/null").expect("nothing");
    let mut second = Pager::start();
    assert!(second.add(&layer).expect("a layer").is_complete);
    for pager in [&mut first, &mut second] {
        // With faults that the pager answers: holes are found when they are needed.
        let mut vm = Vm::attach_with(pager, "two", &layer, MODES, true);
        assert_eq!(vm.hear(), PagerToVm::Complete { layer: 0, is_unregistered: false });
        vm.check(&layer.content);
        assert_eq!(layer.used(), 8 * RUN_BYTES, "holes stay holes");
    }
    let mut vm = Vm::attach(&mut second, "one", &layer);
    assert_eq!(vm.hear(), PagerToVm::Complete { layer: 0, is_unregistered: true });
    vm.check(&layer.content);
}

fn what_was_demanded_is_known_with_its_time() {
    let layer = Layer::new("a", pattern(32, |run| run == 7));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let vm = Vm::attach(&mut pager, "one", &layer);
    for run in [9, 7, 30] {
        vm.view.read(run * RUN + 4096, 1).expect("a byte");
    }
    let mut runs: Vec<_> = pager.demand(&layer).into_iter().map(|(_, run)| run).collect();
    runs.sort_unstable();
    assert_eq!(runs, [7, 9, 30]);
}

fn the_time_of_a_demand_counts_from_the_start_of_the_vm() {
    let layer = Layer::new("a", pattern(32, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    // As after the end of another pager: this one has known the VM for a moment only.
    let vm = Vm::attach_of_age(&mut pager, "one", &layer, 5000);
    vm.view.read(9 * RUN, 1).expect("a byte");
    assert_eq!(pager.demand(&layer), [(3, 9)]);
}

fn what_was_fetched_ahead_does_not_count_as_demanded() {
    let mut layer = Layer::new("a", pattern(32, |_| false));
    let mut before = DemandBitmap::new(layer.content.len() as u64);
    assert_eq!([4, 5].map(|run| before.insert(run, 0)), [true; 2]);
    layer.demand = Some(memfd::sealed("demand", before.encode()).expect("a memfd"));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    while pager.status(&layer).present < 2 {}
    let vm = Vm::attach(&mut pager, "one", &layer);
    vm.view.read(9 * RUN, 1).expect("a byte");
    let runs: Vec<_> = pager.demand(&layer).into_iter().map(|(_, run)| run).collect();
    assert_eq!(runs, [9], "neither run 4 nor run 5");
}

fn a_layer_that_ends_within_a_run_is_served() {
    let mut content = pattern(3, |_| false);
    content.truncate(2 * RUN + 3 * 4096);
    let mut layer = Layer::new("a", content);
    layer.fill = true;
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let vm = Vm::attach(&mut pager, "one", &layer);
    vm.check(&layer.content);
    pager.wait_for_completion(&layer);
}

fn a_restarted_vmmd_finds_layers_and_vms() {
    let layer = Layer::new("a", pattern(8, |run| run == 0));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let vm = Vm::attach(&mut pager, "one", &layer);
    vm.view.read(RUN, 1).expect("a byte");
    pager.wait(|message| matches!(message, FromPager::Vm { .. }).then_some(()));
    pager.reconnect();
    pager.wait(|message| matches!(message, FromPager::Hello { .. }).then_some(()));
    let status = pager.wait(|message| match message {
        FromPager::Layer(status) => Some(status.clone()),
        _ => None,
    });
    assert_eq!((status.layer, status.present, status.vms), (layer.id.clone(), 2, 1));
    pager.wait(|message| matches!(message, FromPager::Vm { mappings: 1, .. }).then_some(()));
    pager.peer.send(&ToPager::Memfd { layer: layer.id.clone() }, &[]);
    pager.wait(|message| matches!(message, FromPager::Memfd { .. }).then_some(()));
    let memfd = File::from(pager.peer.descriptor());
    let (ours, theirs) = (layer.memfd.metadata().expect("ours"), memfd.metadata().expect("theirs"));
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&ours), std::os::unix::fs::MetadataExt::ino(&theirs));
    vm.check(&layer.content);
}
