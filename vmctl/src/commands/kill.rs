//! `vmctl kill`: ends VMs at once.

use super::{Context, Several, all_vms};
use crate::{
    client::Client,
    error::CtlError,
    output::{self, Format},
    view::has_ended,
};
use patina_proto::v1::{KillRequest, KillVmRequest};
use uuid::Uuid;

/// Arguments of `vmctl kill`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The VMs; one that has ended already stays as it is.
    #[arg(required_unless_present_any = ["ticket", "family"], conflicts_with_all = ["ticket", "family"])]
    names: Vec<String>,
    /// Instead: all VMs of a family on this host, named by any of them or by its UUID.
    #[arg(long, value_name = "NAME|UUID", conflicts_with = "ticket")]
    family: Option<String>,
    /// Instead: all clones of a ticket, wherever they run. Prints the vmids of those that have
    /// ended.
    #[arg(long, value_name = "UUID")]
    ticket: Option<Uuid>,
}

/// Kills each VM, prints the names of those that have ended.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    if let Some(ticket) = arguments.ticket {
        return of_ticket(context, ticket).await;
    }
    let mut several = Several::of("VMs", context.format);
    match arguments.family {
        Some(named) => of_family(context, &named, &mut several).await?,
        None => kill(&context.client().await?, arguments.names, &mut several).await?,
    }
    several.finish()
}

async fn kill(client: &Client, names: Vec<String>, several: &mut Several) -> Result<(), CtlError> {
    let kill = |name| {
        let mut client = client.clone();
        async move { Ok(client.kill_vm(KillVmRequest { name }).await.map(drop)?) }
    };
    several.each(names, kill).await
}

/// Until none is left: VMs may clone themselves meanwhile.
async fn of_family(context: &Context, named: &str, several: &mut Several) -> Result<(), CtlError> {
    let family = context.family(named).await?;
    let mut client = context.client().await?;
    loop {
        let vms = all_vms(&mut client).await?;
        let live = vms.into_iter().filter(|vm| vm.family == family && !has_ended(vm));
        let names: Vec<String> = live.map(|vm| vm.name).collect();
        if names.is_empty() || several.has_failed() {
            return Ok(());
        }
        kill(&client, names, several).await?;
    }
}

async fn of_ticket(context: &Context, ticket: Uuid) -> Result<(), CtlError> {
    let mut scheduler = context.scheduler().await?;
    let request = KillRequest {
        ticket: ticket.to_string(),
        reason: "killed by an operator, with its ticket".to_owned(),
        ..KillRequest::default()
    };
    let ended = scheduler.kill(request).await?.into_inner().ended;
    match context.format {
        Format::Json => output::json(&ended),
        Format::Table => ended.iter().try_for_each(|vmid| output::line(&vmid.to_string())),
    }
}
