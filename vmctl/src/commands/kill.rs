//! `vmctl kill`: ends VMs at once.

use super::{Context, Several};
use crate::{
    error::CtlError,
    output::{self, Format},
};
use patina_proto::v1::{KillRequest, KillVmRequest};
use uuid::Uuid;

/// Arguments of `vmctl kill`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The VMs; one that has ended already stays as it is.
    #[arg(required_unless_present = "ticket", conflicts_with = "ticket")]
    names: Vec<String>,
    /// Instead: all clones of a ticket, wherever they run. Prints the vmids of those that have ended.
    #[arg(long, value_name = "UUID")]
    ticket: Option<Uuid>,
}

/// Kills each VM, prints the names of those that have ended.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    if let Some(ticket) = arguments.ticket {
        return of_ticket(context, ticket).await;
    }
    let mut client = context.client().await?;
    let mut several = Several::default();
    for name in arguments.names {
        let result = client.kill_vm(KillVmRequest { name: name.clone() }).await;
        several.note(&name, result.map(|_| ()).map_err(CtlError::from))?;
    }
    several.finish()
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
