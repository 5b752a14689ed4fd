//! `patina-bench`: measures Patina with real guests. `cargo xtask bench NAME` builds what it needs and runs it.
//!
//! - [`boot`]: from `vmctl run` to a ready agent, what a `vmm` costs, what a guest's kernel costs.
//! - [`report`]: figures, what they must reach, as a table and as JSON; [`host`]: where they were measured.
//! - [`smaps`]: the memory of a process beyond its guest's RAM.
//!
//! The table goes to standard error, the JSON to a file or standard output. The exit code is 1 when a figure
//! misses what it must reach.

mod boot;
mod host;
mod report;
mod smaps;

use clap::{Parser, ValueEnum};
use patina_tests::{interrupt, setup::Setup};
use std::{error::Error, fs, path::PathBuf, process::ExitCode};

/// Measures Patina with real guests.
#[derive(Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum)]
    name: Name,
    /// Write the figures to this file instead of standard output.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How many guests are booted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=1000))]
    boots: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    /// Boot, memory and the guest's kernel.
    Boot,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every figure reaches what it must.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    interrupt::watch()?;
    let setup = Setup::from_env()?;
    let metrics = match arguments.name {
        Name::Boot => boot::measure(&setup, arguments.boots)?,
    };
    let bench = arguments.name.to_possible_value().map(|value| value.get_name().to_owned());
    let report = report::Report::new(bench.unwrap_or_default(), host::facts(&setup)?, metrics);
    eprintln!("{}", report.table());
    let json = serde_json::to_string_pretty(&report)?;
    match &arguments.json {
        Some(path) => fs::write(path, json + "\n")?,
        None => println!("{json}"),
    }
    Ok(report.holds())
}
