//! `vmctl top`: the resources that running VMs use, live.
//!
//! - [`sample`]: the difference between two moments.
//! - [`screen`]: the terminal while the table is shown.

mod sample;
mod screen;

use super::{Context, all_vms};
use crate::{
    client::Client,
    error::CtlError,
    output::{self, Format},
    terminal::window_size,
};
use patina_proto::v1::ListUsageRequest;
use sample::{HEADER, Load, Moment, compare};
use screen::Screen;
use serde::Serialize;
use std::{io::IsTerminal as _, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// Between two tables.
const REFRESH: Duration = Duration::from_secs(1);

/// Arguments of `vmctl top`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print one table, of one second, and end.
    #[arg(long)]
    once: bool,
}

/// A table as `-o json` prints it: an object a line, with --once indented.
#[derive(Debug, Serialize)]
struct TopView {
    vms: Vec<Load>,
}

/// Shows tables until interrupted. On a terminal each replaces the last; `q` ends it too.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut client = context.client().await?;
    let mut before = usage(&mut client).await?;
    let on_screen = !arguments.once && context.format == Format::Table && std::io::stdout().is_terminal();
    let mut screen = if on_screen { Some(Screen::enter()?) } else { None };
    let mut refresh = interval_at(Instant::now() + REFRESH, REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = refresh.tick() => {}
            () = screen::key_to_end(screen.as_mut()) => return Ok(()),
        }
        let vms = all_vms(&mut client).await?;
        let after = usage(&mut client).await?;
        let loads = compare(vms, &before, &after);
        before = after;
        match (context.format, &mut screen) {
            (Format::Json, _) if arguments.once => output::json(&TopView { vms: loads })?,
            (Format::Json, _) => output::json_line(&TopView { vms: loads })?,
            (Format::Table, Some(screen)) => screen.show(&fit(&loads, window_rows()))?,
            (Format::Table, None) => output::line(&text(&loads))?,
        }
        if arguments.once {
            return Ok(());
        }
    }
}

/// What all VMs take now, page by page where there are many.
async fn usage(client: &mut Client) -> Result<Moment, CtlError> {
    let mut moment = Moment::default();
    let mut page_token = String::new();
    loop {
        let mut page = client.list_usage(ListUsageRequest { page_size: 0, page_token }).await?.into_inner();
        page_token = std::mem::take(&mut page.next_page_token);
        moment.add(page);
        if page_token.is_empty() {
            return Ok(moment);
        }
    }
}

fn window_rows() -> usize {
    let rows = window_size().and_then(|size| usize::try_from(size.rows).ok());
    rows.filter(|rows| *rows > 0).unwrap_or(usize::MAX)
}

fn text(loads: &[Load]) -> String {
    format!("{}\n{}", sample::summary(loads), output::format_table(&HEADER, loads.iter().map(Load::row)))
}

/// As much of the table as the window has lines for; the last then says how many are not seen.
fn fit(loads: &[Load], rows: usize) -> String {
    let all = text(loads);
    let lines: Vec<&str> = all.lines().collect();
    if lines.len() <= rows {
        return all;
    }
    let seen = rows.saturating_sub(1);
    format!("{}\n({} more)", lines[..seen].join("\n"), lines.len() - seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_proto::v1::Vm;

    #[test]
    fn a_small_window_has_the_busiest_and_says_what_it_lacks() {
        let load = |name: &str| Load::of(Vm { name: name.into(), ..Vm::default() }, None);
        let loads = ["a", "b", "c", "d"].map(load);
        assert_eq!(fit(&loads, 6), text(&loads));
        let lines: Vec<String> = fit(&loads, 4).lines().map(str::to_owned).collect();
        assert_eq!((lines.len(), lines[3].as_str()), (4, "(3 more)"));
        assert!(lines[2].starts_with("a "), "{lines:?}");
        assert_eq!(fit(&loads, usize::MAX).lines().count(), 6);
    }
}
