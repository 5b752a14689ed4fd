//! The life of a daemon's process, from its log to its exit code.

use crate::{chain, log, oom};
use std::{error::Error, process::ExitCode, time::Duration};

/// Starts the log and asks the kernel to end other processes first. `who` is the daemon in a
/// sentence, as in "the scheduler".
pub fn prepare(who: &str, log_json: bool) {
    log::start(log_json);
    if let Err(error) = oom::protect() {
        tracing::warn!(error = %chain(&error), "the kernel's OOM killer may take {who} first: run it as root, or set OOMScoreAdjust");
    }
}

/// How long what is left of a program's tasks may take to end.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// Runs `work` to its end. Tasks that it has started end then, wherever they are. An error goes to
/// standard error with its causes, after `name`.
pub fn run<E: Error>(name: &str, work: impl Future<Output = Result<(), E>>) -> ExitCode {
    let fail = |error: &str| {
        crate::say!("{name}: {error}");
        ExitCode::FAILURE
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("start threads: {error}")),
    };
    let result = runtime.block_on(work);
    // What tasks hold is dropped before the process is gone: a child that only a task knows of is
    // killed then. A thread that waits for a disk that stalls holds the end up no longer than this.
    runtime.shutdown_timeout(SHUTDOWN_PATIENCE);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&chain(&error)),
    }
}
