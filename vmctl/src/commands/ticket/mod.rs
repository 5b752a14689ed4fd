//! `vmctl ticket`: reserves clones before they are created.

mod request;
mod watch;

use super::{Context, Several};
use crate::{
    error::CtlError,
    output::{self, Format},
    tickets::{HEADER, TicketView},
};
use patina_proto::v1::{GetTicketRequest, ListTicketsRequest, ReleaseTicketRequest, Ticket, Vm};
use std::collections::HashMap;
use uuid::Uuid;

/// Tickets in one answer: each may have hundreds of results.
const PAGE: u32 = 200;

/// What to do with tickets.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Reserve clones for a family; print the ticket's UUID.
    Request(request::Arguments),
    /// Print what becomes of tickets, as it happens: granted, used, and how they are over.
    Watch(watch::Arguments),
    /// List tickets, in the order in which they were granted.
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of a family: any of its VMs' names, or its UUID.
        #[arg(long, value_name = "NAME|UUID")]
        family: Option<String>,
    },
    /// Show all about a ticket, and how its clones have ended.
    Inspect {
        /// The ticket.
        ticket: Uuid,
    },
    /// Give tickets back that were not used.
    Release {
        /// The tickets.
        #[arg(required = true)]
        tickets: Vec<Uuid>,
    },
}

/// Does it.
pub async fn run(context: &Context, command: Command) -> Result<(), CtlError> {
    match command {
        Command::Request(arguments) => request::run(context, arguments).await,
        Command::Watch(arguments) => watch::run(context, arguments).await,
        Command::Ls { family } => list(context, family).await,
        Command::Inspect { ticket } => inspect(context, ticket).await,
        Command::Release { tickets } => release(context, tickets).await,
    }
}

async fn list(context: &Context, family: Option<String>) -> Result<(), CtlError> {
    let family = match family {
        Some(named) => context.family(&named).await?,
        None => String::new(),
    };
    let mut scheduler = context.scheduler().await?;
    let mut tickets: Vec<Ticket> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListTicketsRequest {
            family: family.clone(),
            page_size: PAGE,
            page_token,
            ..ListTicketsRequest::default()
        };
        let page = scheduler.list_tickets(request).await?.into_inner();
        tickets.extend(page.tickets);
        if page.next_page_token.is_empty() {
            break;
        }
        page_token = page.next_page_token;
    }
    let views: Vec<TicketView> = tickets.into_iter().map(TicketView::from).collect();
    if context.format == Format::Json {
        return output::json(&views);
    }
    // Families of other hosts, and all where only a scheduler answers, have no name here.
    let names = context.vms().await.map(|vms| names(&vms)).unwrap_or_default();
    let name = |view: &TicketView| names.get(&view.family).unwrap_or(&view.family).clone();
    output::table(&HEADER, views.iter().map(|view| view.row(&name(view))))
}

/// Names of families: their masters'.
fn names(vms: &[Vm]) -> HashMap<String, String> {
    let masters = vms.iter().filter(|vm| vm.vmid == 0);
    masters.map(|vm| (vm.family.clone(), vm.name.clone())).collect()
}

async fn inspect(context: &Context, ticket: Uuid) -> Result<(), CtlError> {
    let request = GetTicketRequest { id: ticket.to_string(), family: String::new() };
    let view = TicketView::from(context.scheduler().await?.get_ticket(request).await?.into_inner());
    match context.format {
        Format::Json => output::json(&view),
        Format::Table => {
            output::table(&[], view.details().into_iter().map(|(name, value)| vec![name.to_owned(), value]))
        }
    }
}

/// Prints each ticket that is given back.
async fn release(context: &Context, tickets: Vec<Uuid>) -> Result<(), CtlError> {
    let scheduler = context.scheduler().await?;
    let mut several = Several::of("tickets", context.format);
    let release = |id| {
        let mut scheduler = scheduler.clone();
        let request = ReleaseTicketRequest { id, family: String::new() };
        async move { Ok(scheduler.release_ticket(request).await.map(drop)?) }
    };
    several.each(tickets.iter().map(Uuid::to_string).collect(), release).await?;
    several.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_their_masters_names() {
        let vm = |name: &str, vmid| Vm { name: name.into(), family: "1".into(), vmid, ..Vm::default() };
        let vms = [vm("a.1", 1), vm("a", 0)];
        assert_eq!(names(&vms), HashMap::from([("1".to_owned(), "a".to_owned())]));
    }
}
