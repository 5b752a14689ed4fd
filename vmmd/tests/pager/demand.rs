//! What VMs demanded of a layer is kept with the snapshot, and fetched first later.

use super::{host::*, start};
use patina_control::pager::DemandBitmap;
use patina_snapshot::directory::{load_demand, save_demand};
use rustix::{fs::SeekFrom, process::Signal};
use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::PathBuf,
    time::{Duration, Instant},
};
use vmmd::{pager::Pager, process::generation::Generation};

/// More than a pager tries before it gives the fill up.
const DAMAGED: u64 = 16;

/// Damages the first runs, so that the fill stops at them.
fn damage(host: &Host) {
    let file = File::options().write(true).open(&host.layer).unwrap();
    (0..DAMAGED).for_each(|run| file.write_all_at(b"x", run * 65536 + 9).unwrap());
}

fn kept(host: &Host) -> Option<Vec<usize>> {
    let mut runs: Vec<_> = load_demand(&host.layer, BYTES).unwrap()?.in_order().map(|(_, run)| run).collect();
    runs.sort_unstable();
    Some(runs)
}

fn file_of(host: &Host) -> PathBuf {
    let name = host.layer.file_name().unwrap().to_str().unwrap();
    host.layer.with_file_name(name.replace("layer-", "demand-"))
}

/// The runs that the memfd of the only layer has.
fn present(generation: &Generation) -> Vec<u64> {
    let memfd = generation.open().unwrap().layers.remove(0);
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Ok(start) = rustix::fs::seek(&memfd, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&memfd, SeekFrom::Hole(start)).unwrap();
        runs.extend(start / 65536..at.div_ceil(65536));
    }
    runs
}

/// Waits until the fill has stopped.
async fn stopped(generation: &Generation) {
    generation.completed().await.unwrap_err();
}

async fn forgotten(host: &Host) {
    until("nobody uses the layer", || host.open_layers() == 0).await;
}

/// How many runs are known to be demanded.
async fn known(host: &Host, pager: &Pager) -> usize {
    let snapshot = host.snapshot();
    pager.add_layer(snapshot.layer(0).unwrap()).await.unwrap().parts().demand.count()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn the_second_restore_fetches_first_what_the_first_one_demanded() {
    let host = Host::new();
    let snapshot = host.snapshot();
    damage(&host);
    let pager = host.pager();
    let (generation, vmm, memory) = start(&host, &pager, "web").await;
    stopped(&generation).await;
    let demanded = [RUNS - 9, RUNS - 5, RUNS - 1];
    demanded.iter().for_each(|run| assert_eq!(vmm.read(*run), word(*run)));
    drop((generation, vmm, memory));
    until("it is kept", || kept(&host).is_some()).await;
    assert_eq!(kept(&host).unwrap(), demanded.map(|run| run as usize));
    forgotten(&host).await;

    // The fill stops at once. What is there then was fetched before it.
    let generation = pager.generation(snapshot).await.unwrap();
    stopped(&generation).await;
    assert_eq!(present(&generation), demanded);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn what_is_demanded_is_kept_when_a_layer_is_complete_until_it_has_settled() {
    let host = Host::new();
    // All but what the first VM demands is known.
    let mut before = DemandBitmap::new(BYTES);
    assert!((0..40).all(|run| before.insert(run, 0)));
    let pager = host.pager();
    let mut inodes = Vec::new();
    for (number, run) in [RUNS - 1, RUNS - 2, RUNS - 3].into_iter().enumerate() {
        let (generation, vmm, memory) = start(&host, &pager, &number.to_string()).await;
        assert_eq!(vmm.read(run), word(run));
        generation.completed().await.unwrap();
        until("it is kept", || kept(&host).is_some()).await;
        drop((generation, vmm, memory));
        forgotten(&host).await;
        inodes.push(fs::metadata(file_of(&host)).unwrap().ino());
        if number == 0 {
            assert!(kept(&host).unwrap().contains(&(run as usize)));
            save_demand(&host.layer, BYTES, &before).unwrap();
            inodes.push(fs::metadata(file_of(&host)).unwrap().ino());
        }
    }
    // One run in forty is nothing new.
    assert_eq!(inodes[1], inodes[2], "it is not written again");
    assert_eq!(kept(&host).unwrap().len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn a_restore_needs_no_record_of_demands_and_no_place_to_write_one() {
    let host = Host::new();
    let pager = host.pager();
    for number in 0..2 {
        match number {
            0 => fs::write(file_of(&host), b"damaged").unwrap(),
            // Nothing can be renamed to this name, as if the disk were read-only.
            _ => {
                fs::remove_file(file_of(&host)).unwrap();
                fs::create_dir(file_of(&host)).unwrap();
            }
        }
        let (generation, vmm, memory) = start(&host, &pager, &number.to_string()).await;
        assert_eq!(vmm.read(RUNS - 1), word(RUNS - 1));
        generation.completed().await.unwrap();
        assert_eq!(vmm.read(5), word(5));
        drop((generation, vmm, memory));
        forgotten(&host).await;
    }
    assert!(file_of(&host).is_dir());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and Linux 6.7"]
async fn what_was_demanded_of_a_pager_that_was_killed_is_not_forgotten() {
    let host = Host::new();
    let snapshot = host.snapshot();
    damage(&host);
    let pager = host.pager();
    let (generation, vmm, memory) = start(&host, &pager, "web").await;
    stopped(&generation).await;
    assert_eq!(vmm.read(RUNS - 1), word(RUNS - 1));
    let begun = Instant::now();
    while known(&host, &pager).await == 0 {
        assert!(begun.elapsed() < PATIENCE, "vmmd asks the pager what is demanded");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let killed = host.signal(Signal::KILL);
    until("another one serves", || host.pid().is_some_and(|pid| pid != killed)).await;
    assert_eq!(vmm.read(RUNS - 7), word(RUNS - 7));
    drop((generation, vmm, memory, snapshot));
    until("it is kept", || kept(&host).is_some()).await;
    assert_eq!(kept(&host).unwrap(), [RUNS - 7, RUNS - 1].map(|run| run as usize));
}
