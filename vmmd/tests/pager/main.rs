//! The pager as `vmmd` keeps it: the real program, with VMs whose vmm is played by the test.
#![allow(clippy::unwrap_used, reason = "a test")]

mod demand;
mod holders;
mod host;
mod peers;
mod sys;

use host::{Host, PATIENCE, RUNS, Vmm, program_path, until, word};
use patina_control::end::EndKind;
use rustix::process::{Signal, kill_process};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{
    runtime::{Handle, Runtime},
    task::spawn_blocking,
    time::timeout,
};
use uuid::Uuid;
use vmmd::{
    pager::{Pager, book::LazyMemory, error::PagerError},
    process::{filling::FillingLayers, generation::Generation},
};

/// A VM that has been started from a snapshot, and is not filled yet.
async fn start(host: &Host, pager: &Pager, name: &str) -> (Generation, Vmm, LazyMemory) {
    let generation = pager.generation(host.snapshot()).await.unwrap();
    let (uuid, dir) = (Uuid::new_v4(), host.vm_dir(name));
    let (filling, memory) = pager.serve(uuid, &dir, &generation).await.unwrap();
    let vmm = Vmm::start(dir, uuid, &generation, filling.expect("it is not filled yet"));
    let memory = memory.unwrap();
    memory.has_started();
    (generation, vmm, memory)
}

/// A VM that has started is served as any other when the pager is replaced.
async fn is_served_by_the_next(host: &Host, vmm: &Vmm) {
    host.signal(Signal::STOP);
    let waits = vmm.read_beside(RUNS - 2);
    host.signal(Signal::KILL);
    assert_eq!(waits.done().await.unwrap(), word(RUNS - 2));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_killed_pager_is_replaced_and_the_vms_go_on_within_a_second() {
    let host = Host::new();
    let pager = host.pager();
    let (generation, vmm, _memory) = start(&host, &pager, "web").await;
    assert_eq!(vmm.read(RUNS / 2), word(RUNS / 2));
    let mut shortest = PATIENCE;
    for run in [RUNS - 1, RUNS - 2, RUNS - 3] {
        host.signal(Signal::STOP);
        assert_eq!(generation.filling().len(), 1, "it is not complete: the guest needs a pager");
        let waits = vmm.read_beside(run);
        host.signal(Signal::KILL);
        let killed = Instant::now();
        assert_eq!(waits.done().await.unwrap(), word(run));
        let away = killed.elapsed();
        // For who measures.
        println!("pager_away_us {}", away.as_micros());
        shortest = shortest.min(away);
    }
    // Another test may keep the machine busy for a moment.
    assert!(shortest < Duration::from_secs(1), "{shortest:?}");
    for run in 0..RUNS {
        assert_eq!(vmm.read(run), word(run));
    }
    until("it becomes complete", || generation.filling().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_vm_starts_although_the_pager_dies_before_the_vmm_has_reached_it() {
    let host = Host::new();
    let pager = host.pager();
    let generation = pager.generation(host.snapshot()).await.unwrap();
    let (uuid, dir) = (Uuid::new_v4(), host.vm_dir("web"));
    // More than one pager may die.
    let first = host.signal(Signal::STOP);
    let (filling, memory) = pager.serve(uuid, &dir, &generation).await.unwrap();
    let (filling, mut memory) = (filling.unwrap(), memory.unwrap());
    host.signal(Signal::KILL);
    until("another one is there", || host.pid().is_some_and(|pid| pid != first)).await;
    let second = host.signal(Signal::KILL);
    until("another one is there", || host.pid().is_some_and(|pid| pid != second)).await;
    let vmm = Vmm::start(dir, uuid, &generation, filling);
    assert_eq!(vmm.read(RUNS - 1), word(RUNS - 1));
    memory.has_started();
    assert!(timeout(Duration::from_millis(1), memory.lost()).await.is_err());
    is_served_by_the_next(&host, &vmm).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_vm_starts_although_the_pager_dies_as_it_reads_what_the_vmm_says_first() {
    let host = Host::new();
    let pager = host.pager();
    let generation = pager.generation(host.snapshot()).await.unwrap();
    let (uuid, dir) = (Uuid::new_v4(), host.vm_dir("web"));
    let before = host.sockets().len();
    let (filling, memory) = pager.serve(uuid, &dir, &generation).await.unwrap();
    let (filling, mut memory) = (filling.unwrap(), memory.unwrap());
    until("the pager has the VM's socket", || host.sockets().len() > before).await;
    let first = host.signal(Signal::STOP);
    let starts = spawn_blocking(move || Vmm::start(dir, uuid, &generation, filling));
    // It reads the line, and dies before it does anything about it.
    until("the vmm asks to be served", || host.read_attach()).await;
    host.signal(Signal::KILL);
    let vmm = timeout(PATIENCE, starts).await.expect("the vmm is answered").unwrap();
    assert!(host.pid().is_some_and(|pid| pid != first));
    assert_eq!(vmm.read(RUNS - 1), word(RUNS - 1));
    assert!(timeout(Duration::from_millis(1), memory.lost()).await.is_err());
    drop((vmm, memory));
    until("nothing of it is left", || host.open_layers() == 0 && host.sockets().len() == before).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_vm_starts_although_the_pager_dies_between_telling_vmmd_and_the_vmm() {
    let host = Host::new();
    let pager = host.pager();
    let generation = pager.generation(host.snapshot()).await.unwrap();
    let (uuid, dir) = (Uuid::new_v4(), host.vm_dir("web"));
    let (filling, memory) = pager.serve(uuid, &dir, &generation).await.unwrap();
    let (filling, mut memory) = (filling.unwrap(), memory.unwrap());
    let first = host.pid().unwrap();
    let (told, runtime, snapshot) = (pager.clone(), Handle::current(), host.snapshot());
    let instead = move || {
        // What `vmmd` asks now is answered after what it was told of the VM.
        runtime.block_on(told.generation(snapshot)).unwrap();
        kill_process(first, Signal::KILL).unwrap();
    };
    let starts =
        spawn_blocking(move || Vmm::start_late(dir, uuid, &generation, filling, Some(Box::new(instead))));
    let vmm = timeout(PATIENCE, starts).await.expect("the vmm is answered").unwrap();
    memory.has_started();
    assert!(host.pid().is_some_and(|pid| pid != first));
    assert_eq!(vmm.read(RUNS - 1), word(RUNS - 1));
    assert!(timeout(Duration::from_millis(1), memory.lost()).await.is_err());
    is_served_by_the_next(&host, &vmm).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_vm_that_vmmd_lets_go_of_is_forgotten_by_the_pager_though_its_vmm_runs() {
    let host = Host::new();
    let pager = host.pager();
    let (kept, other, _memory) = start(&host, &pager, "kept").await;
    let before = host.held_by_pager();
    let (generation, vmm, memory) = start(&host, &pager, "web").await;
    assert_ne!(host.held_by_pager(), before, "it has its socket and its userfaultfd");
    drop((generation, memory));
    until("the pager has nothing of it", || host.held_by_pager() == before).await;
    assert_eq!(other.read(RUNS - 1), word(RUNS - 1), "the other one is served");
    drop((vmm, kept));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_layer_is_one_for_all_who_use_it_and_goes_with_the_last_one() {
    let host = Host::new();
    let pager = host.pager();
    let (first, vmm, memory) = start(&host, &pager, "web").await;
    let second = pager.generation(host.snapshot()).await.unwrap();
    assert_eq!(host.open_layers(), 1);
    let files = [&first, &second].map(|generation| {
        let file = generation.open().unwrap().layers.remove(0);
        std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap())
    });
    assert_eq!(files[0], files[1]);
    let saved = |host: &Host| {
        let entries = fs::read_dir(host.state().join("pager")).unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "json"))
            .count()
    };
    drop((first, second));
    assert_eq!(vmm.read(3), word(3), "the VM uses it");
    assert_eq!((host.open_layers(), saved(&host)), (1, 1));
    drop((vmm, memory));
    until("nobody uses it", || host.open_layers() == 0 && saved(&host) == 0).await;
    // It comes back as another file.
    let third = pager.generation(host.snapshot()).await.unwrap();
    assert_eq!(host.open_layers(), 1);
    drop(third);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_layer_that_is_complete_needs_neither_its_file_nor_the_pager() {
    let host = Host::new();
    let pager = host.pager();
    let (generation, vmm, memory) = start(&host, &pager, "web").await;
    assert!(host.opens_of_layer().len() >= 2, "vmmd and the pager read it");
    generation.completed().await.unwrap();
    assert_eq!(host.opens_of_layer(), [""; 0].map(PathBuf::from), "the disk may be unmounted");
    fs::remove_dir_all(host.layer.parent().unwrap()).unwrap();
    assert!(vmm.is_unregistered(), "its faults are the kernel's alone");
    host.signal(Signal::STOP);
    (0..RUNS).for_each(|run| assert_eq!(vmm.read(run), word(run)));
    let stopped = host.signal(Signal::KILL);
    until("another one is there", || host.pid().is_some_and(|pid| pid != stopped)).await;
    assert_eq!(vmm.read(3), word(3));
    drop((generation, vmm, memory));
    until("the pager has nothing of it", || host.open_layers() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_pager_that_nobody_needs_ends_with_vmmd_and_one_that_somebody_needs_does_not() {
    let host = Host::new();
    let pager = host.pager();
    let generation = pager.generation(host.snapshot()).await.unwrap();
    let pid = host.pid();
    pager.end_if_idle().await;
    assert_eq!(host.pid(), pid);
    drop(generation);
    pager.end_if_idle().await;
    assert_eq!(host.pid(), None);
    let again = pager.generation(host.snapshot()).await.unwrap();
    assert_eq!((again.filling().len(), host.open_layers()), (1, 1), "another one starts when it is needed");
    again.completed().await.unwrap();
    assert!(again.filling().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_vm_that_needs_a_damaged_run_is_lost_and_the_reason_names_it() {
    let host = Host::new();
    let snapshot = host.snapshot();
    let damaged = RUNS - 5;
    let file = File::options().write(true).open(&host.layer).unwrap();
    file.write_all_at(b"x", damaged * 65536 + 5).unwrap();
    let pager = host.pager();
    let generation = pager.generation(snapshot).await.unwrap();
    let (uuid, dir) = (Uuid::new_v4(), host.vm_dir("web"));
    let (filling, memory) = pager.serve(uuid, &dir, &generation).await.unwrap();
    let (filling, mut memory) = (filling.unwrap(), memory.unwrap());
    let vmm = Vmm::start(dir, uuid, &generation, filling);
    assert_eq!(vmm.read(damaged + 1), word(damaged + 1), "the others are as they were");
    assert!(timeout(Duration::from_millis(50), memory.lost()).await.is_err(), "it has not needed it");
    let waits = vmm.read_beside(damaged);
    let end = timeout(Duration::from_secs(5), memory.lost()).await.unwrap();
    assert_eq!(end.kind, EndKind::DataLoss);
    let layer = host.layer.file_name().unwrap().to_str().unwrap().trim_start_matches("layer-");
    let names = end.reason.contains(&format!("run {damaged} ")) && end.reason.contains(layer);
    assert!(names, "{}", end.reason);
    assert!(waits.done().await.is_err(), "no byte of it is read");
}

/// Both graceful and not: what is let go of stays in the pager.
#[test]
#[ignore = "needs root and Linux 6.7"]
fn vms_are_served_when_vmmd_starts_anew_and_when_the_pager_dies_after_that() {
    let host = Host::new();
    let before = Runtime::new().unwrap();
    let pager = before.block_on(async { host.pager() });
    let (generation, vmm, memory) = before.block_on(start(&host, &pager, "web"));
    let pid = host.signal(Signal::STOP);
    drop(pager.left_when_dropped());
    drop((generation, memory, pager, before));
    host.signal(Signal::CONT);
    assert_eq!(vmm.read(RUNS - 1), word(RUNS - 1), "it is served while there is no vmmd");
    host.signal(Signal::STOP);

    let after = Runtime::new().unwrap();
    after.block_on(async {
        host.signal(Signal::CONT);
        let pager = host.pager();
        let memory = pager.adopt(vmm.uuid, &vmm.dir, std::process::id()).await.unwrap();
        let mut memory = memory.expect("it started lazily");
        pager.forget_unused();
        assert_eq!(host.pid(), Some(pid), "it is the same pager");
        host.signal(Signal::KILL);
        until("another one serves", || host.pid().is_some_and(|new| new != pid)).await;
        let waits = vmm.read_beside(RUNS - 2);
        assert_eq!(waits.done().await.unwrap(), word(RUNS - 2));
        assert!(timeout(Duration::from_millis(1), memory.lost()).await.is_err());
    });
}

fn inode(generation: &Generation) -> u64 {
    let layer = generation.open().unwrap().layers.remove(0);
    std::os::unix::fs::MetadataExt::ino(&layer.metadata().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_complete_layer_is_shared_as_long_as_a_vm_uses_it() {
    let host = Host::new();
    let pager = host.pager();
    let (first, vmm, memory) = start(&host, &pager, "web").await;
    first.completed().await.unwrap();
    let second = pager.generation(host.snapshot()).await.unwrap();
    // This one starts when all has arrived.
    let (filling, of_second) = pager.serve(Uuid::new_v4(), &host.vm_dir("web2"), &second).await.unwrap();
    assert!(filling.is_none(), "it needs no pager");
    let shared = inode(&first);
    drop((first, vmm, memory, second));
    // The pager has done all that it was told before.
    pager.end_if_idle().await;
    let third = pager.generation(host.snapshot()).await.unwrap();
    assert_eq!((inode(&third), third.filling().len()), (shared, 0));
    drop((third, of_second));
    until("nobody uses it", || host.open_layers() == 0).await;
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn a_complete_layer_is_shared_with_who_restores_after_vmmd_has_started_anew() {
    let host = Host::new();
    let before = Runtime::new().unwrap();
    let pager = before.block_on(async { host.pager() });
    let (generation, vmm, memory) = before.block_on(start(&host, &pager, "web"));
    before.block_on(generation.completed()).unwrap();
    let shared = inode(&generation);
    drop(pager.left_when_dropped());
    drop((generation, memory, pager, before));
    Runtime::new().unwrap().block_on(async {
        let pager = host.pager();
        let memory = pager.adopt(vmm.uuid, &vmm.dir, std::process::id()).await.unwrap();
        pager.forget_unused();
        // As if the disk was gone: nothing is read.
        let snapshot = host.snapshot();
        fs::remove_file(&host.layer).unwrap();
        let generation = pager.generation(snapshot).await.unwrap();
        assert_eq!((inode(&generation), generation.filling().len()), (shared, 0));
        assert_eq!(host.open_layers(), 1);
        drop((generation, memory));
        until("nobody uses it", || host.open_layers() == 0).await;
    });
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn vms_are_served_again_when_vmmd_and_the_pager_have_both_died() {
    let host = Host::new();
    let before = Runtime::new().unwrap();
    let pager = before.block_on(async { host.pager() });
    let (generation, vmm, memory) = before.block_on(start(&host, &pager, "web"));
    host.signal(Signal::STOP);
    drop(pager.left_when_dropped());
    drop((generation, memory, pager, before));
    host.signal(Signal::KILL);
    let waits = vmm.read_beside(RUNS - 1);

    Runtime::new().unwrap().block_on(async {
        let pager = host.pager();
        let memory = pager.adopt(vmm.uuid, &vmm.dir, std::process::id()).await.unwrap();
        let mut memory = memory.expect("it started lazily");
        assert_eq!(waits.done().await.unwrap(), word(RUNS - 1));
        assert!(timeout(Duration::from_millis(1), memory.lost()).await.is_err());
        // A VM whose layers nobody has any longer ends.
        let lost = host.vm_dir("lost");
        let layer = patina_control::pager::Id::try_from("f".repeat(64)).unwrap();
        lost.save_lazy_layers(&[layer]).unwrap();
        let memory = pager.adopt(Uuid::new_v4(), &lost, std::process::id()).await.unwrap();
        let end = timeout(PATIENCE, memory.unwrap().lost()).await.unwrap();
        assert_eq!(end.kind, EndKind::DataLoss, "{}", end.reason);
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_generation_of_a_vm_that_is_being_filled_is_accepted_and_nothing_else_unsealed() {
    let host = Host::new();
    let pager = host.pager();
    let (generation, _vmm, _memory) = start(&host, &pager, "web").await;
    // As a vmm sends it: what it was given, opened for reading only.
    let sent = |layer: File| {
        let state = patina_control::memfd::sealed("state", b"a state").unwrap();
        Generation::check(vec![state.into(), layer.into()], host::MEMORY_MIB, &pager.known())
    };
    let own = || generation.open().unwrap().layers.remove(0);
    let again = sent(own()).unwrap();
    drop(generation);
    assert_eq!(again.filling().len(), 1);
    let foreign = patina_control::pager::layer_memfd("patina-layer", host::BYTES).unwrap();
    let error = sent(foreign).unwrap_err();
    assert!(error.to_string().contains("still writable"), "{error}");
    let copy = File::from(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    copy.set_len(host::BYTES).unwrap();
    assert!(sent(copy).is_err());
}

#[tokio::test]
async fn without_the_program_the_error_says_what_to_do() {
    let host = Host::new();
    let pager = Pager::new("/nowhere/pager".into(), &host.state());
    let error = pager.generation(host.snapshot()).await.unwrap_err();
    assert!(matches!(error, PagerError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/pager") && error.to_string().contains("--pager"), "{error}");
    assert!(pager.known().find(vmmd::process::filling::FileNumber { device: 0, inode: 0 }).is_none());
}

#[test]
fn the_pager_program_is_built_with_these_tests() {
    assert!(Path::new(&program_path()).exists());
}
