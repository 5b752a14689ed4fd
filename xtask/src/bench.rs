//! `cargo xtask bench`: builds what a benchmark needs and runs it.

use crate::{
    build::{self, BuildError},
    check::with_setup,
    run::{RunError, cargo, run, target_dir},
    steps::{Steps, with_causes},
};
use patina_images::Stderr as Progress;
use patina_tests::setup::BIN_DIR;
use std::{env, ffi::OsString, path::Path};

/// The recipe of the image with the programs that measure the guest.
const BENCH_RECIPE: &str = "bench";
/// Debian packages that a benchmark needs besides those of the image.
const PACKAGES: [(&str, &str, &str); 1] = [("clone", QEMU, "the comparison with clones")];
/// Those that it does without if they cannot be had: it says so.
const OPTIONAL_PACKAGES: [(&str, &str, &str); 1] = [("restore", QEMU, "the comparison with restores")];
const QEMU: &str = "qemu-system-x86";

/// The benchmarks that run no guests: they need no images.
const WITHOUT_GUESTS: [&str; 2] = ["fault", "ticket"];

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Something could not be built.
    #[error("build the benchmark and its programs")]
    Build(#[from] BuildError),
    /// A package that the benchmark needs cannot be had.
    #[error("install the packages that the benchmark needs")]
    Packages(#[from] patina_images::Error),
    /// The benchmark failed or missed what it must reach: its output is above.
    #[error("run the benchmark: its output is above")]
    Run(#[from] RunError),
}

/// Installs the packages of a benchmark.
fn ensure(packages: &[(&str, &str, &str)], name: &str) -> Result<(), patina_images::Error> {
    let needed = packages.iter().filter(|(bench, ..)| *bench == name);
    let needed: Vec<_> = needed.map(|&(_, package, what_for)| (package, what_for)).collect();
    Ok(patina_images::ensure_packages(&needed, &mut Progress::new())?)
}

/// Runs the benchmark `name` with `options`, in less time with `quick`; writes its figures as JSON
/// to `json` or standard output.
pub fn bench(name: &str, json: Option<&Path>, quick: bool, options: &[OsString]) -> Result<(), BenchError> {
    let steps = Steps::new();
    ensure(&PACKAGES, name)?;
    if let Err(error) = ensure(&OPTIONAL_PACKAGES, name) {
        patina_daemon::say!("without {QEMU}: {}", with_causes(&error));
    }
    let setup =
        if WITHOUT_GUESTS.contains(&name) { None } else { Some(build::everything(&steps, BENCH_RECIPE)?) };
    build::packages()?;
    let packages =
        ["build", "--release", "-p", "patina-bench", "-p", "patina-pager", "-p", "scheduler", "-p", "vmctl"];
    steps.step("build the benchmarks", || run(&mut cargo(&packages)))?;
    let bin_dir = target_dir().join("release");
    let mut command = std::process::Command::new(bin_dir.join("patina-bench"));
    command.arg(name).args(quick.then_some("--quick")).args(options);
    if let Some(path) = json {
        // The benchmark runs where the user is, so that a relative path means what it says.
        command.arg("--json").arg(env::current_dir().unwrap_or_default().join(path));
    }
    match &setup {
        Some(setup) => with_setup(&mut command, setup),
        None => command.env(BIN_DIR, bin_dir),
    };
    steps.step(name, || run(&mut command))?;
    Ok(())
}
