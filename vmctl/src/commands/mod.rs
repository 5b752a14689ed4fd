//! One module a command; each has its arguments and what it does with them.

pub mod clone;
pub mod completion;
pub mod console;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod hosts;
pub mod inspect;
pub mod join;
pub mod kill;
pub mod logs;
pub mod ls;
pub mod rm;
pub mod run;
pub mod sync;
pub mod ticket;
pub mod top;
pub mod version;
pub mod wait;

use crate::{
    cli::{Arguments, Command},
    client::{self, Client, Scheduler},
    error::CtlError,
    output::Format,
};
use patina_proto::v1::{GetVmRequest, ListVmsRequest, Vm};
use std::process::ExitCode;
use uuid::Uuid;

/// What every command gets: where vmmd is, and how to print.
#[derive(Debug, Clone)]
pub struct Context {
    /// The address of vmmd.
    pub host: String,
    /// The address of the scheduler, where it is not left to vmmd to say.
    pub scheduler: Option<String>,
    /// How to print results.
    pub format: Format,
}

impl Context {
    /// A connection to vmmd.
    pub async fn client(&self) -> Result<Client, CtlError> {
        client::connect(&self.host).await
    }

    /// A connection to the scheduler of that host.
    pub async fn scheduler(&self) -> Result<Scheduler, CtlError> {
        client::scheduler(&self.host, self.scheduler.as_deref()).await
    }

    /// The UUID of a family that is named by itself or by any of its VMs.
    pub async fn family(&self, named: &str) -> Result<String, CtlError> {
        if let Ok(uuid) = named.parse::<Uuid>() {
            return Ok(uuid.to_string());
        }
        let vm = self.client().await?.get_vm(GetVmRequest { name: named.to_owned() }).await?;
        Ok(vm.into_inner().family)
    }

    /// All VMs of the host.
    pub async fn vms(&self) -> Result<Vec<Vm>, CtlError> {
        all_vms(&mut self.client().await?).await
    }
}

/// All VMs of the host, page by page where there are many.
pub async fn all_vms(client: &mut Client) -> Result<Vec<Vm>, CtlError> {
    let mut vms = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = client.list_vms(ListVmsRequest { page_size: 0, page_token }).await?.into_inner();
        vms.extend(page.vms);
        if page.next_page_token.is_empty() {
            return Ok(vms);
        }
        page_token = page.next_page_token;
    }
}

/// Runs the command: the exit code of the process.
pub async fn run(arguments: Arguments) -> Result<ExitCode, CtlError> {
    let context = Context { host: arguments.host, scheduler: arguments.scheduler, format: arguments.output };
    let done = match arguments.command {
        Command::Exec(arguments) => return exec::run(&context, arguments).await,
        Command::Run(arguments) => run::run(&context, arguments).await,
        Command::Clone(arguments) => clone::run(&context, arguments).await,
        Command::Ls => ls::run(&context).await,
        Command::Inspect(arguments) => inspect::run(&context, arguments).await,
        Command::Console(arguments) => console::run(&context, arguments).await,
        Command::Logs(arguments) => logs::run(&context, arguments).await,
        Command::Kill(arguments) => kill::run(&context, arguments).await,
        Command::Ticket(command) => ticket::run(&context, command).await,
        Command::Hosts => hosts::run(&context).await,
        Command::Sync(arguments) => sync::run(&context, arguments).await,
        Command::Join(arguments) => join::run(&context, arguments).await,
        Command::Events(arguments) => events::run(&context, arguments).await,
        Command::Top(arguments) => top::run(&context, arguments).await,
        Command::Rm(arguments) => rm::run(&context, arguments).await,
        Command::Wait(arguments) => wait::run(&context, arguments).await,
        Command::Doctor => doctor::run(&context).await,
        Command::Completion { shell } => completion::run(shell),
        Command::Version => version::run(&context).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// What to do with each of several VMs or tickets: goes on after a failure, reports each, and ends with the first's code.
#[derive(Debug)]
pub struct Several {
    what: &'static str,
    all: usize,
    failed: usize,
    code: u8,
}

impl Default for Several {
    fn default() -> Self {
        Self::of("VMs")
    }
}

impl Several {
    /// For these, in words.
    pub fn of(what: &'static str) -> Self {
        Self { what, all: 0, failed: 0, code: 0 }
    }

    /// Notes what came of one of them: prints its name, or the error.
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
            Self { what, all, failed, code } => Err(CtlError::Some { what, failed, all, code }),
        }
    }
}
