//! What VMs demanded of a layer, beside it.

use super::*;
use patina_control::pager::DemandBitmap;
use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

/// A snapshot with one layer, what was demanded of it, and the path of that layer.
fn with_demand(home: &Path) -> (PathBuf, DemandBitmap, PathBuf) {
    let place = home.join("one");
    let created = create_plain(&place, &[&layer(&[(3, 7), (4000, 9)])]).unwrap();
    let layer = place.join(format!("layer-{}", created.manifest.layers[0].id()));
    let mut demand = DemandBitmap::new(MEMORY_BYTES);
    assert_eq!([(0, 1), (1023, 3), (7, 0)].map(|(run, bucket)| demand.insert(run, bucket)), [true; 3]);
    assert!(load_demand(&layer, MEMORY_BYTES).unwrap().is_none());
    save_demand(&layer, MEMORY_BYTES, &demand).unwrap();
    (place, demand, layer)
}

fn file_of(layer: &Path) -> PathBuf {
    let name = layer.file_name().unwrap().to_str().unwrap();
    layer.with_file_name(name.replace("layer-", "demand-"))
}

#[test]
fn what_was_demanded_is_kept_with_the_snapshot_and_harms_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (place, mut demand, layer) = with_demand(home.path());
    assert_eq!(load_demand(&layer, MEMORY_BYTES).unwrap(), Some(demand.clone()));
    assert!(demand.insert(8, 2));
    save_demand(&layer, MEMORY_BYTES, &demand).unwrap();
    assert_eq!(load_demand(&layer, MEMORY_BYTES).unwrap(), Some(demand));
    let file = file_of(&layer).file_name().unwrap().to_str().unwrap().to_owned();
    let layer_name = layer.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(names(&place), [file, layer_name, "manifest".into(), "state".into()]);
    let snapshot = Snapshot::open(&place).unwrap();
    snapshot.verify(&unwatched).unwrap();
    let without = snapshot.usage().unwrap().own_bytes;
    fs::remove_file(file_of(&layer)).unwrap();
    assert!(snapshot.usage().unwrap().own_bytes < without, "removal frees it, too");
    drop(snapshot);
    assert_eq!(list(home.path(), "", 10).unwrap().len(), 1);
}

#[test]
fn a_snapshot_is_removed_with_what_was_demanded() {
    let home = tempfile::tempdir().unwrap();
    let (place, ..) = with_demand(home.path());
    // As a process leaves it that is killed while it writes.
    fs::write(place.join("demand-unfinished"), "half").unwrap();
    Snapshot::open(&place).unwrap().verify(&unwatched).unwrap();
    remove(&place).unwrap();
    assert!(names(home.path()).is_empty());
}

#[test]
fn what_is_kept_while_a_snapshot_is_removed_goes_with_it() {
    for _ in 0..50 {
        let home = tempfile::tempdir().unwrap();
        let (place, demand, layer) = with_demand(home.path());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(
                || {
                    while save_demand(&layer, MEMORY_BYTES, &demand).is_ok() && !is_over.load(SeqCst) {}
                },
            );
            let removed = remove(&place);
            is_over.store(true, SeqCst);
            removed.unwrap();
        });
        assert!(names(home.path()).is_empty());
    }
}

#[test]
fn what_is_damaged_cut_or_of_another_layer_is_refused_and_the_snapshot_is_not() {
    let home = tempfile::tempdir().unwrap();
    let (place, demand, layer) = with_demand(home.path());
    let (path, good) = (file_of(&layer), fs::read(file_of(&layer)).unwrap());
    let replace = |bytes: &[u8]| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let loaded = load_demand(&layer, MEMORY_BYTES);
        Snapshot::open(&place).unwrap().verify(&unwatched).unwrap();
        loaded
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(replace(&bad).is_err(), "byte {at}");
    }
    for length in [0, 1, 55, 56, good.len() - 1] {
        assert!(matches!(replace(&good[..length]), Err(DemandError::Size { .. })), "{length}");
    }
    assert!(replace(&[&good[..], b"x"].concat()).is_err());
    // Each of these has a digest that is right.
    let signed = |at: usize, byte: u8| {
        let mut bad = good[..good.len() - 32].to_vec();
        bad[at] = byte;
        let digest = blake3::hash(&bad);
        [&bad[..], digest.as_bytes()].concat()
    };
    for (at, byte) in [(0, b'X'), (8, 2), (12, 5), (16, !good[16]), (48, 1)] {
        assert!(matches!(replace(&signed(at, byte)), Err(DemandError::Alien(_))), "byte {at}");
    }
    assert_eq!(replace(&good).unwrap(), Some(demand.clone()));
    assert!(load_demand(&layer, MEMORY_BYTES * 2).is_err(), "for a layer of another length");

    fs::rename(&path, home.path().join("elsewhere")).unwrap();
    symlink(home.path().join("elsewhere"), &path).unwrap();
    assert!(matches!(load_demand(&layer, MEMORY_BYTES), Err(DemandError::NotAFile(_))));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(load_demand(&layer, MEMORY_BYTES), Err(DemandError::NotAFile(_))));
    assert!(save_demand(&layer, MEMORY_BYTES, &demand).is_err());
    assert!(!place.join("demand-unfinished").exists(), "nothing is left behind");
}

#[test]
fn what_was_demanded_of_a_layer_comes_with_it_into_a_later_snapshot() {
    let home = tempfile::tempdir().unwrap();
    let (place, demand, layer_file) = with_demand(home.path());
    let known = Snapshot::open(&place).unwrap().known_layer(0).unwrap().unwrap();
    let second = home.path().join("two");
    let (old, new) = (layer(&[(3, 7), (4000, 9)]), layer(&[(5, 5)]));
    let mut reuse = |number| (number == 0).then(|| known.clone());
    let created =
        create(&second, &description(), &state(), (&[&old, &new], &[]), &mut reuse, &unwatched).unwrap();
    assert_eq!(created.linked, 1);
    let linked = second.join(layer_file.file_name().unwrap());
    assert_eq!(load_demand(&linked, MEMORY_BYTES).unwrap(), Some(demand.clone()));
    // From now on each has its own.
    save_demand(&linked, MEMORY_BYTES, &DemandBitmap::new(MEMORY_BYTES)).unwrap();
    assert_eq!(load_demand(&layer_file, MEMORY_BYTES).unwrap(), Some(demand));
    Snapshot::open(&second).unwrap().verify(&unwatched).unwrap();
    remove(&second).unwrap();
    remove(&place).unwrap();
}
