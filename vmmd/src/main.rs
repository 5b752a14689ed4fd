//! The daemon of a Patina host.

use clap::Parser;
use patina_daemon::{chain, process};
use std::process::ExitCode;
use vmmd::{daemon, options::Options, process::urgency::Urgency};

fn main() -> ExitCode {
    let options = Options::parse();
    process::prepare("vmmd", options.log_json);
    if let Err(error) = Urgency::Urgent.take() {
        tracing::warn!(error = %chain(&error), "clones will be slower where guests are busy: raise vmmd's priority");
    }
    // Supervisors and streams end with it, wherever they are: their VMs run on.
    process::run("vmmd", daemon::run(options))
}
