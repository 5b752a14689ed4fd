//! `vmctl ticket`: clones are reserved before they are made.

use super::{Context, Several};
use crate::{
    error::CtlError,
    output::{self, Format},
    tickets::{HEADER, TicketView},
    values,
};
use patina_proto::v1::{
    GetTicketRequest, ListTicketsRequest, PlacementPolicy, ReleaseTicketRequest, RequestTicketRequest,
    Ticket, Vm,
};
use std::collections::HashMap;
use tonic::Code;
use uuid::Uuid;

/// Tickets in one answer: each may have hundreds of results.
const PAGE: u32 = 200;

/// What to do with tickets.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Reserve clones for a family; print the ticket's UUID.
    Request(RequestArguments),
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

/// Arguments of `vmctl ticket request`.
#[derive(Debug, clap::Args)]
pub struct RequestArguments {
    /// For whom: any of the family's VMs' names, or its UUID.
    #[arg(long, value_name = "NAME|UUID")]
    family: String,
    /// Most CPUs in all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_cpus: u32,
    /// Fewest clones: all of them, or none.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    min_vms: u32,
    /// CPUs that each clone must have.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    min_cpus_per_vm: u32,
    /// Wait for room at most this long, seconds; 0: not at all.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    timeout: u64,
    /// How long it may stay unused, seconds [default: as the scheduler is set up].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    ttl: Option<u64>,
    /// How to choose hosts [default: as the scheduler is set up].
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// The same id gives the same ticket: so a request can be made again, 1 to 64 characters.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// CPUs of each clone [default: as the family's VMs have].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: Option<u32>,
    /// RAM of each clone: MiB, or with a unit 512M or 2G [default: as the family's VMs have].
    #[arg(short, long, value_parser = values::memory_mib, value_name = "SIZE")]
    memory: Option<u32>,
}

/// How hosts are chosen.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Policy {
    /// As few hosts as possible, the fullest first.
    Pack,
    /// The emptiest first, evenly.
    Spread,
}

/// Does it.
pub async fn run(context: &Context, command: Command) -> Result<(), CtlError> {
    match command {
        Command::Request(arguments) => request(context, arguments).await,
        Command::Ls { family } => list(context, family).await,
        Command::Inspect { ticket } => inspect(context, ticket).await,
        Command::Release { tickets } => release(context, tickets).await,
    }
}

async fn request(context: &Context, arguments: RequestArguments) -> Result<(), CtlError> {
    let (family, vcpus, memory_mib) = size(context, &arguments).await?;
    let request = message(arguments, family, vcpus, memory_mib);
    let granted = context.scheduler().await?.request_ticket(request).await?.into_inner();
    match context.format {
        Format::Json => output::json(&TicketView::from(granted)),
        Format::Table => output::line(&granted.id),
    }
}

/// The family's UUID, and how large its VMs are.
async fn size(context: &Context, arguments: &RequestArguments) -> Result<(String, u32, u32), CtlError> {
    let family = context.family(&arguments.family).await?;
    if let (Some(vcpus), Some(memory_mib)) = (arguments.vcpus, arguments.memory) {
        return Ok((family, vcpus, memory_mib));
    }
    let vms = match context.vms().await {
        // A scheduler of its own has no VMs.
        Err(CtlError::Call(status)) if status.code() == Code::Unimplemented => Vec::new(),
        vms => vms?,
    };
    let vm = member(&vms, &family).ok_or_else(|| CtlError::Unsized(family.clone()))?;
    let (vcpus, memory_mib) =
        (arguments.vcpus.unwrap_or(vm.vcpus), arguments.memory.unwrap_or(vm.memory_mib));
    Ok((family, vcpus, memory_mib))
}

/// The master of a family, or, where that is on another host, one of its clones.
fn member<'a>(vms: &'a [Vm], family: &str) -> Option<&'a Vm> {
    vms.iter().filter(|vm| vm.family == family).min_by_key(|vm| vm.vmid)
}

fn message(arguments: RequestArguments, family: String, vcpus: u32, memory_mib: u32) -> RequestTicketRequest {
    let policy = match arguments.policy {
        None => PlacementPolicy::Unspecified,
        Some(Policy::Pack) => PlacementPolicy::Pack,
        Some(Policy::Spread) => PlacementPolicy::Spread,
    };
    RequestTicketRequest {
        family,
        request_id: arguments.request_id.unwrap_or_default(),
        max_cpus: arguments.max_cpus,
        min_vms: arguments.min_vms,
        min_cpus_per_vm: arguments.min_cpus_per_vm,
        vcpus,
        memory_mib,
        timeout_ms: arguments.timeout * 1000,
        policy: policy.into(),
        ttl_ms: arguments.ttl.map_or(0, |seconds| seconds * 1000),
        ..RequestTicketRequest::default()
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
        let request = ListTicketsRequest { family: family.clone(), page_size: PAGE, page_token };
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
    let mut scheduler = context.scheduler().await?;
    let mut several = Several::of("tickets");
    for ticket in tickets {
        let request = ReleaseTicketRequest { id: ticket.to_string(), family: String::new() };
        let result = scheduler.release_ticket(request).await;
        several.note(&ticket.to_string(), result.map(|_| ()).map_err(CtlError::from))?;
    }
    several.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn parsed(words: &str) -> Result<RequestArguments, clap::Error> {
        let line = format!("vmctl ticket request {words}");
        let arguments = crate::cli::Arguments::try_parse_from(line.split_whitespace())?;
        let crate::cli::Command::Ticket(Command::Request(arguments)) = arguments.command else {
            panic!("not a request")
        };
        Ok(arguments)
    }

    #[test]
    fn a_request_has_what_was_said_and_the_familys_size() {
        let arguments = parsed(
            "--family web --max-cpus 8 --min-vms 2 --timeout 30 --ttl 60 --policy spread --request-id job-7 -m 1G",
        )
        .unwrap();
        assert_eq!(arguments.memory, Some(1024));
        let request = message(arguments, "f".into(), 2, 1024);
        let wanted = RequestTicketRequest {
            family: "f".into(),
            request_id: "job-7".into(),
            max_cpus: 8,
            min_vms: 2,
            min_cpus_per_vm: 1,
            vcpus: 2,
            memory_mib: 1024,
            timeout_ms: 30_000,
            policy: PlacementPolicy::Spread.into(),
            ttl_ms: 60_000,
            ..RequestTicketRequest::default()
        };
        assert_eq!(request, wanted);
        let plain = message(parsed("--family web --max-cpus 8 --min-vms 2").unwrap(), "f".into(), 1, 256);
        assert_eq!((plain.timeout_ms, plain.ttl_ms, plain.policy), (0, 0, 0));
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for wrong in [
            "--max-cpus 8 --min-vms 2",
            "--family web --min-vms 2",
            "--family web --max-cpus 0 --min-vms 2",
            "--family web --max-cpus 8 --min-vms 0",
            "--family web --max-cpus 8 --min-vms 257",
            "--family web --max-cpus -1 --min-vms 1",
            "--family web --max-cpus 8 --min-vms 2 --timeout 86401",
            "--family web --max-cpus 8 --min-vms 2 --memory lots",
            "--family web --max-cpus 8 --min-vms 2 --policy best",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_family_is_known_by_its_master_or_what_is_here() {
        let vm = |name: &str, family: &str, vmid| Vm {
            name: name.into(),
            family: family.into(),
            vmid,
            ..Vm::default()
        };
        let vms = [vm("b.2", "2", 2), vm("a.1", "1", 1), vm("a", "1", 0), vm("b.1", "2", 1)];
        assert_eq!(member(&vms, "1").unwrap().name, "a");
        assert_eq!(member(&vms, "2").unwrap().name, "b.1");
        assert!(member(&vms, "3").is_none());
        assert_eq!(names(&vms), HashMap::from([("1".to_owned(), "a".to_owned())]));
    }
}
