//! The daemon of a Patina host.

use clap::Parser;
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;
use vmmd::{daemon, options::Options, process::urgency::Urgency};

fn main() -> ExitCode {
    let options = Options::parse();
    start_log(options.log_json);
    if let Err(error) = scheduler::oom::protect() {
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

fn start_log(json: bool) {
    let filter = EnvFilter::try_from_env("PATINA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    if json {
        log.json().init();
    } else {
        log.init();
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("vmmd: {message}");
    ExitCode::FAILURE
}
