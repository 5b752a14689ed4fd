//! A checked request for a VM.

use super::names::VmName;
use patina_control::config::{CMDLINE_MAX_BYTES, MEMORY_MIB, VCPUS};
use patina_proto::v1::{CreateVmRequest, PublishedPort};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// RAM when none is asked for, MiB.
pub const MEMORY_DEFAULT_MIB: u32 = 256;
/// Most published ports of a VM.
pub const PORTS_MAX: usize = 64;

/// Most hosts of a CPU baseline.
const HOSTS_MAX: usize = 256;
/// Longest name of one.
const HOST_MAX_BYTES: usize = 256;

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// None: `vmmd` chooses.
    pub name: Option<VmName>,
    /// Within [`VCPUS`].
    pub vcpus: u8,
    /// Within [`MEMORY_MIB`].
    pub memory_mib: u32,
    /// Printable, at most [`CMDLINE_MAX_BYTES`].
    pub cmdline: String,
    /// Path on the host.
    pub kernel: PathBuf,
    /// Path on the host.
    pub rootfs: PathBuf,
    /// At most [`PORTS_MAX`], no host address twice.
    pub ports: Vec<Port>,
    /// It boots, even if there is an image of its kind.
    pub cold: bool,
    /// It is offered only CPU features that these hosts have, too; none named: all hosts. None: all
    /// features of this host.
    pub cpu_baseline: Option<Vec<String>>,
}

/// A port of the guest, reachable on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Where the host listens.
    pub host: SocketAddr,
    /// Where connections go.
    pub guest_port: u16,
}

/// A field that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The field's name in the proto.
    pub field: String,
    /// What is wrong, and what would be right.
    pub description: String,
}

impl Violation {
    /// Puts the two together.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// The images that a VM gets unless the request names others.
#[derive(Debug, Clone)]
pub struct DefaultImages {
    /// The kernel.
    pub kernel: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
}

impl Spec {
    /// Checks a request, all fields of it.
    ///
    /// # Errors
    /// Every field that is wrong.
    pub fn check(request: CreateVmRequest, images: &DefaultImages) -> Result<Self, Vec<Violation>> {
        let mut wrong = Vec::new();
        let name = match request.name.as_str() {
            "" => None,
            text => VmName::parse(text).map_err(|e| wrong.push(Violation::new("name", e.to_string()))).ok(),
        };
        let vcpus = if request.vcpus == 0 { 1 } else { request.vcpus };
        let vcpus = u8::try_from(vcpus).ok().filter(|n| VCPUS.contains(n)).unwrap_or_else(|| {
            wrong.push(out_of_range("vcpus", vcpus, VCPUS.start(), VCPUS.end()));
            1
        });
        let memory_mib = if request.memory_mib == 0 { MEMORY_DEFAULT_MIB } else { request.memory_mib };
        if !MEMORY_MIB.contains(&memory_mib) {
            wrong.push(out_of_range("memory_mib", memory_mib, MEMORY_MIB.start(), MEMORY_MIB.end()));
        }
        check_cmdline(&request.cmdline, &mut wrong);
        let ports = check_ports(&request.ports, &mut wrong);
        let kernel = check_path("kernel", request.kernel, &images.kernel, &mut wrong);
        let rootfs = check_path("rootfs", request.rootfs, &images.rootfs, &mut wrong);
        let cpu_baseline = request.cpu_baseline.map(|baseline| baseline.hosts);
        check_hosts(cpu_baseline.as_deref().unwrap_or_default(), &mut wrong);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Self {
            name,
            vcpus,
            memory_mib,
            cmdline: request.cmdline,
            kernel,
            rootfs,
            ports,
            cold: request.cold,
            cpu_baseline,
        })
    }
}

fn out_of_range(field: &str, value: u32, least: impl ToString, most: impl ToString) -> Violation {
    Violation::new(field, format!("{value} is not between {} and {}", least.to_string(), most.to_string()))
}

fn check_cmdline(cmdline: &str, wrong: &mut Vec<Violation>) {
    if cmdline.len() > CMDLINE_MAX_BYTES {
        let text = format!("{} bytes are more than the {CMDLINE_MAX_BYTES} allowed", cmdline.len());
        wrong.push(Violation::new("cmdline", text));
    }
    // The kernel takes bytes; control characters would end or hide parts of the line.
    if let Some(odd) = cmdline.chars().find(|c| !matches!(c, ' '..='~')) {
        wrong.push(Violation::new("cmdline", format!("{odd:?} is not printable ASCII")));
    }
}

/// Hosts by name or number.
fn check_hosts(hosts: &[String], wrong: &mut Vec<Violation>) {
    let field = "cpu_baseline.hosts";
    if hosts.len() > HOSTS_MAX {
        wrong.push(Violation::new(field, format!("{} are more than the {HOSTS_MAX} allowed", hosts.len())));
    }
    let is_name =
        |host: &&String| !host.is_empty() && host.len() <= HOST_MAX_BYTES && !host.contains(char::is_control);
    if !hosts.iter().all(|host| is_name(&host)) {
        wrong.push(Violation::new(
            field,
            format!("a host's name or id has 1 to {HOST_MAX_BYTES} bytes, and no control characters"),
        ));
    }
}

fn check_path(field: &str, given: String, default: &Path, wrong: &mut Vec<Violation>) -> PathBuf {
    if given.is_empty() {
        return default.to_owned();
    }
    let path = PathBuf::from(given);
    if path.is_relative() {
        let text = format!("{} is relative: vmmd needs an absolute path", path.display());
        wrong.push(Violation::new(field, text));
    }
    path
}

/// Ports of a VM that the host is to publish.
pub fn check_ports(ports: &[PublishedPort], wrong: &mut Vec<Violation>) -> Vec<Port> {
    check_each(ports, wrong, check_port, |port| port.host)
}

/// Where on the host ports are published, whatever they are in the VM.
pub fn check_places(ports: &[PublishedPort], wrong: &mut Vec<Violation>) -> Vec<SocketAddr> {
    check_each(ports, wrong, check_place, |place| *place)
}

fn check_each<T>(
    ports: &[PublishedPort],
    wrong: &mut Vec<Violation>,
    check: fn(&PublishedPort) -> Result<T, (&'static str, String)>,
    place: fn(&T) -> SocketAddr,
) -> Vec<T> {
    if ports.len() > PORTS_MAX {
        wrong.push(Violation::new("ports", format!("{} are more than the {PORTS_MAX} allowed", ports.len())));
        return Vec::new();
    }
    let mut checked = Vec::with_capacity(ports.len());
    for (index, port) in ports.iter().enumerate() {
        match check(port) {
            Ok(port) if checked.iter().any(|other| place(other) == place(&port)) => {
                let field = format!("ports[{index}].host_port");
                wrong.push(Violation::new(field, format!("{} is asked for twice", place(&port))));
            }
            Ok(port) => checked.push(port),
            Err((field, text)) => wrong.push(Violation::new(format!("ports[{index}].{field}"), text)),
        }
    }
    checked
}

fn check_port(port: &PublishedPort) -> Result<Port, (&'static str, String)> {
    Ok(Port { host: check_place(port)?, guest_port: check_number("guest_port", port.guest_port)? })
}

fn check_place(port: &PublishedPort) -> Result<SocketAddr, (&'static str, String)> {
    let address = match port.host_address.as_str() {
        "" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        text => text.parse().map_err(|_| ("host_address", format!("{text:?} is not an IP address")))?,
    };
    Ok(SocketAddr::new(address, check_number("host_port", port.host_port)?))
}

fn check_number(field: &'static str, value: u32) -> Result<u16, (&'static str, String)> {
    match u16::try_from(value) {
        Ok(number) if number > 0 => Ok(number),
        _ => Err((field, format!("{value} is not between 1 and 65535"))),
    }
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
