//! The scheduler of a Patina cluster.

use clap::Parser;
use patina_daemon::process;
use scheduler::{options::Options, serve};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    process::prepare("the scheduler", options.log_json);
    process::run("scheduler", serve::run(options))
}
