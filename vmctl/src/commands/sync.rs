//! `vmctl sync`: a ticket's barrier, from outside.

use super::Context;
use crate::{
    error::CtlError,
    output::{self, Format},
};
use patina_proto::v1::{GetTicketRequest, SyncRequest, Ticket};
use serde::Serialize;
use uuid::Uuid;

/// A ticket, named with or without `--ticket`.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// The ticket.
    #[arg(value_name = "TICKET")]
    ticket: Option<Uuid>,
    /// The same.
    #[arg(long = "ticket", value_name = "UUID")]
    option: Option<Uuid>,
}

impl Which {
    pub fn uuid(&self) -> String {
        self.ticket.or(self.option).unwrap_or_default().to_string()
    }
}

/// Arguments of `vmctl sync`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    which: Which,
    /// Who comes: a VM of the ticket that cannot come itself [default: the VM that cloned].
    #[arg(long, value_name = "VMID")]
    vmid: Option<u32>,
    /// At most this long, seconds; then the exit code is 124, and the barrier can be used again.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: Option<u64>,
    /// After this meeting, 0 before the first: one that took place since ends the call at once, so
    /// that it can be made again after any failure [default: the next meeting is waited for].
    #[arg(long, value_name = "ROUND")]
    after: Option<u64>,
}

/// A meeting as `-o json` prints it.
#[derive(Debug, Serialize)]
struct Meeting {
    round: u64,
    arrived: u32,
}

/// Waits until all have come.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut scheduler = context.scheduler().await?;
    let ticket = GetTicketRequest { id: arguments.which.uuid(), family: String::new() };
    let ticket = scheduler.get_ticket(ticket).await?.into_inner();
    let met = scheduler.sync(request(ticket, &arguments)?).await?.into_inner();
    let meeting = Meeting { round: met.round, arrived: met.arrived };
    match context.format {
        Format::Json => output::json(&meeting),
        Format::Table => output::line(&format!("round {}: {} VMs met", meeting.round, meeting.arrived)),
    }
}

fn request(ticket: Ticket, arguments: &Arguments) -> Result<SyncRequest, CtlError> {
    // Without a parent it has no VMs either.
    let parent = ticket.parent_vmid.ok_or_else(|| CtlError::Unused(ticket.id.clone()))?;
    Ok(SyncRequest {
        ticket: ticket.id,
        family: ticket.family,
        vmid: arguments.vmid.unwrap_or(parent),
        timeout_ms: arguments.timeout.map_or(0, |seconds| seconds * 1000),
        after_round: arguments.after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    const UUID: &str = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";

    fn parsed(words: &str) -> Result<Arguments, clap::Error> {
        let line = format!("vmctl sync {words}");
        let arguments = crate::cli::Arguments::try_parse_from(line.split_whitespace())?;
        let crate::cli::Command::Sync(arguments) = arguments.command else { panic!("not sync") };
        Ok(arguments)
    }

    #[test]
    fn an_operator_stands_for_the_vm_that_cloned() {
        let ticket =
            Ticket { id: UUID.into(), family: "f".into(), parent_vmid: Some(4), ..Ticket::default() };
        let asked = |words: &str| request(ticket.clone(), &parsed(words).unwrap()).unwrap();
        let (ticket_id, family) = (UUID.into(), "f".into());
        let wanted = SyncRequest { ticket: ticket_id, family, vmid: 4, timeout_ms: 0, after_round: None };
        assert_eq!(asked(UUID), wanted);
        assert_eq!(asked(&format!("{UUID} --after 3")).after_round, Some(3));
        assert_eq!(
            asked(&format!("--ticket {UUID} --vmid 0 --timeout 2")),
            SyncRequest { vmid: 0, timeout_ms: 2000, ..wanted }
        );
        let unused = Ticket { parent_vmid: None, ..ticket };
        let error = request(unused, &parsed(UUID).unwrap()).unwrap_err();
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains(&format!("vmctl clone NAME --ticket {UUID}")), "{error}");
    }

    #[test]
    fn one_ticket_is_named() {
        for wrong in ["", "x", "7", &format!("{UUID} --ticket {UUID}"), &format!("{UUID} --timeout 0")] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
