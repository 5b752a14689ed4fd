//! `vmctl kill`: ends VMs at once.

use super::{
    Context, Several, all_vms,
    cluster::{Care, Cluster, Place, Where},
};
use crate::{
    client::Client,
    error::CtlError,
    output::{self, Format},
    view::has_ended,
};
use patina_proto::v1::{KillRequest, KillVmRequest};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Arguments of `vmctl kill`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The VMs; one that has ended already stays as it is.
    #[arg(required_unless_present_any = ["ticket", "family"], conflicts_with_all = ["ticket", "family"])]
    names: Vec<String>,
    /// Look for the VMs, or for those of the family, on all hosts of the scheduler.
    #[arg(long, conflicts_with = "ticket")]
    all_hosts: bool,
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
    let place = context.place(Where { all_hosts: arguments.all_hosts }).await?;
    let all = match (arguments.family, &place) {
        (Some(named), Place::One(client)) => {
            of_family(context, client, &named, &mut several).await?;
            Ok(())
        }
        (Some(named), Place::All(cluster)) => of_family_anywhere(cluster, &named, &mut several).await,
        (None, _) => {
            let kill = |name: String| {
                let place = place.clone();
                async move { kill(place.client(&name, Care::Change).await?, name).await }
            };
            several.each(arguments.names, kill).await?;
            Ok(())
        }
    };
    several.finish()?;
    all
}

async fn kill(mut client: Client, name: String) -> Result<(), CtlError> {
    Ok(client.kill_vm(KillVmRequest { name }).await.map(drop)?)
}

/// Until none is left: VMs may clone themselves meanwhile.
async fn of_family(
    context: &Context,
    client: &Client,
    named: &str,
    several: &mut Several,
) -> Result<(), CtlError> {
    let family = context.family(named).await?;
    loop {
        let vms = all_vms(&mut client.clone()).await?;
        let live = vms.into_iter().filter(|vm| vm.family == family && !has_ended(vm));
        let names: Vec<String> = live.map(|vm| vm.name).collect();
        if names.is_empty() || several.has_failed() {
            return Ok(());
        }
        several.each(names, |name| kill(client.clone(), name)).await?;
    }
}

/// As [`of_family`]; an error if some hosts did not answer, which may have more VMs of the family.
async fn of_family_anywhere(cluster: &Cluster, named: &str, several: &mut Several) -> Result<(), CtlError> {
    let family = cluster.family(named, Care::Change).await?;
    loop {
        let asked = cluster.vms().await;
        // Names are unique in a family, over all hosts.
        let places = asked.answers.iter().flat_map(|(member, vms)| {
            let live = vms.iter().filter(|vm| vm.family == family && !has_ended(vm));
            live.map(|vm| (vm.name.clone(), member.client.clone()))
        });
        let places: BTreeMap<String, Client> = places.collect();
        if places.is_empty() || several.has_failed() {
            return cluster.complete(&asked);
        }
        let kill = |name: String| {
            let client = places.get(&name).cloned();
            async move {
                match client {
                    Some(client) => kill(client, name).await,
                    None => Ok(()),
                }
            }
        };
        several.each(places.keys().cloned().collect(), kill).await?;
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
