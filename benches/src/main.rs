//! `patina-bench`: measures Patina with real guests. `cargo xtask bench NAME` builds what it needs and runs it.
//!
//! - [`boot`]: from `vmctl run` to a ready agent, what a `vmm` costs, what a guest's kernel costs.
//! - [`mod@clone`]: what a clone costs its parent, how soon clones are there, and QEMU in Patina's place ([`qemu`]).
//! - [`ticket`]: what a grant costs; without guests.
//! - [`cornering`]: 100 clones killed and 100 others ready.
//! - [`floors`]: what the host's kernel charges for the least of it.
//! - [`daemon`], [`talk`]: a `vmmd` of one's own, and what runs in its guests.
//! - [`report`]: figures, what they must reach, as a table and as JSON; [`host`]: where they were measured.
//! - [`smaps`]: the memory of a process.
//!
//! The table goes to standard error, the JSON to a file or standard output. The exit code is 1 when a figure
//! misses what it must reach.

mod boot;
mod clone;
mod cornering;
mod daemon;
mod floors;
mod host;
mod qemu;
mod report;
mod smaps;
mod talk;
mod ticket;

use clap::{Parser, ValueEnum};
use patina_tests::{
    interrupt,
    setup::{BIN_DIR, Missing, Setup},
};
use std::{env, error::Error, fs, path::PathBuf, process::ExitCode};

/// Measures Patina with real guests.
#[derive(Parser)]
struct Arguments {
    /// What to measure.
    #[arg(value_enum)]
    name: Name,
    /// Write the figures to this file instead of standard output.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How many guests `boot` boots [default: 5, with --quick 3].
    #[arg(long, value_parser = clap::value_parser!(u32).range(3..=1000))]
    boots: Option<u32>,
    /// Measure everything, but less often.
    #[arg(long)]
    quick: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    /// Boot, memory and the guest's kernel.
    Boot,
    /// Clones: what they cost their parent, how soon they run, beside floors and QEMU.
    Clone,
    /// 100 clones killed and 100 others ready.
    Cornering,
    /// Grants of tickets: needs no guests.
    Ticket,
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
    let bin_dir = PathBuf::from(env::var_os(BIN_DIR).ok_or(Missing::Variable(BIN_DIR))?);
    let host = host::facts(&bin_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let quick = arguments.quick;
    let (metrics, notes) = match arguments.name {
        Name::Boot => {
            let boots = arguments.boots.unwrap_or(if quick { 3 } else { 5 });
            (boot::measure(&Setup::from_env()?, boots)?, Vec::new())
        }
        Name::Clone => {
            runtime.block_on(clone::measure(&Setup::from_env()?, &host, clone::Plan::new(quick)))?
        }
        Name::Cornering => {
            let rounds = if quick { 1 } else { 3 };
            runtime.block_on(cornering::measure(&Setup::from_env()?, &host, rounds))?
        }
        Name::Ticket => runtime.block_on(ticket::measure(&bin_dir, ticket::Plan::new(quick)))?,
    };
    let bench = arguments.name.to_possible_value().map(|value| value.get_name().to_owned());
    let report = report::Report::new(bench.unwrap_or_default(), host, metrics, notes);
    eprintln!("{}", report.table());
    let json = serde_json::to_string_pretty(&report)?;
    match &arguments.json {
        Some(path) => fs::write(path, json + "\n")?,
        None => println!("{json}"),
    }
    Ok(report.holds())
}
