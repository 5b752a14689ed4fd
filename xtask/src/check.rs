//! `cargo xtask test`: all checks and all tests. At the end it looks for what they left behind.

use crate::{
    build::{self, BuildError},
    fuzz::{self, FuzzError},
    l1::{self, HostsError, Wanted},
    miri,
    programs::{Built, ProgramError},
    protos,
    run::{RunError, cargo, has_subcommand, run, workspace},
    steps::{Steps, with_causes},
};
use patina_daemon::kernel;
use patina_images::Stderr as Progress;
use patina_tests::{
    leftovers::Snapshot,
    setup::{BIN_DIR, GUEST_BIN_DIR, KERNEL, ROOTFS, Setup},
};
use rustix::process::setpriority_process;
use std::{io, panic::resume_unwind, path::Path, process::Command, thread};

/// Debian packages that tests need besides those of the image.
const PACKAGES: [(&str, &str); 9] = [
    ("g++", "the fuzz targets"),
    ("busybox-static", "the tests of gc-init"),
    ("util-linux", "the tests of gc-init"),
    ("iptables", "the tests of vmctl doctor's warnings"),
    ("nftables", "the tests of vmctl doctor's warnings"),
    ("iproute2", "the tests of hosts that are cut off"),
    ("python3-grpcio", "the example in examples/grpc"),
    ("protobuf-compiler", "the example in examples/grpc"),
    ("protobuf-compiler-grpc", "the example in examples/grpc"),
];

/// The package of sshd. Debian starts it where there is systemd, and so opens a port.
const SSHD_PACKAGE: (&str, &str) = ("openssh-server", "the tests of vmctl --host ssh://");
/// Where it is then.
const SSHD: &str = "/usr/sbin/sshd";

/// Of a process, as a nice value.
const LEAST_PRIORITY: i32 = 19;

/// Names the seed of property tests.
const SEED: &str = "PROPTEST_RNG_SEED";

/// Why the tests did not pass.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    /// Something could not be built.
    #[error("build the tests and their programs")]
    Build(#[from] BuildError),
    /// A package that tests need cannot be had.
    #[error("install the packages that the tests need")]
    Packages(#[from] patina_images::Error),
    /// A check or a test failed: its output is above.
    #[error("a check failed: its output is above")]
    Check(#[from] RunError),
    /// The stories could not be built.
    #[error("build the end-to-end tests")]
    Programs(#[from] ProgramError),
    /// A fuzz target could not be run, or found a fault.
    #[error("run the fuzz targets")]
    Fuzz(#[from] FuzzError),
    /// The tests on emulated hosts did not pass.
    #[error("test on emulated hosts")]
    Hosts(#[from] HostsError),
    /// Processes or interfaces could not be listed.
    #[error("look for processes and interfaces that the tests left behind")]
    Look(#[source] io::Error),
    /// The tests left something behind.
    #[error("the tests left behind: {}", .0.join(", "))]
    Leftovers(Vec<String>),
}

/// Everything, or with `filters` only the tests whose names contain one of them.
pub fn test(filters: &[String]) -> Result<(), TestError> {
    let steps = Steps::new();
    let before = Snapshot::take().map_err(TestError::Look)?;
    let setup = build::everything(&steps, build::DEFAULT_RECIPE)?;
    let mut packages = PACKAGES.to_vec();
    match Path::new("/run/systemd/system").exists() {
        true if Path::new(SSHD).exists() => {}
        true => steps.note("skipped: tests of ssh:// (they need openssh-server, which opens a port)"),
        false => packages.push(SSHD_PACKAGE),
    }
    patina_images::ensure_packages(&packages, &mut Progress::new()).map_err(patina_images::Error::from)?;
    if filters.is_empty() {
        checks(&steps)?;
    }
    let outcome = steps.step("test without guests", || unit_tests(&setup, filters));
    let program = Built::new(&["--test", "e2e"])?.program("test", "e2e")?;
    // A story's guest seldom has work for more than one CPU, and waits at times.
    let outcome = outcome.map_err(TestError::from).and(beside(
        &steps,
        || if filters.is_empty() { patient_checks(&steps) } else { Ok(()) },
        // One process runs all end-to-end tests, so that tests share booted guests.
        || Ok(steps.step("test with real guests", || guest_tests(&setup, &program, filters))?),
    ));
    let outcome = outcome.and_then(|()| emulated_hosts(&steps, &setup, filters));
    let left = Snapshot::take().map_err(TestError::Look)?.since(&before);
    outcome?;
    if !left.is_empty() {
        return Err(TestError::Leftovers(left));
    }
    steps.note("test: ok, nothing left behind");
    Ok(())
}

/// The tests on emulated hosts are part of everything, but not of a few tests that somebody names:
/// those have `--l1` for it. A host that cannot be had here is ignored, with the reason.
fn emulated_hosts(steps: &Steps, setup: &Setup, filters: &[String]) -> Result<(), TestError> {
    if !filters.is_empty() {
        return Ok(());
    }
    match l1::test(steps, setup, &Wanted::all(), &[]) {
        Err(error @ HostsError::Unavailable(..)) => {
            steps.note(&format!("ignored: tests on emulated hosts: {}", with_causes(&error)));
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

/// The tests on emulated hosts. Where there can be none, that is an error: they were asked for.
pub fn test_l1(wanted: &Wanted, filters: &[String]) -> Result<(), TestError> {
    let steps = Steps::new();
    let setup = build::everything(&steps, build::DEFAULT_RECIPE)?;
    l1::test(&steps, &setup, wanted, filters)?;
    steps.note("test: ok on emulated hosts");
    Ok(())
}

/// Does `work`, and meanwhile, with the least priority, `patient` work. Both come to their end.
fn beside(
    steps: &Steps,
    patient: impl FnOnce() -> Result<(), TestError> + Send,
    work: impl FnOnce() -> Result<(), TestError>,
) -> Result<(), TestError> {
    thread::scope(|scope| {
        let patient = scope.spawn(|| {
            // Of this thread, and of what it starts.
            if let Err(error) = setpriority_process(None, LEAST_PRIORITY) {
                steps.note(&format!("what runs beside may slow the tests down: set its priority: {error}"));
            }
            patient()
        });
        let done = work();
        let beside = patient.join().unwrap_or_else(|panic| resume_unwind(panic));
        done.and(beside)
    })
}

/// What is soon done.
fn checks(steps: &Steps) -> Result<(), TestError> {
    steps.step("check the format", || run(&mut cargo(&["fmt", "--all", "--check"])))?;
    licences(steps)?;
    Ok(protos::check(steps)?)
}

/// What keeps CPUs busy for minutes.
fn patient_checks(steps: &Steps) -> Result<(), TestError> {
    steps.step("lint", || {
        run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
    })?;
    steps.step("build the documentation", || {
        run(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    miri::check(steps)?;
    fuzz::check(steps)?;
    Ok(())
}

/// Advisories are left out: their database is on a server that not every machine reaches.
fn licences(steps: &Steps) -> Result<(), RunError> {
    if !has_subcommand("deny") {
        let install = || run(&mut cargo(&["install", "--quiet", "--locked", "cargo-deny"]));
        if steps.step("install cargo-deny", install).is_err() {
            steps.note("skipped: cargo deny check (cargo-deny cannot be installed)");
            return Ok(());
        }
    }
    // The fuzz targets are a workspace of their own.
    steps.step("check licences, versions and sources", || {
        ["Cargo.toml", "fuzz/Cargo.toml"].into_iter().try_for_each(|manifest| {
            let mut check = cargo(&["deny", "--log-level", "error", "--config", "deny.toml"]);
            run(check.args(["--manifest-path", manifest, "check", "licenses", "bans", "sources"]))
        })
    })
}

fn unit_tests(setup: &Setup, filters: &[String]) -> Result<(), RunError> {
    if has_subcommand("nextest") {
        // Filters may name end-to-end tests only: then there is nothing to run here.
        let mut command =
            cargo(&["nextest", "run", "--workspace", "-E", "not binary(e2e)", "--no-tests", "pass"]);
        run(seeded(with_setup(command.args(filters), setup)))?;
        return if rustix::process::geteuid().is_root() { root_tests(filters) } else { Ok(()) };
    }
    for filter in each(filters) {
        let mut command = cargo(&["test", "--workspace", "--exclude", "patina-tests"]);
        run(seeded(with_setup(command.arg("--").args(filter), setup)))?;
        run(cargo(&["test", "-p", "patina-tests", "--lib", "--"]).args(filter))?;
    }
    Ok(())
}

/// Tests that need root and KVM, or sshd, but no image are ignored by themselves, with their
/// reason; here is root.
fn root_tests(filters: &[String]) -> Result<(), RunError> {
    // With `-p` for each of these crates, their dependencies would be built again, with fewer
    // features.
    let mut command = cargo(&["nextest", "run", "--workspace", "--run-ignored", "only"]);
    let mut chosen =
        "package(/^(vmm|vmmd|patina-daemon|patina-snapshot|vmctl)$/) and not binary(tiny_guests)".to_owned();
    // Where the kernel does not note what is written, tests of that stay ignored.
    let release = kernel::release().unwrap_or_default();
    if !kernel::notes_writes(&release) {
        chosen.push_str(" and not test(sys::pagemap::)");
    }
    if !Path::new(SSHD).exists() {
        chosen.push_str(" and not (package(vmctl) and test(/^ssh::/))");
    }
    run(seeded(command.args(["-E", &chosen, "--no-tests", "pass"]).args(filters)))
}

/// Property tests draw the same cases in each run, so that a revision that has passed passes again.
/// Where none is set, `cargo test` draws others each time: that is for looking for faults.
fn seeded(command: &mut Command) -> &mut Command {
    match std::env::var_os(SEED) {
        Some(_) => command,
        None => command.env(SEED, "11"),
    }
}

fn guest_tests(setup: &Setup, program: &Path, filters: &[String]) -> Result<(), RunError> {
    for filter in each(filters) {
        let mut command = Command::new(program);
        command.current_dir(workspace().join("tests")).args(filter);
        run(with_setup(&mut command, setup))?;
    }
    Ok(())
}

/// The test harnesses take one filter at a time; without any they run once, with none.
fn each(filters: &[String]) -> Vec<Option<&String>> {
    if filters.is_empty() { vec![None] } else { filters.iter().map(Some).collect() }
}

/// Tells tests and benchmarks which binaries and images to use.
pub fn with_setup<'a>(command: &'a mut Command, setup: &Setup) -> &'a mut Command {
    command
        .env(BIN_DIR, &setup.bin_dir)
        .env(KERNEL, &setup.kernel)
        .env(ROOTFS, &setup.rootfs)
        .env(GUEST_BIN_DIR, &setup.guest_bin_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpriority_process;
    use std::sync::Barrier;

    #[test]
    fn patient_work_is_done_at_the_same_time_with_the_least_priority() {
        let both = Barrier::new(2);
        let nice = || getpriority_process(None).expect("a priority");
        let own = nice();
        let failed = |what: &str| Err(TestError::Leftovers(vec![what.to_owned()]));
        let patient = || {
            both.wait();
            assert_eq!(nice(), LEAST_PRIORITY);
            let child = Command::new("sh").args(["-c", "cut -d' ' -f19 /proc/$$/stat"]).output();
            assert_eq!(child.expect("a shell").stdout, b"19\n", "what it starts has it, too");
            failed("patient")
        };
        let error = beside(&Steps::new(), patient, || {
            both.wait();
            assert_eq!(nice(), own);
            Ok(())
        });
        assert!(matches!(error, Err(TestError::Leftovers(what)) if what == ["patient"]));
        let error = beside(&Steps::new(), || Ok(()), || failed("work"));
        assert!(matches!(error, Err(TestError::Leftovers(what)) if what == ["work"]));
    }
}
