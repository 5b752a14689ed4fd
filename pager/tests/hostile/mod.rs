//! VMs that send what they should not.

use super::Test;
use super::host::sys::View;
use super::host::{self, Layer, MODES, Pager, Peer, Vm, attach, pattern, userfaultfd};
use patina_control::memfd;
use patina_control::pager::{
    FromPager, Mapping, PagerToVm, RUN_BYTES, ToPager, VERSION, VmToPager, layer_memfd,
};
use patina_pager::sys::faults::{Batch, Faults};
use patina_pager::sys::interrupt;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const TESTS: [(&str, Test); 9] = named![
    a_connection_for_which_there_is_no_descriptor_costs_no_cpu,
    mappings_that_are_not_allowed_are_refused,
    what_is_no_userfaultfd_is_refused,
    a_list_that_is_not_sealed_is_refused,
    lines_that_are_not_understood_end_a_vm,
    a_fault_outside_of_the_mappings_ends_a_vm,
    a_userfaultfd_that_blocks_holds_up_nobody,
    a_read_that_blocks_is_interrupted,
    layers_that_are_not_allowed_are_refused,
];

const RUN: usize = RUN_BYTES as usize;

fn refusal(peer: &mut Peer) -> String {
    match peer.receive().expect("an answer") {
        PagerToVm::Refused { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn mappings_that_are_not_allowed_are_refused() {
    let layer = Layer::new("a", pattern(4, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let view = View::map(&layer.read_only(), layer.content.len(), 0).expect("a view");
    let at = Mapping { address: view.address() as u64, bytes: RUN_BYTES, offset: 0, layer: 0 };
    let next = Mapping { address: at.address + RUN_BYTES, ..at };
    let many: Vec<_> =
        (0..16_385).map(|page| Mapping { address: at.address + page * 4096, bytes: 4096, ..at }).collect();
    let refused: [(&[Mapping], &str); 11] = [
        (&[], "limits are 1"),
        (&many, "too long"),
        (&[Mapping { bytes: 0, ..at }], "mapping 0 is empty"),
        (&[Mapping { address: at.address + 1, ..at }], "whole pages"),
        (&[Mapping { bytes: RUN_BYTES - 1, ..at }], "whole pages"),
        (&[at, Mapping { offset: 17, ..next }], "mapping 1 is empty, is not made of whole pages"),
        (&[Mapping { address: u64::MAX - 4095, ..at }], "greatest address"),
        (&[at, at], "mapping 1 begins before"),
        (&[next, at], "mapping 1 begins before"),
        (&[Mapping { layer: 1, ..at }], "is of layer 1"),
        (&[Mapping { offset: 3 * RUN_BYTES, bytes: 2 * RUN_BYTES, ..at }], "beyond the end"),
    ];
    for (mappings, words) in refused {
        let mut peer = pager.connect_vm("bad", &[&layer]);
        attach(&peer, userfaultfd().as_fd(), &Mapping::encode(mappings), false);
        let reason = refusal(&mut peer);
        assert!(reason.contains(words), "{reason}");
        assert_eq!(pager.wait_for_gone("bad"), reason);
    }
    let mut peer = pager.connect_vm("bad", &[&layer]);
    attach(&peer, userfaultfd().as_fd(), &Mapping::encode(&[at])[1..], false);
    assert!(refusal(&mut peer).contains("31 bytes"));
    // The pager goes on.
    Vm::attach(&mut pager, "good", &layer).check(&layer.content);
}

fn what_is_no_userfaultfd_is_refused() {
    let layer = Layer::new("a", pattern(4, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let view = View::map(&layer.read_only(), layer.content.len(), 0).expect("a view");
    let at = Mapping { address: view.address() as u64, bytes: RUN_BYTES, offset: 0, layer: 0 };
    let (socket, _other) = UnixStream::pair().expect("a pair");
    let null = File::open("/dev/null").expect("null");
    for fd in [socket.as_fd(), null.as_fd(), layer.memfd.as_fd()] {
        let mut peer = pager.connect_vm("bad", &[&layer]);
        attach(&peer, fd, &Mapping::encode(&[at]), false);
        let reason = refusal(&mut peer);
        assert!(reason.contains("use the userfaultfd"), "{reason}");
        pager.wait_for_gone("bad");
    }
}

fn a_list_that_is_not_sealed_is_refused() {
    let layer = Layer::new("a", pattern(4, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let pipe = std::io::pipe().expect("a pipe");
    let unsealed = layer_memfd("list", 32).expect("a memfd");
    for (list, words) in [(pipe.0.as_fd(), "no memfd"), (unsealed.as_fd(), "not sealed")] {
        let mut peer = pager.connect_vm("bad", &[&layer]);
        let message = VmToPager::Attach { version: VERSION, tracks_writes: false };
        peer.send(&message, &[userfaultfd().as_fd(), list]);
        let reason = refusal(&mut peer);
        assert!(reason.contains(words), "{reason}");
        pager.wait_for_gone("bad");
    }
}

fn lines_that_are_not_understood_end_a_vm() {
    let layer = Layer::new("a", pattern(4, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let long = vec![b'x'; 70_000];
    let lines: [(&[u8], &str); 5] = [
        (b"{\"t\":\"attach\",\"version\":1,\"tracks_writes\":false}\n", "fewer descriptors"),
        (b"{\"t\":\"attach\",\"version\":2,\"tracks_writes\":false}\n", "version 2"),
        (b"{\"t\":\"track_writes\"}\n", "before it attaches"),
        (b"nonsense\n", "read a line"),
        (&long, "longer than 65536"),
    ];
    for (line, words) in lines {
        let mut peer = pager.connect_vm("bad", &[&layer]);
        // The pager may close before it has read all.
        let _written = peer.stream.write_all(line);
        let reason = pager.wait_for_gone("bad");
        assert!(reason.contains(words), "{reason}");
    }
    // Many descriptors, and no line.
    let peer = pager.connect_vm("bad", &[&layer]);
    for _ in 0..3 {
        patina_control::rights::send(&peer.stream, b" ", &[layer.memfd.as_fd(); 18]).expect("sent");
    }
    assert!(pager.wait_for_gone("bad").contains("more descriptors"));
    Vm::attach(&mut pager, "good", &layer).check(&layer.content);
}

fn a_fault_outside_of_the_mappings_ends_a_vm() {
    let layer = Layer::new("a", pattern(4, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    // In another process, which ends: its thread waits for ever.
    let mut child = host::start_child("outside", &mut pager, &layer);
    assert!(pager.wait_for_gone("child").contains("where it said to have no mapping"));
    child.kill().expect("killed");
    child.wait().expect("an end");
    Vm::attach(&mut pager, "good", &layer).check(&layer.content);
}

fn a_userfaultfd_that_blocks_holds_up_nobody() {
    let layer = Layer::new("a", pattern(64, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    // As many as there are readers, and more. Each becomes blocking when it is attached, and has a
    // fault then.
    for number in 0..4 {
        let name = format!("bad{number}");
        let bad = Vm::attach(&mut pager, &name, &layer);
        rustix::fs::fcntl_setfl(&bad.uffd, rustix::fs::OFlags::empty()).expect("blocking");
        let view = Arc::clone(&bad.view);
        let sleeper = std::thread::spawn(move || view.read(0, 1));
        assert!(pager.wait_for_gone(&name).contains("not non-blocking"));
        // Without its userfaultfd nobody waits any longer.
        drop(bad.uffd);
        sleeper.join().expect("a thread").expect("a byte");
    }
    let good = Vm::attach(&mut pager, "good", &layer);
    good.check(&layer.content);
}

fn a_read_that_blocks_is_interrupted() {
    interrupt::prepare().expect("a handler");
    let blocking = userfaultfd();
    rustix::fs::fcntl_setfl(&blocking, rustix::fs::OFlags::empty()).expect("blocking");
    let faults = Faults::from(blocking.as_fd().try_clone_to_owned().expect("a duplicate"));
    let (tell, hear) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        tell.send(interrupt::Thread::current()).expect("told");
        faults.read(&mut Batch::default(), &mut Vec::new())
    });
    let thread = hear.recv().expect("a thread");
    // Until one comes while it reads.
    while !reader.is_finished() {
        thread.interrupt();
        std::thread::yield_now();
    }
    assert_eq!(reader.join().expect("a thread"), Err(rustix::io::Errno::INTR));
}

fn layers_that_are_not_allowed_are_refused() {
    let layer = Layer::new("a", pattern(4, |_| false));
    let mut pager = Pager::start();
    let mut refused = |layer: &Layer, words: &str| {
        let reason = pager.add(layer).expect_err("refused");
        assert!(reason.contains(words), "{reason}");
    };
    let digests = memfd::sealed("digests", &host::digests(&layer.content)[..96]).expect("a memfd");
    refused(&Layer { digests, ..Layer::new("a", pattern(4, |_| false)) }, "96 bytes; 128 are expected");
    let memfd = layer_memfd("short", 3 * RUN_BYTES).expect("a memfd");
    refused(&Layer { memfd, ..Layer::new("a", pattern(4, |_| false)) }, "the memfd has 196608 bytes");
    let memfd = File::from(
        rustix::fs::memfd_create("unsealed", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("a memfd"),
    );
    memfd.set_len(4 * RUN_BYTES).expect("as long");
    refused(&Layer { memfd, ..Layer::new("a", pattern(4, |_| false)) }, "not sealed against a change");
    let demand = Some(memfd::sealed("demand", &[1; 3]).expect("a memfd"));
    refused(&Layer { demand, ..Layer::new("a", pattern(4, |_| false)) }, "3 bytes; 4 are expected");
    let mut odd = Layer::new("a", pattern(4, |_| false));
    odd.content.truncate(2 * RUN + 5);
    odd.digests = memfd::sealed("digests", &host::digests(&odd.content)).expect("a memfd");
    refused(&odd, "whole pages");
    pager.add(&layer).expect("this one is right");
    let reason = pager.add(&layer).expect_err("refused");
    assert!(reason.contains("one of this name"), "{reason}");
    let vm = Vm::attach(&mut pager, "one", &layer);
    pager.peer.send(&ToPager::DropLayer { layer: layer.id.clone() }, &[]);
    let in_use = |message: &patina_control::pager::FromPager| match message {
        patina_control::pager::FromPager::LayerRefused { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    assert!(pager.wait(in_use).contains("1 VMs use it"));
    drop(vm);
    pager.wait_for_gone("one");
    pager.peer.send(&ToPager::DropLayer { layer: layer.id.clone() }, &[]);
    pager.wait(|message| {
        matches!(message, patina_control::pager::FromPager::LayerDropped { .. }).then_some(())
    });
    assert_eq!(MODES.bits(), 5);
}

fn a_connection_for_which_there_is_no_descriptor_costs_no_cpu() {
    let layer = Layer::new("a", pattern(4, |_| false));
    let mut pager = Pager::start_with_descriptors(64);
    pager.add(&layer).expect("a layer");
    // Each takes a descriptor, as long as there are any.
    let _vms: Vec<_> = (0..64).map(|number| pager.connect_vm(&format!("vm-{number}"), &[&layer])).collect();
    assert_eq!(pager.status(&layer).runs, 4);
    let id = pager.child.id();
    // The one that it listens with may have a higher number.
    assert!(std::fs::read_dir(format!("/proc/{id}/fd")).expect("its descriptors").count() >= 64);
    let stream = pager.connect();
    // How long the main thread runs within a second. It looks around a few times.
    let used = || -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/schedstat")).expect("its time");
        text.split(' ').next().expect("a word").parse().expect("nanoseconds")
    };
    let (begun, begin) = (Instant::now(), used());
    std::thread::sleep(Duration::from_secs(1));
    let (used, passed) = (used() - begin, begun.elapsed().as_nanos() as u64);
    assert!(used < passed / 20, "{used} ns of {passed} ns");
    // It serves those whom it has.
    assert_eq!(pager.status(&layer).runs, 4);
    pager.peer.send(&ToPager::DropVm { vm: host::id("vm-0") }, &[]);
    let hello: FromPager = Peer::new(stream).receive().expect("it is accepted now");
    assert!(matches!(hello, FromPager::Hello { .. }));
}
