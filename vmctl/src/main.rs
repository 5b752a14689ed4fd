//! `vmctl`, the operator's command: says to `vmmd`, and to its scheduler, over gRPC what the command line says.
//!
//! - [`cli`]: the command line; [`values`]: sizes and ports as people write them; [`utc`]: moments.
//! - [`client`]: the connections; [`error`]: what can go wrong, in words and as an exit code.
//! - [`commands`]: one module a command.
//! - [`view`]: a VM as a table row and as JSON; [`tickets`]: a ticket; [`tree`]: families as trees; [`output`]: where results go.
//! - [`terminal`]: raw mode and window size.
//!
//! Data goes to standard output, progress and errors to standard error.

mod cli;
mod client;
mod commands;
mod error;
mod output;
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
    // A read of standard input may still wait in its thread: it must not hold us back.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => error.report(own_error),
    }
}
