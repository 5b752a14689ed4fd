//! `vmctl`, the operator's command. It calls `vmmd` and its scheduler over gRPC.
//!
//! - [`cli`]: the command line; [`values`]: sizes and ports; [`utc`]: moments.
//! - [`client`]: the connections; [`ssh`]: those by way of ssh; [`error`]: errors and their exit
//!   codes.
//! - [`commands`]: one module per command, and all hosts of the scheduler.
//! - [`view`]: a VM as a table row and as JSON; [`tickets`]: a ticket; [`tree`]: families as trees;
//!   [`output`]: where results go.
//! - [`terminal`]: raw mode and window size.
//!
//! Data goes to standard output, progress and errors to standard error.

mod cli;
mod client;
mod commands;
mod error;
mod output;
mod ssh;
mod terminal;
mod tickets;
mod tree;
mod utc;
mod values;
mod view;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = match cli::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(said) => return said.print(),
    };
    let own_error = arguments.command.own_error_code();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            patina_daemon::say!("error: start the runtime: {error}");
            return ExitCode::from(own_error.unwrap_or(1));
        }
    };
    let result = runtime.block_on(commands::run(arguments));
    // A read of standard input may still wait in its thread: it must not hold us back. Connections
    // end here, and each ssh with them.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => error.report(own_error),
    }
}
