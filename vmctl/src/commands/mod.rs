//! One module per command, with its arguments and its function.

pub mod clone;
pub mod cluster;
pub mod completion;
pub mod console;
pub mod dial_stdio;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod host;
pub mod hosts;
pub mod image;
pub mod inspect;
pub mod join;
pub mod kill;
pub mod logs;
pub mod ls;
pub mod pki;
pub mod publish;
pub mod rm;
pub mod run;
pub mod snapshot;
pub mod sync;
pub mod ticket;
pub mod top;
pub mod version;
pub mod wait;

use crate::{
    cli::{Arguments, Command},
    client::{self, Client, Scheduler},
    error::CtlError,
    output::{self, Format},
};
use patina_daemon::tls::Security;
use patina_proto::v1::{GetHostRequest, GetVmRequest, Host, ListVmsRequest, Vm, vmmd_client::VmmdClient};
use serde::Serialize;
use std::{path::PathBuf, process::ExitCode};
use tokio::{sync::OnceCell, task::JoinSet};
use tonic::{Code, transport::Channel};
use uuid::Uuid;

/// What every command gets: where vmmd is, and how to print.
#[derive(Debug, Clone)]
pub struct Context {
    /// The address of vmmd.
    pub host: String,
    /// The address of the scheduler, where it is not left to vmmd to say.
    pub scheduler: Option<String>,
    /// The folder of the operator's certificate.
    pub tls_dir: Option<PathBuf>,
    /// Whether TCP may be without TLS.
    pub insecure: bool,
    /// How to print results.
    pub format: Format,
    /// The connection to that vmmd, once there is one.
    own: OnceCell<Channel>,
}

impl Context {
    /// A connection to vmmd.
    pub async fn client(&self) -> Result<Client, CtlError> {
        Ok(VmmdClient::new(self.channel().await?))
    }

    async fn channel(&self) -> Result<Channel, CtlError> {
        let connect = async { client::connect(&self.host, &self.security()?).await };
        self.own.get_or_try_init(|| connect).await.cloned()
    }

    /// A connection to the scheduler of that host.
    pub async fn scheduler(&self) -> Result<Scheduler, CtlError> {
        let security = self.security()?;
        match &self.scheduler {
            Some(address) => client::scheduler(address, &security).await,
            None => client::scheduler_of(&self.host, self.channel().await?, &security).await,
        }
    }

    /// How TCP is protected.
    pub fn security(&self) -> Result<Security, CtlError> {
        Security::new(self.tls_dir.as_deref(), self.insecure).map_err(CtlError::Certificates)
    }

    /// The UUID of a family that is named by itself or by any of its VMs.
    pub async fn family(&self, named: &str) -> Result<String, CtlError> {
        if let Ok(uuid) = named.parse::<Uuid>() {
            return Ok(uuid.to_string());
        }
        let vm = self.client().await?.get_vm(GetVmRequest { name: named.to_owned() }).await?;
        Ok(vm.into_inner().family)
    }

    /// The number by which the scheduler knows the host; None: only a scheduler answers there.
    pub async fn host_id(&self) -> Result<Option<String>, CtlError> {
        Ok(self.own_host().await?.map(|host| host.id))
    }

    /// The host that the command line names; None: only a scheduler answers there.
    pub async fn own_host(&self) -> Result<Option<Host>, CtlError> {
        match self.client().await?.get_host(GetHostRequest {}).await {
            Ok(host) => Ok(Some(host.into_inner())),
            Err(status) if status.code() == Code::Unimplemented => Ok(None),
            Err(status) => Err(status.into()),
        }
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
    let context = Context {
        host: arguments.host,
        scheduler: arguments.scheduler,
        tls_dir: arguments.tls_dir,
        insecure: arguments.insecure,
        format: arguments.output,
        own: OnceCell::new(),
    };
    let done = match arguments.command {
        Command::Exec(arguments) => return exec::run(&context, arguments).await,
        Command::Run(arguments) => run::run(&context, arguments).await,
        Command::Clone(arguments) => clone::run(&context, arguments).await,
        Command::Ls(arguments) => ls::run(&context, arguments).await,
        Command::Image(command) => image::run(&context, command).await,
        Command::Inspect(arguments) => inspect::run(&context, arguments).await,
        Command::Console(arguments) => console::run(&context, arguments).await,
        Command::Logs(arguments) => logs::run(&context, arguments).await,
        Command::Kill(arguments) => kill::run(&context, arguments).await,
        Command::Publish(arguments) => publish::publish(&context, arguments).await,
        Command::Unpublish(arguments) => publish::unpublish(&context, arguments).await,
        Command::Ticket(command) => ticket::run(&context, command).await,
        Command::Hosts => hosts::run(&context).await,
        Command::Host(command) => host::run(&context, command).await,
        Command::Sync(arguments) => sync::run(&context, arguments).await,
        Command::Join(arguments) => join::run(&context, arguments).await,
        Command::Snapshot(command) => snapshot::run(&context, command).await,
        Command::Events(arguments) => events::run(&context, arguments).await,
        Command::Top(arguments) => top::run(&context, arguments).await,
        Command::Rm(arguments) => rm::run(&context, arguments).await,
        Command::Wait(arguments) => wait::run(&context, arguments).await,
        Command::Pki(command) => pki::run(context.format, command),
        Command::Doctor => doctor::run(&context).await,
        Command::Completion { shell } => completion::run(shell),
        Command::DialStdio => dial_stdio::run(&context).await,
        Command::Version => version::run(&context).await,
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// What is done with several VMs or tickets: goes on after a failure, reports each, and ends with
/// the first failure's code.
#[derive(Debug)]
pub struct Several {
    what: &'static str,
    format: Format,
    done: Vec<DoneView>,
    // The first failure's.
    code: Option<u8>,
}

/// What came of one of them, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct DoneView {
    name: String,
    error: Option<String>,
}

impl Several {
    /// For these, in words.
    pub fn of(what: &'static str, format: Format) -> Self {
        Self { what, format, done: Vec::new(), code: None }
    }

    /// Whether something has failed so far.
    pub fn has_failed(&self) -> bool {
        self.code.is_some()
    }

    /// Does `call` for all of these at the same time, and reports in their order.
    pub async fn each<F>(&mut self, names: Vec<String>, call: impl Fn(String) -> F) -> Result<(), CtlError>
    where
        F: Future<Output = Result<(), CtlError>> + Send + 'static,
    {
        let mut calls = JoinSet::new();
        for (index, name) in names.into_iter().enumerate() {
            let call = call(name.clone());
            calls.spawn(async move { (index, name, call.await) });
        }
        let mut done = calls.join_all().await;
        done.sort_by_key(|(index, ..)| *index);
        done.into_iter().try_for_each(|(_, name, result)| self.note(name, result))
    }

    /// Does `call` for one of them, and reports.
    pub async fn each_once<F>(&mut self, name: String, call: impl FnOnce(String) -> F) -> Result<(), CtlError>
    where
        F: Future<Output = Result<(), CtlError>>,
    {
        let result = call(name.clone()).await;
        self.note(name, result)
    }

    /// Notes what came of one of them: prints its name, or the error.
    fn note(&mut self, name: String, result: Result<(), CtlError>) -> Result<(), CtlError> {
        let error = result.err();
        if let Some(error) = &error {
            self.code.get_or_insert(error.exit_code());
            error.explain();
        } else if self.format == Format::Table {
            output::line(&name)?;
        }
        self.done.push(DoneView { name, error: error.map(|error| error.to_string()) });
        Ok(())
    }

    /// What came of all of them.
    pub fn finish(self) -> Result<(), CtlError> {
        if self.format == Format::Json {
            output::json(&self.done)?;
        }
        let Some(code) = self.code else { return Ok(()) };
        let failed = self.done.iter().filter(|done| done.error.is_some()).count();
        Err(CtlError::Some { what: self.what, failed, all: self.done.len(), code })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[tokio::test]
    async fn several_are_reported_in_their_order_and_the_first_failure_is_the_exit_code() {
        let mut several = Several::of("VMs", Format::Json);
        let names = ["c", "a", "b"].map(str::to_owned).to_vec();
        let call = |name: String| async move {
            match name.as_str() {
                "a" => Err(Status::not_found("no a").into()),
                "b" => Err(Status::unavailable("no b").into()),
                _ => Ok(()),
            }
        };
        several.each(names, call).await.unwrap();
        assert!(several.has_failed());
        let json = serde_json::to_value(&several.done).unwrap();
        let wanted = serde_json::json!([
            {"name": "c", "error": null}, {"name": "a", "error": "no a"}, {"name": "b", "error": "no b"}
        ]);
        assert_eq!(json, wanted);
        let error = several.finish().unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("2 of 3 VMs failed", 3));
    }
}
