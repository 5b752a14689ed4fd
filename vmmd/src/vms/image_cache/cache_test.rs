use super::*;
use crate::vms::snapshot_data::known::tests::{MEMORY_MIB, description};
use blake3::Hash;
use patina_control::memfd;
use patina_snapshot::{directory::create, manifest::Description};
use std::{ffi::OsStr, os::unix::fs::FileExt as _, time::Duration};
use uuid::Uuid;

const MONTH: Duration = Duration::from_secs(30 * 86_400);

fn key(number: u8) -> Key {
    Key::parse(&Hash::from_bytes([number; 32]).to_string()).unwrap()
}

fn open(folder: &Path, bytes_max: u64) -> ImageCache {
    let settings = CacheSettings { folder: folder.join("images"), bytes_max, age_max: MONTH };
    ImageCache::open(settings).unwrap()
}

/// Makes an image with so much memory in it.
fn make(cache: &ImageCache, number: u8, data_bytes: usize) -> PathBuf {
    let description = Description { uuid: Uuid::new_v4(), ..description() };
    let state = memfd::sealed("state", b"state").unwrap();
    let mut ram = vec![number; data_bytes];
    ram.resize(usize::try_from(MEMORY_MIB << 20).unwrap(), 0);
    let layer = memfd::sealed("layer", &ram).unwrap();
    let place = cache.place(key(number));
    create(&place, &description, &state, (&[&layer], &[]), &mut |_| None, &unwatched).unwrap();
    place
}

fn used(place: &Path, ago: Duration) {
    fs::File::open(place).unwrap().set_modified(SystemTime::now() - ago).unwrap();
}

fn keys(cache: &ImageCache) -> Vec<Key> {
    cache.list().unwrap().iter().map(|stored| stored.key).collect()
}

/// The file of an image's layer, writable.
fn layer(place: &Path) -> fs::File {
    let mut names = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    let is_layer = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).unwrap().starts_with("layer-");
    let path = names.find(is_layer).unwrap();
    fs::File::options().write(true).open(path).unwrap()
}

#[test]
fn what_was_used_least_recently_goes_until_the_rest_fits() {
    let folder = tempfile::tempdir().unwrap();
    // Two images of 1 MiB fit, three do not.
    let cache = open(folder.path(), 5 << 19);
    for (number, hours) in [(1, 3), (2, 1), (3, 2)] {
        used(&make(&cache, number, 1 << 20), Duration::from_secs(hours * 3600));
    }
    assert_eq!(keys(&cache), [key(1), key(3), key(2)]);
    cache.used(key(1));
    cache.evict();
    assert_eq!(keys(&cache), [key(2), key(1)]);
    cache.evict();
    assert_eq!(keys(&cache).len(), 2, "what fits stays");
}

#[test]
fn what_was_not_used_for_long_goes_and_what_is_in_use_stays() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 1 << 30);
    for number in [1, 2, 3] {
        used(&make(&cache, number, 4096), MONTH * u32::from(number) / 2);
    }
    let held = Snapshot::open(&cache.place(key(3))).unwrap();
    cache.evict();
    // The second one was used a month ago, and a moment.
    assert_eq!(keys(&cache), [key(3), key(1)]);
    assert!(matches!(cache.remove(key(3)), Err(RemoveError::InUse(_))));
    drop(held);
    cache.evict();
    assert_eq!(keys(&cache), [key(1)]);
}

#[test]
fn an_image_that_is_not_what_it_was_is_removed_as_it_is_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 1 << 30);
    let cut = |place: &Path| layer(place).set_len(4096).unwrap();
    let flip = |place: &Path| layer(place).write_all_at(b"x", 100).unwrap();
    let lose = |place: &Path| fs::remove_file(place.join("manifest")).unwrap();
    let stray = |place: &Path| fs::write(place.join("stray"), b"").unwrap();
    let damages: [&dyn Fn(&Path); 3] = [&cut, &flip, &lose];
    for (name, damage) in ["cut", "flip", "lose"].into_iter().zip(damages) {
        for is_known in [false, true] {
            let place = make(&cache, 1, 4096);
            if is_known {
                assert!(cache.find(key(1)).is_some());
            }
            damage(&place);
            assert!(cache.find(key(1)).is_none(), "{name}");
            assert!(!place.exists(), "{name}: another one can be made");
        }
    }
    // What does not belong to it does not make it wrong, nor is it read again; it goes with it.
    let place = make(&cache, 1, 4096);
    assert!(cache.find(key(1)).is_some());
    stray(&place);
    assert_eq!(lock(&cache.inner).checked.get(&key(1)), Some(&super::stamp(&place).unwrap()));
    assert!(cache.find(key(1)).is_some());
    cache.remove(key(1)).unwrap();
    assert!(!place.exists());
}

#[test]
fn an_image_is_read_whole_once_and_not_after_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 1 << 30);
    let place = make(&cache, 1, 4096);
    cache.made(key(1));
    let checked = || lock(&cache.inner).checked.get(&key(1)).cloned();
    let made = checked().unwrap();
    assert!(cache.find(key(1)).is_some());
    assert_eq!(checked(), Some(made.clone()));
    // Another vmmd has not seen it made.
    let other = open(folder.path(), 1 << 30);
    assert!(other.find(key(1)).is_some());
    assert_eq!(lock(&other.inner).checked.get(&key(1)), Some(&made));
    // What looks as it did is not read again: not even what is wrong is found.
    layer(&place).write_all_at(b"x", 100).unwrap();
    lock(&other.inner).checked.insert(key(1), super::stamp(&place).unwrap());
    assert!(other.find(key(1)).is_some());
}

#[test]
fn an_image_that_is_bad_and_in_use_is_not_used_again_and_goes_later() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 1 << 30);
    let place = make(&cache, 1, 4096);
    let held = cache.find(key(1)).unwrap();
    cache.discard(key(1), "a test says so");
    assert!(place.exists() && cache.find(key(1)).is_none());
    drop(held);
    assert!(cache.find(key(1)).is_none() && !place.exists());
    make(&cache, 1, 4096);
    assert!(cache.find(key(1)).is_some(), "the next one is another one");
}

#[test]
fn one_vm_at_a_time_is_to_be_kept_as_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 1 << 30);
    let making = cache.begin(key(1)).unwrap();
    assert!(cache.begin(key(1)).is_none());
    assert!(cache.begin(key(2)).is_some());
    drop(making);
    assert!(cache.begin(key(1)).is_some());
}

#[test]
fn what_a_killed_vmmd_left_of_an_image_goes_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path(), 1 << 30);
    make(&cache, 1, 4096);
    let half = cache.folder().join(format!("{}x", directory::UNFINISHED_PREFIX));
    fs::create_dir(&half).unwrap();
    fs::write(half.join("state"), b"half").unwrap();
    fs::write(cache.folder().join("mine"), b"").unwrap();
    drop(cache);
    let cache = open(folder.path(), 1 << 30);
    assert!(!half.exists() && cache.folder().join("mine").exists());
    assert_eq!(keys(&cache), [key(1)]);
    assert_eq!(fs::metadata(cache.folder()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("images"), b"").unwrap();
    let settings = CacheSettings { folder: folder.path().join("images"), bytes_max: 1, age_max: MONTH };
    let error = chain(&ImageCache::open(settings).unwrap_err());
    assert!(error.contains("images"), "{error}");
}
