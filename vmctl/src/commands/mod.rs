//! One module a command; each has its arguments and what it does with them.

pub mod clone;
pub mod completion;
pub mod console;
pub mod doctor;
pub mod exec;
pub mod inspect;
pub mod kill;
pub mod logs;
pub mod ls;
pub mod rm;
pub mod run;
pub mod version;
pub mod wait;

use crate::{
    cli::{Arguments, Command},
    client::{self, Client},
    error::CtlError,
    output::Format,
};
use std::process::ExitCode;

/// What every command gets: where vmmd is, and how to print.
#[derive(Debug, Clone)]
pub struct Context {
    /// The address of vmmd.
    pub host: String,
    /// How to print results.
    pub format: Format,
}

impl Context {
    /// A connection to vmmd.
    pub async fn client(&self) -> Result<Client, CtlError> {
        client::connect(&self.host).await
    }
}

/// Runs the command: the exit code of the process.
pub async fn run(arguments: Arguments) -> Result<ExitCode, CtlError> {
    let context = Context { host: arguments.host, format: arguments.output };
    let done = match arguments.command {
        Command::Exec(arguments) => return exec::run(&context, arguments).await,
        Command::Run(arguments) => run::run(&context, arguments).await,
        Command::Clone(arguments) => clone::run(&context, arguments).await,
        Command::Ls => ls::run(&context).await,
        Command::Inspect(arguments) => inspect::run(&context, arguments).await,
        Command::Console(arguments) => console::run(&context, arguments).await,
        Command::Logs(arguments) => logs::run(&context, arguments).await,
        Command::Kill(arguments) => kill::run(&context, arguments).await,
        Command::Rm(arguments) => rm::run(&context, arguments).await,
        Command::Wait(arguments) => wait::run(&context, arguments).await,
        Command::Doctor => doctor::run(&context).await,
        Command::Completion { shell } => completion::run(shell),
        Command::Version => version::run(&context).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// What to do with each of several VMs: goes on after a failure, reports each, and ends with the first's code.
#[derive(Debug, Default)]
pub struct Several {
    all: usize,
    failed: usize,
    code: u8,
}

impl Several {
    /// Notes what came of one VM: prints its name, or the error.
    pub fn note(&mut self, name: &str, result: Result<(), CtlError>) -> Result<(), CtlError> {
        self.all += 1;
        match result {
            Ok(()) => crate::output::line(name),
            Err(error) => {
                self.failed += 1;
                if self.failed == 1 {
                    self.code = error.exit_code();
                }
                error.explain();
                Ok(())
            }
        }
    }

    /// What came of all of them.
    pub fn finish(self) -> Result<(), CtlError> {
        match self {
            Self { failed: 0, .. } => Ok(()),
            Self { all, failed, code } => Err(CtlError::Some { failed, all, code }),
        }
    }
}
