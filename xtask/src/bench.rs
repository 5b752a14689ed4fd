//! `cargo xtask bench`: builds what a benchmark needs and runs it.

use crate::{
    build::{self, BuildError},
    check::with_setup,
    run::{RunError, cargo, run},
    steps::Steps,
};
use std::{env, path::Path};

/// The recipe of the image with the programs that measure the guest.
const BENCH_RECIPE: &str = "bench";

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Something could not be built.
    #[error("build what the benchmark runs with")]
    Build(#[from] BuildError),
    /// The benchmark failed or missed what it must reach: its output is above.
    #[error("run the benchmark: its output is above")]
    Run(#[from] RunError),
}

/// Runs the benchmark `name`, writes its figures as JSON to `json` or standard output.
pub fn bench(name: &str, json: Option<&Path>) -> Result<(), BenchError> {
    let steps = Steps::new();
    let setup = build::everything(&steps, BENCH_RECIPE)?;
    steps.step("build the benchmarks", || run(&mut cargo(&["build", "--release", "-p", "patina-bench"])))?;
    let mut command = std::process::Command::new(setup.bin_dir.join("patina-bench"));
    command.arg(name);
    if let Some(path) = json {
        // The benchmark runs where the user is, so that a relative path means what it says.
        command.arg("--json").arg(env::current_dir().unwrap_or_default().join(path));
    }
    steps.step(name, || run(with_setup(&mut command, &setup)))?;
    Ok(())
}
