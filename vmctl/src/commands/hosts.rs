//! `vmctl hosts` and `vmctl host ls`: the scheduler's hosts and their capacity.

use super::Context;
use crate::{
    error::CtlError,
    output::{self, Format},
    view::{age, unix_ms},
};
use patina_proto::v1::{HostInfo, HostScheduling, HostState, HostStatus, ListHostsRequest};
use serde::Serialize;
use std::time::Duration;

/// The header of the table. CPUs, memory and VMs: reserved, of what may be.
const HEADER: [&str; 9] = ["HOST", "STATE", "SINCE", "CPUS", "MEMORY", "VMS", "SEEN", "ADDRESS", "ID"];

/// The state of a host that is given up.
pub const LOST: &str = "lost";

/// A host as `-o json` prints it.
#[derive(Debug, Serialize)]
pub struct HostView {
    pub id: String,
    pub name: String,
    pub address: String,
    alive: bool,
    pub state: &'static str,
    state_unix_ms: u64,
    lost_unix_ms: u64,
    pub scheduling: &'static str,
    scheduling_unix_ms: u64,
    epoch: u64,
    pub real_cpus: u32,
    pub real_memory_mib: u64,
    pub cpus: u32,
    pub memory_mib: u64,
    pub max_vms: u32,
    pub held_cpus: u32,
    pub held_memory_mib: u64,
    pub held_vms: u32,
    pub seen_unix_ms: u64,
}

impl From<HostStatus> for HostView {
    fn from(status: HostStatus) -> Self {
        let state = state(&status);
        let HostInfo { id, name, address, cpus, memory_mib, max_vms, .. } = status.info.unwrap_or_default();
        Self {
            id,
            name,
            address,
            alive: status.alive,
            state,
            state_unix_ms: status.state_unix_ms,
            lost_unix_ms: status.lost_unix_ms,
            scheduling: scheduling(status.scheduling),
            scheduling_unix_ms: status.scheduling_unix_ms,
            epoch: status.epoch,
            real_cpus: cpus,
            real_memory_mib: memory_mib,
            cpus: status.cpus,
            memory_mib: status.memory_mib,
            max_vms,
            held_cpus: status.held_cpus,
            held_memory_mib: status.held_memory_mib,
            held_vms: status.held_vms,
            seen_unix_ms: status.seen_unix_ms,
        }
    }
}

fn scheduling(scheduling: i32) -> &'static str {
    match HostScheduling::try_from(scheduling) {
        Ok(HostScheduling::Cordoned) => "cordoned",
        Ok(HostScheduling::Draining) => "draining",
        Ok(HostScheduling::Open | HostScheduling::Unspecified) | Err(_) => "open",
    }
}

/// A scheduler of an earlier release says only whether it is alive.
fn state(status: &HostStatus) -> &'static str {
    match (status.state(), status.alive) {
        (HostState::Up, _) => "up",
        (HostState::Suspect, _) => "suspect",
        (HostState::Lost, _) => LOST,
        (HostState::Unspecified, true) => "alive",
        (HostState::Unspecified, false) => "away",
    }
}

impl HostView {
    fn row(&self, now_unix_ms: u64) -> Vec<String> {
        let most_vms = if self.max_vms == 0 { String::new() } else { format!("/{}", self.max_vms) };
        let passed = |unix_ms: u64| age(Duration::from_millis(now_unix_ms.saturating_sub(unix_ms)));
        let seen = match self.seen_unix_ms {
            0 => "never".to_owned(),
            seen => format!("{} ago", passed(seen)),
        };
        let since = if self.state_unix_ms == 0 { String::new() } else { passed(self.state_unix_ms) };
        vec![
            self.name.clone(),
            if self.scheduling == "open" {
                self.state.to_owned()
            } else {
                format!("{}, {}", self.state, self.scheduling)
            },
            since,
            format!("{}/{}", self.held_cpus, self.cpus),
            format!("{}/{} MiB", self.held_memory_mib, self.memory_mib),
            format!("{}{most_vms}", self.held_vms),
            seen,
            self.address.clone(),
            self.id.clone(),
        ]
    }
}

/// Prints all hosts.
pub async fn run(context: &Context) -> Result<(), CtlError> {
    let hosts = all(context).await?;
    match context.format {
        Format::Json => output::json(&hosts),
        Format::Table => output::table(&HEADER, hosts.iter().map(|host| host.row(unix_ms()))),
    }
}

/// All hosts that the scheduler knows.
pub async fn all(context: &Context) -> Result<Vec<HostView>, CtlError> {
    Ok(statuses(context).await?.into_iter().map(HostView::from).collect())
}

/// All hosts that the scheduler knows, as it says it.
pub async fn statuses(context: &Context) -> Result<Vec<HostStatus>, CtlError> {
    let mut scheduler = context.scheduler().await?;
    let mut hosts = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListHostsRequest { page_size: 0, page_token };
        let page = scheduler.list_hosts(request).await?.into_inner();
        hosts.extend(page.hosts);
        if page.next_page_token.is_empty() {
            return Ok(hosts);
        }
        page_token = page.next_page_token;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_is_reserved_of_what() {
        let info = HostInfo { name: "a".into(), max_vms: 8, cpus: 2, ..HostInfo::default() };
        let status = HostStatus {
            info: Some(info),
            alive: true,
            state: HostState::Up.into(),
            state_unix_ms: 500,
            cpus: 16,
            memory_mib: 4096,
            held_cpus: 3,
            held_memory_mib: 768,
            held_vms: 3,
            seen_unix_ms: 1_000,
            ..HostStatus::default()
        };
        let mut view = HostView::from(status);
        assert_eq!(
            view.row(3_500)[..7],
            ["a", "up", "3s", "3/16", "768/4096 MiB", "3/8", "2s ago"].map(str::to_owned)
        );
        (view.state, view.max_vms, view.seen_unix_ms) = ("suspect", 0, 0);
        let row = ["suspect", "3s", "3/16", "768/4096 MiB", "3", "never"];
        assert_eq!(view.row(3_500)[1..7], row.map(str::to_owned));
        view.scheduling = "draining";
        assert_eq!(view.row(3_500)[1], "suspect, draining");
        let older = |alive| state(&HostStatus { alive, ..HostStatus::default() });
        assert_eq!([older(true), older(false)], ["alive", "away"]);
        assert_eq!(serde_json::to_value(view).unwrap()["real_cpus"], 2);
    }
}
