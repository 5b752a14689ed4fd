//! The daemon of a Patina host.

use clap::Parser;
use patina_daemon::{log, oom};
use std::process::ExitCode;
use vmmd::{daemon, options::Options, process::urgency::Urgency};

fn main() -> ExitCode {
    let options = Options::parse();
    log::start(options.log_json);
    if let Err(error) = oom::protect() {
        tracing::warn!(%error, "the kernel's OOM killer may take vmmd first: run it as root, or set OOMScoreAdjust");
    }
    if let Err(error) = Urgency::Urgent.take() {
        tracing::warn!(%error, "clones will be slower where guests are busy: raise vmmd's priority");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("start threads: {error}")),
    };
    let result = runtime.block_on(daemon::run(options));
    // Supervisors and streams end here, wherever they are: their VMs run on.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    patina_daemon::say!("vmmd: {message}");
    ExitCode::FAILURE
}
