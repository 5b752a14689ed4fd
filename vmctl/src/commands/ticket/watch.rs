//! `vmctl ticket watch`: prints the changes of tickets.

use crate::{
    commands::Context,
    error::CtlError,
    output::{self, Format},
    tickets::TicketView,
    utc,
    view::unix_ms,
};
use patina_proto::v1::{Ticket, TicketEvent, WatchTicketsRequest};
use serde::Serialize;
use std::collections::HashMap;
use tokio_stream::StreamExt as _;

/// Arguments of `vmctl ticket watch`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Begin with all tickets as they are now.
    #[arg(long)]
    all: bool,
    /// Only those of a family: any of its VMs' names, or its UUID.
    #[arg(long, value_name = "NAME|UUID")]
    family: Option<String>,
}

/// What has become of a ticket, as `-o json` prints it: one object a line.
#[derive(Debug, Serialize)]
struct ChangeView {
    unix_ms: u64,
    initial: bool,
    forgotten: bool,
    ticket: TicketView,
}

impl ChangeView {
    fn new(ticket: Ticket, initial: bool, forgotten: bool, unix_ms: u64) -> Self {
        Self { unix_ms, initial, forgotten, ticket: ticket.into() }
    }

    /// Time, state, which, whose, and words.
    fn line(&self) -> String {
        let state = if self.forgotten { "forgotten" } else { &self.ticket.state };
        let TicketView { id, family, .. } = &self.ticket;
        let line = format!(
            "{} {state:<9} {id} of {family}: {}",
            utc::text(self.unix_ms),
            self.ticket.summary(self.unix_ms)
        );
        line.trim_end().to_owned()
    }
}

/// What has been said of each ticket. A watcher that lagged behind hears of all tickets again, as
/// at the beginning: of these it wants what it missed.
#[derive(Debug, Default)]
struct Said {
    tickets: HashMap<String, (i32, u32, usize)>,
    // The first list of all tickets is over.
    has_begun: bool,
}

impl Said {
    /// Whether this is to be said.
    fn is_news(&mut self, ticket: &Ticket, initial: bool, forgotten: bool, all: bool) -> bool {
        self.has_begun |= !initial;
        if forgotten {
            return self.tickets.remove(&ticket.id).is_some();
        }
        let now = (ticket.state, ticket.live, ticket.results.len());
        let changed = self.tickets.insert(ticket.id.clone(), now) != Some(now);
        changed && (all || self.has_begun)
    }
}

/// Prints each change as it happens, until interrupted.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let family = match &arguments.family {
        Some(named) => context.family(named).await?,
        None => String::new(),
    };
    let mut scheduler = context.scheduler().await?;
    let mut changes = scheduler.watch_tickets(WatchTicketsRequest { family }).await?.into_inner();
    let mut said = Said::default();
    while let Some(change) = changes.next().await {
        let TicketEvent { ticket, initial, forgotten } = change?;
        let is_news = |ticket: &Ticket| said.is_news(ticket, initial, forgotten, arguments.all);
        let Some(ticket) = ticket.filter(is_news) else { continue };
        let view = ChangeView::new(ticket, initial, forgotten, unix_ms());
        match context.format {
            Format::Json => output::json_line(&view)?,
            Format::Table => output::line(&view.line())?,
        }
    }
    Err(CtlError::CutShort("ticket watch"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_proto::v1::{Placement, TicketState, VmEnd, VmResult};

    const NOW_MS: u64 = 1_763_796_621_042;

    fn line(ticket: &Ticket, state: TicketState, forgotten: bool) -> String {
        let ticket = Ticket { state: state.into(), ..ticket.clone() };
        ChangeView::new(ticket, false, forgotten, NOW_MS).line()
    }

    #[test]
    fn the_beginning_is_said_when_asked_for_and_what_was_missed_always() {
        let ticket = |id: &str, live| Ticket { id: id.into(), live, ..Ticket::default() };
        let mut said = Said::default();
        assert!(!said.is_news(&ticket("a", 1), true, false, false));
        assert!(said.is_news(&ticket("a", 2), false, false, false));
        assert!(!said.is_news(&ticket("a", 2), false, false, false), "the same twice");
        // All over again, after a lag: `a` is as it was, `b` and its like are new.
        assert!(!said.is_news(&ticket("a", 2), true, false, false));
        assert!(said.is_news(&ticket("b", 1), true, false, false));
        assert!(said.is_news(&ticket("a", 2), false, true, false), "forgotten");
        assert!(!said.is_news(&ticket("c", 0), false, true, false), "nobody knew of it");
        assert!(Said::default().is_news(&ticket("a", 1), true, false, true));
    }

    #[test]
    fn a_line_says_what_became_of_it() {
        let result = |vmid, end: VmEnd| VmResult { vmid, end: end.into(), ..VmResult::default() };
        let granted = Ticket {
            id: "t".into(),
            family: "f".into(),
            vms: 3,
            placements: vec![Placement { host_id: "h".into(), host: "a".into(), vms: 3 }],
            expires_unix_ms: NOW_MS + 90_000,
            ..Ticket::default()
        };
        let begins = |state| format!("2025-11-22T07:30:21.042Z {state} t of f: ");
        let text = line(&granted, TicketState::Granted, false);
        assert_eq!(text, begins("granted  ") + "3 VMs on a:3, expires in 90s");
        let used = Ticket { live: 2, results: vec![result(1, VmEnd::Killed)], expires_unix_ms: 0, ..granted };
        assert_eq!(
            line(&used, TicketState::Used, false),
            begins("used     ") + "3 VMs on a:3, 2 live, 1 killed"
        );
        let results = vec![result(1, VmEnd::Killed), result(2, VmEnd::Joined), result(3, VmEnd::Joined)];
        let over = Ticket { live: 0, results, ..used };
        let text = line(&over, TicketState::Released, false);
        assert_eq!(text, begins("released ") + "3 VMs on a:3, 2 joined, 1 killed");
        assert!(line(&over, TicketState::Released, true).starts_with(&begins("forgotten")));
    }
}
