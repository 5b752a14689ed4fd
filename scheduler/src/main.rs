//! The scheduler of a Patina cluster.

use clap::Parser;
use patina_daemon::{log, oom};
use scheduler::{options::Options, serve};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    log::start(options.log_json);
    if let Err(error) = oom::protect() {
        tracing::warn!(%error, "the kernel's OOM killer may take the scheduler first: run it as root, or set OOMScoreAdjust");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("start threads: {error}")),
    };
    let result = runtime.block_on(serve::run(options));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(message: &str) -> ExitCode {
    patina_daemon::say!("scheduler: {message}");
    ExitCode::FAILURE
}
