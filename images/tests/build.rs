//! Real builds. They fetch packages and compile for minutes, so they run when asked for:
//! `cargo test -p patina-images --test build -- --ignored`. Products go to the usual cache.

#![allow(clippy::unwrap_used, reason = "these are tests, their helpers too")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use patina_images::{Recipe, Silent, Stderr, default_cache_dir};

/// Stands in for every guest program: busybox is static, which is all that the builder asks for.
fn stand_ins(recipe: &Recipe, directory: &Path) {
    for binary in &recipe.binaries {
        fs::copy("/bin/busybox", directory.join(&binary.name)).unwrap();
    }
}

/// Names in a directory of an erofs image.
fn listing(image: &Path, directory: &str) -> String {
    let output = Command::new("dump.erofs").args(["--ls", "--path", directory]).arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What another file of the same name does not share: inode, and time of the last change in
/// nanoseconds.
fn identity(file: &Path) -> (u64, i64, i64) {
    let metadata = fs::metadata(file).unwrap();
    (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

fn build_twice(name: &str) -> PathBuf {
    let recipe = Recipe::load(name).unwrap();
    let programs = tempfile::tempdir().unwrap();
    stand_ins(&recipe, programs.path());
    let cache = default_cache_dir().unwrap();
    let first = patina_images::rootfs(&cache, &recipe, programs.path(), &mut Stderr::new()).unwrap();
    let built = identity(&first);
    let second = patina_images::rootfs(&cache, &recipe, programs.path(), &mut Silent).unwrap();
    assert_eq!((&first, built), (&second, identity(&second)), "it was not built again");
    first
}

#[test]
#[ignore = "compiles a kernel: minutes when the cache has none"]
fn the_kernel_is_a_small_elf_and_is_built_once() {
    let cache = default_cache_dir().unwrap();
    let first = patina_images::kernel(&cache, &mut Stderr::new()).unwrap();
    let built = identity(&first);
    assert_eq!(patina_images::kernel(&cache, &mut Silent).unwrap(), first);
    assert_eq!(identity(&first), built, "it was not built again");
    let vmlinux = fs::read(&first).unwrap();
    assert!(vmlinux.starts_with(b"\x7fELF\x02\x01"));
    assert!(vmlinux.len() < 20 * 1024 * 1024, "{} bytes", vmlinux.len());
}

#[test]
#[ignore = "fetches Debian packages: a minute when the cache has none"]
fn the_default_root_file_system_has_what_a_guest_needs() {
    let image = build_twice("default");
    for (directory, name) in [
        ("/usr/bin", "sh"),
        ("/usr/bin", "python3"),
        ("/usr/bin", "gc"),
        ("/usr/sbin", "gc-init"),
        ("/usr/sbin", "gc-agent"),
        ("/etc", "passwd"),
        ("/etc", "gridcentric"),
        ("/usr/lib/python3.11/json/__pycache__", "decoder.cpython-311.pyc"),
    ] {
        assert!(
            listing(&image, directory).split_whitespace().any(|found| found == name),
            "{directory}/{name}"
        );
    }
    assert!(!listing(&image, "/usr/share").contains("doc"));
}

#[test]
#[ignore = "fetches Debian packages: a minute when the cache has none"]
fn a_larger_recipe_builds() {
    let image = build_twice("tools");
    assert!(listing(&image, "/usr/bin").split_whitespace().any(|found| found == "strace"));
    assert!(listing(&build_twice("bench"), "/usr/lib/patina").contains("guest-bench"));
}

#[test]
#[ignore = "asks apt, which takes seconds"]
fn an_unknown_package_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mine.toml");
    fs::write(&file, "packages = ['busybox-static', 'no-such-package-at-all']").unwrap();
    let recipe = Recipe::load(file.to_str().unwrap()).unwrap();
    let error = patina_images::rootfs(directory.path(), &recipe, directory.path(), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("\"no-such-package-at-all\""), "{error}");
    let left: Vec<_> = fs::read_dir(directory.path().join("base"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, [".lock"], "an unfinished product stayed");
}
