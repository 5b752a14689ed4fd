//! `vmctl host`: shows hosts, takes them out of use and brings them back.

mod inspect;

use super::{
    Context,
    hosts::{self, HostView},
};
use crate::{
    error::CtlError,
    output::{self, Format},
};
use clap::Subcommand;
use patina_proto::v1::{
    FenceHostRequest, HostChange, HostClone, HostScheduling, HostStatus, SetHostSchedulingRequest,
};
use serde::Serialize;
use tonic::Status;

/// What to do with hosts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the hosts that the scheduler knows, their state, and what of them is reserved.
    #[command(visible_alias = "list")]
    Ls,
    /// Print everything about a host: its CPU, KVM and kernel, and the memory that is really free.
    Inspect {
        /// The host's name or UUID.
        // Under the name `host` it would be the value of --host.
        #[arg(id = "named", value_name = "HOST")]
        host: String,
    },
    /// Grant nothing new on a host. Tickets that were granted may still be used.
    Cordon {
        /// The host's name or UUID.
        // Under the name `host` it would be the value of --host.
        #[arg(id = "named", value_name = "HOST")]
        host: String,
    },
    /// Cordon a host, release the tickets that were granted there and not used, and print which VMs
    /// still run there.
    ///
    /// Clones run on until they end or are killed. So do masters, the VMs of `vmctl run` (vmid 0):
    /// they are not moved, no ticket holds them, and new ones can still be started. `vmctl ls` on
    /// that host lists them, and `vmctl kill --family` there ends a master and its clones.
    Drain {
        /// The host's name or UUID.
        // Under the name `host` it would be the value of --host.
        #[arg(id = "named", value_name = "HOST")]
        host: String,
    },
    /// Let a host be granted new tickets again.
    Uncordon {
        /// The host's name or UUID.
        // Under the name `host` it would be the value of --host.
        #[arg(id = "named", value_name = "HOST")]
        host: String,
    },
    /// Give up a suspect host now: its tickets are fenced, and its clones count as lost.
    ///
    /// If the host comes back, clones that were neither killed nor replaced are kept.
    Fence {
        /// The host's name or UUID.
        // Under the name `host` it would be the value of --host.
        #[arg(id = "named", value_name = "HOST")]
        host: String,
    },
}

/// What has become of a host, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct ChangeView {
    host: HostView,
    released_tickets: u32,
    clones: Vec<CloneView>,
    /// Families whose master lives there.
    masters: Vec<String>,
}

/// A clone that runs there.
#[derive(Debug, Serialize)]
struct CloneView {
    family: String,
    vmid: u32,
    ticket: String,
}

/// Does it.
pub async fn run(context: &Context, command: Command) -> Result<(), CtlError> {
    match command {
        Command::Ls => hosts::run(context).await,
        Command::Inspect { host } => {
            let statuses = hosts::statuses(context).await?;
            let views: Vec<HostView> = statuses.iter().cloned().map(HostView::from).collect();
            let id = find(&views, &host)?;
            let is_it = |status: &HostStatus| status.info.as_ref().is_some_and(|info| info.id == id);
            inspect::print(context.format, statuses.into_iter().find(is_it).unwrap_or_default())
        }
        Command::Cordon { host } => set(context, &host, HostScheduling::Cordoned).await,
        Command::Drain { host } => set(context, &host, HostScheduling::Draining).await,
        Command::Uncordon { host } => set(context, &host, HostScheduling::Open).await,
        Command::Fence { host } => {
            let host_id = find(&hosts::all(context).await?, &host)?;
            let mut scheduler = context.scheduler().await?;
            let change = scheduler.fence_host(FenceHostRequest { host_id }).await?;
            print(context, change.into_inner(), "lost")
        }
    }
}

async fn set(context: &Context, host: &str, scheduling: HostScheduling) -> Result<(), CtlError> {
    let host_id = find(&hosts::all(context).await?, host)?;
    let mut scheduler = context.scheduler().await?;
    let request = SetHostSchedulingRequest { host_id, scheduling: scheduling.into() };
    let change = scheduler.set_host_scheduling(request).await?.into_inner();
    let is = match scheduling {
        HostScheduling::Cordoned => "cordoned",
        HostScheduling::Draining => "draining",
        HostScheduling::Open | HostScheduling::Unspecified => "open",
    };
    print(context, change, is)
}

/// The UUID of the one host of that name or UUID.
fn find(hosts: &[HostView], named: &str) -> Result<String, CtlError> {
    let mut found = hosts.iter().filter(|host| host.name == named || host.id == named);
    match (found.next(), found.next()) {
        (Some(host), None) => Ok(host.id.clone()),
        (Some(_), Some(_)) => Err(Status::failed_precondition(format!(
            "find host {named}: several hosts have this name; give the UUID, as `vmctl host ls` prints it"
        ))
        .into()),
        (None, _) => Err(Status::not_found(format!(
            "find host {named}: the scheduler knows no such host; `vmctl host ls` lists them"
        ))
        .into()),
    }
}

fn print(context: &Context, change: HostChange, is: &str) -> Result<(), CtlError> {
    let HostChange { host, clones, released_tickets, masters } = change;
    let clones =
        clones.into_iter().map(|HostClone { ticket, family, vmid }| CloneView { family, vmid, ticket });
    let host = host.unwrap_or_default().into();
    let view = ChangeView { host, released_tickets, clones: clones.collect(), masters };
    if context.format == Format::Json {
        return output::json(&view);
    }
    output::line(&line(&view, is))?;
    if is != "draining" || (view.clones.is_empty() && view.masters.is_empty()) {
        return Ok(());
    }
    let has_masters = !view.masters.is_empty();
    output::table(&["FAMILY", "VMID", "TICKET"], rows(view))?;
    if has_masters { output::line(MASTERS) } else { Ok(()) }
}

/// What becomes of VMs that are no clones.
const MASTERS: &str = "masters (vmid 0) are not moved or ended; on that host, `vmctl ls` lists them, and `vmctl kill --family` ends one with its clones";

/// A master has no ticket.
fn rows(view: ChangeView) -> Vec<Vec<String>> {
    let masters = view.masters.into_iter().map(|family| vec![family, "0".to_owned(), "-".to_owned()]);
    let clones =
        view.clones.into_iter().map(|clone| vec![clone.family, clone.vmid.to_string(), clone.ticket]);
    masters.chain(clones).collect()
}

fn line(view: &ChangeView, is: &str) -> String {
    let count = |number: usize, one: &str| match number {
        0 => format!("no {one}"),
        1 => format!("1 {one}"),
        many => format!("{many} {one}s"),
    };
    let clones = count(view.clones.len(), "clone");
    let runs = if view.clones.len() > 1 { "run" } else { "runs" };
    let vms = match view.masters.len() {
        0 => format!("{clones} {runs} there"),
        masters => format!("{clones} and {} run there", count(masters, "master")),
    };
    let released = match view.released_tickets {
        0 => String::new(),
        1 => "1 unused ticket was released; ".to_owned(),
        many => format!("{many} unused tickets were released; "),
    };
    format!("{} is {is}: {released}{vms}", view.host.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_proto::v1::HostInfo;

    fn host(id: &str, name: &str) -> HostView {
        let info = HostInfo { id: id.into(), name: name.into(), ..HostInfo::default() };
        HostStatus { info: Some(info), ..HostStatus::default() }.into()
    }

    #[test]
    fn a_host_is_named_by_its_name_or_uuid_if_that_is_one() {
        let hosts = [host("1", "a"), host("2", "b"), host("3", "b")];
        assert_eq!(find(&hosts, "a").unwrap(), "1");
        assert_eq!(find(&hosts, "3").unwrap(), "3");
        assert_eq!(find(&hosts, "b").unwrap_err().exit_code(), 5);
        assert_eq!(find(&hosts, "c").unwrap_err().exit_code(), 3);
    }

    #[test]
    fn what_was_done_is_said_in_one_line() {
        let clone = || CloneView { family: "f".into(), vmid: 1, ticket: "t".into() };
        let mut view =
            ChangeView { host: host("1", "a"), released_tickets: 0, clones: Vec::new(), masters: Vec::new() };
        assert_eq!(line(&view, "cordoned"), "a is cordoned: no clone runs there");
        (view.released_tickets, view.clones) = (2, vec![clone(), clone()]);
        let drained = "a is draining: 2 unused tickets were released; 2 clones run there";
        assert_eq!(line(&view, "draining"), drained);
        (view.released_tickets, view.masters) = (0, vec!["m".into()]);
        assert_eq!(line(&view, "draining"), "a is draining: 2 clones and 1 master run there");
        let rows = rows(view);
        assert_eq!((rows.len(), rows[0].as_slice()), (3, ["m", "0", "-"].map(str::to_owned).as_slice()));
    }
}
