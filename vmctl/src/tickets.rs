//! A ticket as JSON and as a table row.

use crate::view::{age, plain, unix_ms};
use patina_proto::v1::{Placement, Ticket, TicketState, VmResult};
use serde::Serialize;
use std::time::Duration;

/// The header of [`TicketView::row`].
pub const HEADER: [&str; 9] =
    ["TICKET", "FAMILY", "STATE", "VMS", "VCPUS", "MEMORY", "LIVE", "HOSTS", "EXPIRES"];

/// A ticket as `-o json` prints it: the fields of `patina.v1.Ticket`, enums in lower case without
/// their prefix.
#[derive(Debug, Serialize)]
pub struct TicketView {
    pub id: String,
    pub family: String,
    pub state: String,
    epoch: u64,
    vms: u32,
    vcpus: u32,
    memory_mib: u32,
    min_cpus_per_vm: u32,
    placements: Vec<PlacementView>,
    parent_vmid: Option<u32>,
    live: u32,
    results: Vec<ResultView>,
    granted_unix_ms: u64,
    expires_unix_ms: u64,
    loose: bool,
}

/// Where VMs of a ticket run.
#[derive(Debug, Serialize)]
struct PlacementView {
    host_id: String,
    host: String,
    vms: u32,
}

/// How a VM ended, as `-o json` prints it.
#[derive(Debug, Serialize)]
pub struct ResultView {
    pub vmid: u32,
    pub end: String,
    status: i32,
    pub data_bytes: u64,
    reported: bool,
}

impl From<VmResult> for ResultView {
    fn from(result: VmResult) -> Self {
        let end = plain(result.end().as_str_name(), "VM_END_");
        let VmResult { vmid, status, data_bytes, reported, .. } = result;
        Self { vmid, end, status, data_bytes, reported }
    }
}

impl ResultView {
    /// The header of [`ResultView::row`].
    pub const HEADER: [&str; 4] = ["VMID", "END", "STATUS", "DATA"];

    /// The columns of `vmctl join`. As `gc join` a clone that joined with noreport has no status.
    pub fn row(&self) -> Vec<String> {
        let silent = self.end == "joined" && !self.reported;
        let status = if silent { "-".to_owned() } else { self.status.to_string() };
        vec![self.vmid.to_string(), self.end.clone(), status, self.data_bytes.to_string()]
    }
}

impl From<Ticket> for TicketView {
    fn from(ticket: Ticket) -> Self {
        let placement = |Placement { host_id, host, vms }| PlacementView { host_id, host, vms };
        Self {
            state: plain(TicketState::as_str_name(&ticket.state()), "TICKET_STATE_"),
            id: ticket.id,
            family: ticket.family,
            epoch: ticket.epoch,
            vms: ticket.vms,
            vcpus: ticket.vcpus,
            memory_mib: ticket.memory_mib,
            min_cpus_per_vm: ticket.min_cpus_per_vm,
            placements: ticket.placements.into_iter().map(placement).collect(),
            parent_vmid: ticket.parent_vmid,
            live: ticket.live,
            results: ticket.results.into_iter().map(ResultView::from).collect(),
            granted_unix_ms: ticket.granted_unix_ms,
            expires_unix_ms: ticket.expires_unix_ms,
            loose: ticket.loose,
        }
    }
}

impl TicketView {
    /// The columns of `vmctl ticket ls`; `family`: its name, where it has one here.
    pub fn row(&self, family: &str) -> Vec<String> {
        vec![
            self.id.clone(),
            family.to_owned(),
            self.state.clone(),
            self.vms.to_string(),
            self.vcpus.to_string(),
            format!("{} MiB", self.memory_mib),
            self.live.to_string(),
            self.hosts(),
            self.expires(unix_ms()),
        ]
    }

    /// `name: value` pairs for `vmctl ticket inspect`; what does not apply is left out.
    pub fn details(&self) -> Vec<(&'static str, String)> {
        let parent = self.parent_vmid.map(|vmid| format!("vmid {vmid}")).unwrap_or_default();
        let rows = [
            ("ticket", self.id.clone()),
            ("family", self.family.clone()),
            ("state", self.state.clone()),
            ("epoch", self.epoch.to_string()),
            ("vms", self.vms.to_string()),
            ("vcpus", format!("{} each", self.vcpus)),
            ("memory", format!("{} MiB each", self.memory_mib)),
            ("hosts", self.hosts()),
            ("cloned by", parent),
            ("live", if self.parent_vmid.is_some() { self.live.to_string() } else { String::new() }),
            ("expires", self.expires(unix_ms())),
            ("asked for", if self.loose { "by number of clones".to_owned() } else { String::new() }),
        ];
        let results = self.results.iter().map(|result| {
            let [vmid, end, status, data] = [0, 1, 2, 3].map(|column| result.row()[column].clone());
            ("clone", format!("{vmid} {end}, status {status}, {data} bytes"))
        });
        rows.into_iter().filter(|(_, value)| !value.is_empty()).chain(results).collect()
    }

    /// How many VMs, where, and how they stand, in a few words.
    pub fn summary(&self, now_unix_ms: u64) -> String {
        let live = (self.live > 0).then(|| format!("{} live", self.live));
        // In the order in which people ask.
        let ends = ["joined", "ended", "killed", "lost"].into_iter().filter_map(|end| {
            let count = self.results.iter().filter(|result| result.end == end).count();
            (count > 0).then(|| format!("{count} {end}"))
        });
        let expires = (self.expires_unix_ms > 0).then(|| format!("expires {}", self.expires(now_unix_ms)));
        let vms = format!("{} VMs on {}", self.vms, self.hosts());
        [vms].into_iter().chain(live).chain(ends).chain(expires).collect::<Vec<_>>().join(", ")
    }

    fn hosts(&self) -> String {
        let of = |place: &PlacementView| {
            let host = if place.host.is_empty() { &place.host_id } else { &place.host };
            format!("{host}:{}", place.vms)
        };
        self.placements.iter().map(of).collect::<Vec<_>>().join(",")
    }

    fn expires(&self, now_unix_ms: u64) -> String {
        if self.expires_unix_ms == 0 {
            return String::new();
        }
        format!("in {}", age(Duration::from_millis(self.expires_unix_ms.saturating_sub(now_unix_ms))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_proto::v1::VmEnd;

    fn ticket() -> TicketView {
        let place = |host: &str, vms| Placement { host_id: "id".into(), host: host.into(), vms };
        let result = |vmid, end: VmEnd, status, reported| VmResult {
            vmid,
            end: end.into(),
            status,
            data_bytes: 5,
            reported,
            data_dropped: false,
        };
        Ticket {
            id: "t".into(),
            state: TicketState::Used.into(),
            vms: 3,
            vcpus: 2,
            memory_mib: 256,
            placements: vec![place("a", 2), place("", 1)],
            parent_vmid: Some(0),
            live: 1,
            results: vec![
                result(1, VmEnd::Joined, 7, true),
                result(2, VmEnd::Joined, 0, false),
                result(3, VmEnd::Killed, 0, false),
            ],
            expires_unix_ms: 90_000,
            ..Ticket::default()
        }
        .into()
    }

    #[test]
    fn a_row_says_where_and_how_many_live() {
        let row = ticket().row("web");
        let wanted = ["t", "web", "used", "3", "2", "256 MiB", "1", "a:2,id:1"];
        assert_eq!(row[..8], wanted.map(str::to_owned));
        assert_eq!(row.len(), HEADER.len());
        assert_eq!((ticket().expires(50_000), ticket().expires(100_000)), ("in 40s".into(), "in 0s".into()));
    }

    #[test]
    fn details_have_each_result_and_json_plain_words() {
        let details = ticket().details();
        assert!(details.contains(&("cloned by", "vmid 0".to_owned())), "{details:?}");
        assert_eq!(details.last().unwrap().1, "3 killed, status 0, 5 bytes");
        assert!(!details.iter().any(|(name, _)| *name == "asked for"));
        let json = serde_json::to_value(ticket()).unwrap();
        assert_eq!((&json["state"], &json["results"][2]["end"]), (&"used".into(), &"killed".into()));
        assert_eq!(ticket().results[1].row(), ["2", "joined", "-", "5"].map(str::to_owned));
    }
}
