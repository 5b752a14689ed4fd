use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::progress::Silent;

fn key(text: &str) -> Key {
    KeyBuilder::default().input("text", text.as_bytes()).key()
}

fn build(cache: &Cache, text: &str, builds: &AtomicUsize) -> PathBuf {
    cache
        .find_or_build("thing", &key(text), &mut Silent, |directory, _| {
            builds.fetch_add(1, Ordering::SeqCst);
            fs::write(directory.join("product"), text).map_err(failed("write", directory))
        })
        .unwrap()
}

#[test]
fn the_environment_chooses_the_directory() {
    let path = |text: &str| Some(PathBuf::from(text));
    assert_eq!(choose_cache_dir(path("/p"), path("/x"), path("/h")).unwrap(), Path::new("/p"));
    assert_eq!(choose_cache_dir(None, path("/x"), path("/h")).unwrap(), Path::new("/x/patina"));
    assert_eq!(choose_cache_dir(None, None, path("/h")).unwrap(), Path::new("/h/.cache/patina"));
    assert!(matches!(choose_cache_dir(None, None, None), Err(CacheError::NoPlace)));
}

#[test]
fn inputs_that_run_together_have_different_keys() {
    let one = KeyBuilder::default().input("a", b"bc").input("d", b"").key();
    let two = KeyBuilder::default().input("ab", b"c").input("d", b"").key();
    assert_ne!(one, two);
    assert_eq!(one.as_str().len(), 32);
    assert!(one.with_suffix("6.1/../x").as_str().ends_with("-6.1_.._x"));
}

#[test]
fn a_second_call_builds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let builds = AtomicUsize::new(0);
    let first = build(&cache, "one", &builds);
    assert_eq!(build(&cache, "one", &builds), first);
    assert_eq!(fs::read_to_string(first.join("product")).unwrap(), "one");
    assert_eq!(builds.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failed_or_interrupted_build_leaves_no_product() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let refused = cache.find_or_build("thing", &key("one"), &mut Silent, |building, _| {
        fs::write(building.join("half"), "half").unwrap();
        Err(CacheError::NoPlace)
    });
    assert!(matches!(refused, Err(CacheError::NoPlace)));
    assert!(cache.find("thing", &key("one")).is_none());

    // What a killed process leaves behind.
    let stale = cache.root.join("thing/.building-1");
    fs::create_dir(&stale).unwrap();
    fs::write(stale.join("half"), "half").unwrap();
    let product = build(&cache, "one", &AtomicUsize::new(0));
    assert!(!stale.exists() && !product.join("half").exists());
}

#[test]
fn two_builders_at_once_build_once() {
    let directory = tempfile::tempdir().unwrap();
    let builds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| build(&Cache::open(directory.path()).unwrap(), "one", &builds));
        }
    });
    assert_eq!(builds.load(Ordering::SeqCst), 1);
}

#[test]
fn the_least_recently_used_products_go() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path()).unwrap();
    let builds = AtomicUsize::new(0);
    let names: Vec<String> = (0..KEPT_PRODUCTS + 1).map(|n| n.to_string()).collect();
    for (age, name) in names.iter().enumerate().take(KEPT_PRODUCTS) {
        let product = build(&cache, name, &builds);
        let used = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
        File::open(product).unwrap().set_modified(used).unwrap();
    }
    // Product 0 is the oldest, but it is used again, so product 1 goes when one more is built.
    assert!(cache.find("thing", &key("0")).is_some());
    build(&cache, &names[KEPT_PRODUCTS], &builds);
    assert!(cache.find("thing", &key("0")).is_some());
    assert!(cache.find("thing", &key("1")).is_none());
    assert_eq!(cache.products("thing").unwrap().len(), KEPT_PRODUCTS);
}
