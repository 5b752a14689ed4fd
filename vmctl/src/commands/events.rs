//! `vmctl events`: past and current events of the host.

use super::Context;
use crate::{
    error::CtlError,
    output::{self, Format},
    utc,
    view::plain,
};
use patina_proto::v1::{Event, EventKind, WatchEventsRequest};
use serde::Serialize;
use std::time::Duration;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

/// How long the next of the past events may take. vmmd ends the list itself; one that does not know
/// of that goes on, silent.
const PAST_PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `vmctl events`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print what comes from now on, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// With --follow: begin with what vmmd still knows, its last 1,000 events. Without, that is all
    /// there is.
    #[arg(long)]
    past: bool,
    /// Only those of a family: any of its VMs' names, or its UUID.
    #[arg(long, value_name = "NAME|UUID")]
    family: Option<String>,
}

/// An event as `-o json` prints it: one object a line.
#[derive(Debug, Serialize)]
struct EventView {
    serial: u64,
    unix_ms: u64,
    family: String,
    vm: String,
    vmid: u32,
    ticket: String,
    kind: String,
    text: String,
    #[serde(skip_serializing_if = "is_zero")]
    missed: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        let Event { serial, unix_ms, family, vm, vmid, ticket, kind, text, missed } = event;
        let kind = match EventKind::try_from(kind) {
            Ok(EventKind::Unspecified) => String::new(),
            Ok(kind) => plain(kind.as_str_name(), "EVENT_KIND_").replace('_', "-"),
            // Of a newer vmmd.
            Err(_) => format!("kind-{kind}"),
        };
        Self { serial, unix_ms, family, vm, vmid, ticket, kind, text, missed }
    }
}

impl EventView {
    /// Time, kind, whose, and words.
    fn line(&self) -> String {
        if self.missed > 0 {
            return format!("({} events are missed here: this terminal was too slow for them)", self.missed);
        }
        let whose = match (self.vm.as_str(), self.ticket.as_str()) {
            ("", "") => "-",
            ("", ticket) => ticket,
            (vm, _) => vm,
        };
        let line = format!("{} {:<12} {whose:<16} {}", utc::text(self.unix_ms), self.kind, self.text);
        line.trim_end().to_owned()
    }
}

/// Prints events as they come.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let family = match &arguments.family {
        Some(named) => context.family(named).await?,
        None => String::new(),
    };
    let past_only = !arguments.follow;
    let request = WatchEventsRequest { family, past: past_only || arguments.past, past_only };
    let mut events = context.client().await?.watch_events(request).await?.into_inner();
    loop {
        let next = if past_only {
            timeout(PAST_PATIENCE, events.next()).await.unwrap_or_default()
        } else {
            events.next().await
        };
        let Some(event) = next else { break };
        let view = EventView::from(event?);
        match context.format {
            Format::Json => output::json_line(&view)?,
            Format::Table => output::line(&view.line())?,
        }
    }
    if past_only { Ok(()) } else { Err(CtlError::CutShort("events")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_printed_as_words_and_unknown_ones_as_numbers() {
        let kind = |kind: i32| EventView::from(Event { kind, ..Event::default() }).kind;
        let words = (1..=10).map(kind).collect::<Vec<_>>();
        let expected = [
            "created",
            "ready",
            "cloned",
            "ended",
            "removed",
            "not-removed",
            "broken",
            "unwritten",
            "snapshot",
            "restored",
        ];
        assert_eq!(words, expected);
        assert_eq!((kind(0).as_str(), kind(99).as_str()), ("", "kind-99"));
    }

    #[test]
    fn a_line_has_time_kind_and_whose_it_is() {
        let event = Event {
            serial: 7,
            unix_ms: 1_763_796_621_042,
            vm: "web.3".into(),
            ticket: "t".into(),
            kind: EventKind::Ready.into(),
            text: "after 0.042 s".into(),
            ..Event::default()
        };
        let line = EventView::from(event.clone()).line();
        assert_eq!(line, "2025-11-22T07:30:21.042Z ready        web.3            after 0.042 s");
        let of_ticket = Event { vm: String::new(), text: String::new(), ..event.clone() };
        assert_eq!(EventView::from(of_ticket).line(), "2025-11-22T07:30:21.042Z ready        t");
        let missed = EventView::from(Event { missed: 12, ..Event::default() });
        assert!(missed.line().starts_with("(12 events are missed"));
        let missed = serde_json::to_value(missed).unwrap();
        assert_eq!((&missed["missed"], &missed["kind"]), (&12.into(), &"".into()));
        assert!(serde_json::to_value(EventView::from(event)).unwrap().get("missed").is_none());
    }
}
