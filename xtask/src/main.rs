//! `cargo xtask`: the commands for developers and for continuous integration.
//!
//! - [`build`]: the guest's programs, its image, the host's release binaries.
//! - [`demo`]: from nothing to a guest that answers, with everything cleaned up.
//! - [`check`]: the `test` command, all checks and all tests.
//! - [`protos`]: the checks of the .proto files.
//! - [`miri`]: Miri, on modules without system calls.
//! - [`mod@fuzz`]: the fuzz targets.
//! - [`l1`]: the tests on emulated hosts. [`programs`]: the programs of tests.
//! - [`mod@bench`]: the benchmarks.
//! - [`steps`], [`run`]: progress and child processes.
//!
//! Progress goes to standard error, results to standard output.

mod bench;
mod build;
mod check;
mod demo;
mod fuzz;
mod l1;
mod miri;
mod programs;
mod protos;
mod run;
mod steps;

use clap::{Parser, Subcommand};
use std::{error::Error, path::PathBuf, process::ExitCode};

/// Builds, demonstrates, tests and measures Patina.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds everything from nothing, boots a guest under vmmd and shows what it answers.
    Demo,
    /// All checks and tests, end-to-end tests in real guests included.
    Test {
        /// Run only tests whose name contains one of these; format, lints and documentation are
        /// skipped.
        filters: Vec<String>,
        /// Run only the tests on emulated hosts with AMD-V: those with this kernel (6.1, 6.12), or
        /// all of them.
        #[arg(long, value_name = "KERNEL", num_args = 0..=1, default_missing_value = "all")]
        l1: Option<l1::Wanted>,
    },
    /// Builds the guest image and prints the paths of its kernel and root file system.
    Image {
        /// What is in it: a recipe's name (default, bench, tools) or file.
        #[arg(long, default_value = build::DEFAULT_RECIPE)]
        recipe: String,
        /// Print the paths as assignments of PATINA_KERNEL and PATINA_ROOTFS, which vmmd reads.
        #[arg(long)]
        print: bool,
    },
    /// Runs the fuzz targets.
    Fuzz {
        /// The only target to run.
        target: Option<String>,
        /// How long each target runs.
        #[arg(long, default_value_t = 600)]
        seconds: u32,
    },
    /// Runs a benchmark and prints its figures.
    Bench {
        /// `boot`, `clone`, `cornering`, `fault`, `remote`, `restore` or `ticket`.
        name: String,
        /// Write the figures to this file as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Measure everything, but less often.
        #[arg(long)]
        quick: bool,
        /// Options of the benchmark itself: `patina-bench --help` has them.
        #[arg(last = true)]
        options: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = patina_tests::keeper::run_if_asked() {
        return code;
    }
    let arguments = Arguments::parse();
    if let Err(error) = run::watch_for_signals() {
        patina_daemon::say!("error: watch for signals: {error}");
        return ExitCode::FAILURE;
    }
    let result: Result<(), Box<dyn Error>> = match arguments.command {
        Command::Demo => demo::demo().map_err(Into::into),
        Command::Test { filters, l1: None } => check::test(&filters).map_err(Into::into),
        Command::Test { filters, l1: Some(wanted) } => check::test_l1(&wanted, &filters).map_err(Into::into),
        Command::Image { recipe, print } => build::image_command(&recipe, print).map_err(Into::into),
        Command::Fuzz { target, seconds } => {
            fuzz::fuzz(&steps::Steps::new(), target.as_deref(), seconds).map_err(Into::into)
        }
        Command::Bench { name, json, quick, options } => {
            bench::bench(&name, json.as_deref(), quick, &options).map_err(Into::into)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            patina_daemon::say!("error: {}", steps::with_causes(&*error));
            ExitCode::FAILURE
        }
    }
}
