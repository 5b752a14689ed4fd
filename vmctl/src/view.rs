//! A VM as JSON and as a table row.

use crate::values;
use patina_proto::v1::{EndKind, PublishedPort, Vm, VmState};
use serde::Serialize;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The header of [`VmView::row`].
pub const HEADER: [&str; 7] = ["NAME", "STATE", "VCPUS", "MEMORY", "IP", "PORTS", "AGE"];

/// A VM as `-o json` prints it: the fields of `patina.v1.Vm`, enums in lower case without their
/// prefix.
#[derive(Debug, Serialize)]
pub struct VmView {
    pub name: String,
    uuid: String,
    family: String,
    pub vmid: u32,
    parent_vmid: Option<u32>,
    pub state: String,
    end_kind: Option<String>,
    end_reason: String,
    problem: String,
    vcpus: u32,
    memory_mib: u32,
    pub ip: String,
    prefix: u32,
    gateway: String,
    mac: String,
    bridge: String,
    tap: String,
    ports: Vec<PortView>,
    kernel: String,
    rootfs: String,
    pid: u32,
    created_unix_ms: u64,
    ended_unix_ms: u64,
    pub ready_after_us: u64,
    ticket: String,
    snapshot: String,
    image: String,
    cpu_baseline: Vec<String>,
    /// Whether it needs other CPU features of a host than its host offers.
    other_features: bool,
    /// The host that it is on, where several were asked.
    pub host: Option<String>,
}

/// A published port as `-o json` prints it.
#[derive(Debug, Serialize)]
pub struct PortView {
    host_address: String,
    host_port: u32,
    guest_port: u32,
}

impl From<PublishedPort> for PortView {
    fn from(port: PublishedPort) -> Self {
        let host_address =
            if port.host_address.is_empty() { "127.0.0.1".to_owned() } else { port.host_address };
        Self { host_address, host_port: port.host_port, guest_port: port.guest_port }
    }
}

impl From<Vm> for VmView {
    fn from(vm: Vm) -> Self {
        let end_kind = vm.end_kind();
        Self {
            state: plain(vm.state().as_str_name(), "VM_STATE_"),
            end_kind: (end_kind != EndKind::Unspecified).then(|| plain(end_kind.as_str_name(), "END_KIND_")),
            name: vm.name,
            uuid: vm.uuid,
            family: vm.family,
            vmid: vm.vmid,
            parent_vmid: vm.parent_vmid,
            end_reason: vm.end_reason,
            problem: vm.problem,
            vcpus: vm.vcpus,
            memory_mib: vm.memory_mib,
            ip: vm.ip,
            prefix: vm.prefix,
            gateway: vm.gateway,
            mac: vm.mac,
            bridge: vm.bridge,
            tap: vm.tap,
            ports: vm.ports.into_iter().map(PortView::from).collect(),
            kernel: vm.kernel,
            rootfs: vm.rootfs,
            pid: vm.pid,
            created_unix_ms: vm.created_unix_ms,
            ended_unix_ms: vm.ended_unix_ms,
            ready_after_us: vm.ready_after_us,
            ticket: vm.ticket,
            snapshot: vm.snapshot,
            image: vm.image,
            cpu_baseline: vm.cpu_baseline,
            other_features: vm.needs.is_some(),
            host: Some(vm.host).filter(|host| !host.is_empty()),
        }
    }
}

impl VmView {
    /// The columns of `vmctl ls`; `depth`: of how many VMs it is a clone, one of the other.
    pub fn row(&self, depth: usize) -> Vec<String> {
        if self.uuid.is_empty() {
            // vmmd knows its name, and as much as its state says.
            let mut row = vec![format!("{}{}", "  ".repeat(depth), self.name), self.status()];
            row.resize(HEADER.len(), String::new());
            return row;
        }
        vec![
            format!("{}{}", "  ".repeat(depth), self.name),
            self.status(),
            self.vcpus.to_string(),
            format!("{} MiB", self.memory_mib),
            self.ip.clone(),
            self.ports_text(),
            age(Duration::from_millis(unix_ms().saturating_sub(self.created_unix_ms))),
        ]
    }

    /// `name: value` pairs for `vmctl inspect`; what does not apply is left out.
    pub fn details(&self) -> Vec<(&'static str, String)> {
        let rows = [
            ("name", self.name.clone()),
            ("host", self.host.clone().unwrap_or_default()),
            ("state", self.status()),
            ("reason", self.end_reason.clone()),
            ("vmid", self.vmid.to_string()),
            ("parent", self.parent_vmid.map(|vmid| vmid.to_string()).unwrap_or_default()),
            ("ticket", self.ticket.clone()),
            ("uuid", self.uuid.clone()),
            ("family", self.family.clone()),
            ("vcpus", self.vcpus.to_string()),
            ("memory", format!("{} MiB", self.memory_mib)),
            ("cpu features", self.features()),
            ("address", format!("{}/{}", self.ip, self.prefix)),
            ("gateway", self.gateway.clone()),
            ("mac", self.mac.clone()),
            ("bridge", self.bridge.clone()),
            ("tap", self.tap.clone()),
            ("ports", self.ports_text()),
            ("kernel", self.kernel.clone()),
            ("rootfs", self.rootfs.clone()),
            ("snapshot", self.snapshot.clone()),
            ("started from", self.origin()),
            ("pid", if self.pid == 0 { String::new() } else { self.pid.to_string() }),
            ("ready after", ready_after(self.ready_after_us)),
        ];
        rows.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    /// What the family's master did to come to run. Of a clone, that is said by its parent.
    fn origin(&self) -> String {
        match (self.uuid.is_empty(), self.snapshot.is_empty(), self.image.is_empty()) {
            (true, ..) | (_, false, _) => String::new(),
            (_, _, false) => format!("image {}", self.image),
            _ => "a boot".to_owned(),
        }
    }

    /// Which CPU features it has, where these are not those of its host.
    fn features(&self) -> String {
        match (self.cpu_baseline.is_empty(), self.other_features) {
            (false, _) => format!("common to {}", self.cpu_baseline.join(", ")),
            (true, true) => "fewer than its host offers".to_owned(),
            (true, false) => String::new(),
        }
    }

    /// One line: name, state, and how and why it ended.
    pub fn summary(&self) -> String {
        let mut line = format!("{} {}", self.name, self.status());
        if !self.end_reason.is_empty() {
            line = format!("{line}: {}", self.end_reason);
        }
        line
    }

    fn status(&self) -> String {
        match &self.end_kind {
            Some(kind) => format!("{} ({kind})", self.state),
            None => self.state.clone(),
        }
    }

    /// A row for each published port: where on the host, and which port of the VM.
    pub fn port_rows(&self) -> impl Iterator<Item = Vec<String>> + '_ {
        let place = |port: &PortView| values::place(&port.host_address, port.host_port);
        self.ports.iter().map(move |port| vec![place(port), port.guest_port.to_string()])
    }

    fn ports_text(&self) -> String {
        let port = |port: &PortView| format!("{}:{}->{}", port.host_address, port.host_port, port.guest_port);
        self.ports.iter().map(port).collect::<Vec<_>>().join(",")
    }
}

/// Whether the VM has ended.
pub fn has_ended(vm: &Vm) -> bool {
    vm.state() == VmState::Ended
}

/// `VM_STATE_READY` as `ready`.
pub fn plain(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase()
}

fn ready_after(us: u64) -> String {
    if us == 0 { String::new() } else { format!("{:.3} s", Duration::from_micros(us).as_secs_f64()) }
}

/// The time now.
pub fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// `42s`, `3m`, `2h`, `5d`.
pub fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> Vm {
        Vm {
            name: "web".into(),
            uuid: "0f8e7d6c-0000-4000-8000-000000000001".into(),
            state: VmState::Ended.into(),
            end_kind: EndKind::PoweredOff.into(),
            memory_mib: 256,
            ports: vec![PublishedPort { host_port: 8080, guest_port: 80, host_address: String::new() }],
            ..Vm::default()
        }
    }

    #[test]
    fn json_has_plain_words() {
        let json = serde_json::to_value(VmView::from(vm())).unwrap();
        assert_eq!((&json["state"], &json["end_kind"]), (&"ended".into(), &"powered_off".into()));
        assert_eq!(json["ports"][0]["host_address"], "127.0.0.1");
    }

    #[test]
    fn a_row_says_how_it_ended() {
        let row = VmView::from(vm()).row(0);
        assert_eq!(row[..2], ["web".to_owned(), "ended (powered_off)".to_owned()]);
        assert_eq!(row[5], "127.0.0.1:8080->80");
        // Of what vmmd has not taken over it knows the name.
        let broken = Vm { name: "torn".into(), state: VmState::Broken.into(), ..Vm::default() };
        let row = VmView::from(broken).row(0);
        assert_eq!((row.len(), row[..3].join(",")), (HEADER.len(), "torn,broken,".to_owned()));
    }

    #[test]
    fn details_say_whether_it_booted() {
        let origin = |vm: Vm| {
            let rows = VmView::from(vm).details();
            rows.into_iter().find_map(|(name, value)| (name == "started from").then_some(value))
        };
        assert_eq!(origin(vm()).unwrap(), "a boot");
        assert_eq!(origin(Vm { image: "ab".into(), ..vm() }).unwrap(), "image ab");
        assert_eq!(origin(Vm { snapshot: "/s".into(), ..vm() }), None);
    }

    #[test]
    fn ages_are_short() {
        let ages = [5, 150, 9000, 400_000].map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(ages, ["5s", "2m", "2h", "4d"]);
    }
}
