//! Whether what hosts have is what they say: processes, network interfaces, memory and files
//! against the VMs that `vmctl ls` lists, and these against the scheduler's ledger.

use crate::{
    daemon::{HostError, system},
    host::Host,
    hosts::{HOSTS, Hosts},
    leftovers,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

/// The folder of VMs, and that of vmms that are no VM yet, in a state folder.
const VM_FOLDERS: [&str; 2] = ["vms", "warm"];

/// A VM that has not ended, as `vmctl ls` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Its host.
    pub host: u8,
    /// Its name.
    pub name: String,
    family: String,
    vmid: u64,
    pid: u64,
    tap: String,
    bridge: String,
    mac: String,
    ticket: String,
}

/// The VMs of all hosts that have not ended.
///
/// # Errors
/// A host does not answer.
pub fn live(hosts: &Hosts) -> Result<Vec<Live>, HostError> {
    let mut all = Vec::new();
    for (number, host) in (0..HOSTS).zip(&hosts.hosts) {
        let listed = host.json(&["ls"])?;
        let live = listed.as_array().into_iter().flatten().filter(|vm| vm["state"] != "ended");
        all.extend(live.map(|vm| Live::of(number, vm)));
    }
    Ok(all)
}

impl Live {
    /// Its number in its family.
    #[must_use]
    pub fn vmid(&self) -> u64 {
        self.vmid
    }

    fn of(host: u8, vm: &Value) -> Self {
        let text = |field: &str| vm[field].as_str().unwrap_or_default().to_owned();
        let number = |field: &str| vm[field].as_u64().unwrap_or_default();
        Self {
            host,
            name: text("name"),
            family: text("family"),
            vmid: number("vmid"),
            pid: number("pid"),
            tap: text("tap"),
            bridge: text("bridge"),
            mac: text("mac"),
            ticket: text("ticket"),
        }
    }
}

/// Which ways to VMs on other hosts a host may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Those to VMs that run.
    Live,
    /// Also such to clones that were announced and have not come: a host gives up waiting for them
    /// after half a minute.
    Announced,
}

/// All that differs, in words. Nothing: all is as it should be.
///
/// # Errors
/// A host or the scheduler does not answer, or the kernel does not say what there is.
pub fn differences(hosts: &Hosts, ways: Ways) -> Result<Vec<String>, HostError> {
    let live = live(hosts)?;
    let mut found = Differences { words: Vec::new(), ways };
    for (number, host) in (0..HOSTS).zip(&hosts.hosts) {
        let own: Vec<_> = live.iter().filter(|vm| vm.host == number).collect();
        found.of_host(number, host, &own)?;
        found.of_network(hosts, number, &live)?;
    }
    found.of_ledger(hosts, &live)?;
    Ok(found.words)
}

struct Differences {
    words: Vec<String>,
    ways: Ways,
}

impl Differences {
    /// Notes what only one of the two has.
    fn compare(&mut self, what: &str, is: &BTreeSet<String>, should_be: &BTreeSet<String>) {
        let list = |names: Vec<&String>| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ");
        let (more, less) =
            (list(is.difference(should_be).collect()), list(should_be.difference(is).collect()));
        if !(more.is_empty() && less.is_empty()) {
            self.words.push(format!("{what}: too many [{more}], missing [{less}]"));
        }
    }

    /// Processes, memory and files of a host.
    fn of_host(&mut self, number: u8, host: &Host, live: &[&Live]) -> Result<(), HostError> {
        let processes = processes(host).map_err(system("look for processes"))?;
        let with_name = |name: &'static str| processes.iter().filter(move |(_, of)| *of == name);
        let vmms = with_name("vmm").map(|(pid, _)| pid.to_string()).collect();
        let pids = live.iter().map(|vm| vm.pid.to_string()).collect();
        self.compare(&format!("vmm processes of host {number}"), &vmms, &pids);
        if with_name("pager").count() > 1 {
            self.words.push(format!("host {number} has several pagers: {processes:?}"));
        }
        let [vms, warm] = VM_FOLDERS.map(|name| folders(&host.state_dir().join(name)));
        let listed = host.json(&["ls"])?;
        let names = listed.as_array().into_iter().flatten().filter_map(|vm| vm["name"].as_str());
        self.compare(&format!("VM folders of host {number}"), &vms, &names.map(str::to_owned).collect());
        self.compare(&format!("folders of vmms that are no VM on host {number}"), &warm, &BTreeSet::new());
        let problem = |vm: &&Value| vm["problem"].as_str().is_some_and(|problem| !problem.is_empty());
        let problems = listed.as_array().into_iter().flatten().filter(problem);
        self.words.extend(
            problems.map(|vm| format!("host {number}: {} has the problem {}", vm["name"], vm["problem"])),
        );
        // A family has a file from its first call for clones on.
        let mut dead = families(&host.state_dir());
        dead.retain(|family| live.iter().all(|vm| vm.family != *family));
        self.compare(&format!("families of host {number} without a VM"), &dead, &BTreeSet::new());
        self.of_memory(number, host, &processes).map_err(system("look for memory"))
    }

    /// What the pager of a host holds are the layers that are written down, and no other process
    /// than a vmm or the pager keeps a layer that neither of them has.
    fn of_memory(&mut self, number: u8, host: &Host, processes: &[(u32, String)]) -> io::Result<()> {
        let held = |names: &[&str], prefix: &str| -> BTreeSet<String> {
            let of = processes.iter().filter(|(_, name)| names.contains(&name.as_str()));
            of.flat_map(|(pid, _)| memfds(*pid, prefix)).collect()
        };
        let layers = held(&["pager"], "patina-layer");
        let written = written_layers(&host.state_dir().join("pager"))?;
        self.compare(&format!("layers of the pager of host {number}"), &layers, &written);
        let all = held(&["vmmd"], "patina-layer");
        let used = held(&["vmm", "pager"], "patina-layer");
        let only = all.difference(&used).cloned().collect();
        self.compare(&format!("layers that only vmmd of host {number} keeps"), &only, &BTreeSet::new());
        Ok(())
    }

    /// Taps, bridges and VXLAN devices of a host, and where these send what is for a VM.
    fn of_network(&mut self, hosts: &Hosts, number: u8, live: &[Live]) -> Result<(), HostError> {
        let own = || live.iter().filter(|vm| vm.host == number);
        let bridges: BTreeSet<_> = own().map(|vm| vm.bridge.clone()).collect();
        let mut expected: BTreeSet<_> = own().map(|vm| vm.tap.clone()).collect();
        let shown = hosts.on(number, &["ip", "-o", "link", "show"])?;
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        let there: BTreeSet<_> =
            shown.lines().filter_map(name).filter(|name| name.starts_with("pt")).collect();
        for bridge in &bridges {
            let elsewhere: BTreeMap<_, _> = live
                .iter()
                .filter(|vm| vm.host != number && vm.bridge == *bridge)
                .map(|vm| (vm.mac.clone(), hosts.address(vm.host)))
                .collect();
            let vxlan = format!("{bridge}.x");
            if there.contains(&vxlan) {
                let entries = hosts.on(number, &["bridge", "fdb", "show", "dev", &vxlan])?;
                let words = |(mac, to): (&String, &String)| format!("{mac}>{to}");
                let needed: BTreeSet<_> = elsewhere.iter().map(words).collect();
                let mut there = ways(&entries);
                if self.ways == Ways::Announced {
                    there.retain(|way| needed.contains(way));
                }
                self.compare(&format!("ways of host {number} to VMs elsewhere"), &there, &needed);
            }
            // It stays as long as the family is here, also when no VM is elsewhere any more.
            if !elsewhere.is_empty() || there.contains(&vxlan) {
                expected.insert(vxlan);
            }
        }
        expected.extend(bridges);
        self.compare(&format!("interfaces of host {number}"), &there, &expected);
        Ok(())
    }

    /// The scheduler's tickets and hosts.
    fn of_ledger(&mut self, hosts: &Hosts, live: &[Live]) -> Result<(), HostError> {
        let clones = || live.iter().filter(|vm| vm.vmid > 0);
        let mut of_ticket = BTreeMap::<String, u64>::new();
        clones().for_each(|vm| *of_ticket.entry(vm.ticket.clone()).or_default() += 1);
        let words = |(ticket, live): (String, u64)| format!("{ticket}={live}");
        let tickets = hosts.json(&["ticket", "ls"])?;
        let counted = tickets.as_array().into_iter().flatten().filter_map(|ticket| {
            let live = ticket["live"].as_u64().filter(|live| *live > 0)?;
            Some((ticket["id"].as_str()?.to_owned(), live))
        });
        self.compare(
            "live clones of the scheduler's tickets",
            &counted.map(words).collect(),
            &of_ticket.into_iter().map(words).collect(),
        );
        let granted = tickets.as_array().into_iter().flatten().filter(|ticket| ticket["state"] == "granted");
        let granted = granted.filter_map(|ticket| ticket["id"].as_str().map(str::to_owned)).collect();
        self.compare("tickets that wait for a call", &granted, &BTreeSet::new());
        let listed = hosts.json(&["host", "ls"])?;
        for (number, host) in (0..HOSTS).zip(&hosts.hosts) {
            let id = id_of(host);
            let known = listed.as_array().into_iter().flatten().find(|known| known["id"] == id.as_str());
            let state = known.map(|known| known["state"].clone()).unwrap_or_default();
            let held = known.and_then(|known| known["held_vms"].as_u64()).unwrap_or_default();
            let should_be = clones().filter(|vm| vm.host == number).count() as u64;
            if state != "up" || held != should_be {
                self.words
                    .push(format!("host {number} is {state} with {held} clones held, {should_be} live"));
            }
        }
        Ok(())
    }
}

/// The number of a host, as the scheduler knows it.
#[must_use]
pub fn id_of(host: &Host) -> String {
    let text = fs::read_to_string(host.state_dir().join("host-id")).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

/// The processes of a host, and their names.
///
/// # Errors
/// `/proc` cannot be read.
pub fn processes(host: &Host) -> io::Result<Vec<(u32, String)>> {
    let pids = leftovers::pids_of(&host.state_dir())?;
    Ok(pids.into_iter().map(|pid| (pid, leftovers::name_of(pid))).collect())
}

/// How many layers the pager of a host has.
///
/// # Errors
/// `/proc` cannot be read.
pub fn layers(host: &Host) -> io::Result<usize> {
    let pagers = processes(host)?.into_iter().filter(|(_, name)| name == "pager");
    Ok(pagers.flat_map(|(pid, _)| memfds(pid, "patina-layer")).collect::<BTreeSet<_>>().len())
}

/// The files of memory whose names begin so that a process holds open, by their inodes.
fn memfds(pid: u32, prefix: &str) -> BTreeSet<String> {
    // A process may end while we look at it: what it had is gone.
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_wanted = |file: &fs::DirEntry| {
        let target = fs::read_link(file.path()).unwrap_or_default();
        target.to_string_lossy().starts_with(&format!("/memfd:{prefix}"))
    };
    let inode = |file: fs::DirEntry| {
        use std::os::unix::fs::MetadataExt as _;
        Some(fs::metadata(file.path()).ok()?.ino().to_string())
    };
    files.filter(is_wanted).filter_map(inode).collect()
}

/// The memfds of the layers that a vmmd has written down for its pager, by their inodes.
fn written_layers(folder: &Path) -> io::Result<BTreeSet<String>> {
    let mut layers = BTreeSet::new();
    for file in fs::read_dir(folder).into_iter().flatten() {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Ok(text) = fs::read_to_string(&path)
            && let Ok(saved) = serde_json::from_str::<Value>(&text)
        {
            layers.insert(saved["inode"].to_string());
        }
    }
    Ok(layers)
}

fn folders(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The families of which a state folder has a file.
fn families(state: &Path) -> BTreeSet<String> {
    let name = |name: String| name.split('.').next().unwrap_or_default().to_owned();
    folders(&state.join("families")).into_iter().map(name).collect()
}

/// The addresses of VMs elsewhere, and to which host a VXLAN device sends them.
fn ways(entries: &str) -> BTreeSet<String> {
    let way = |line: &str| {
        let mut words = line.split_whitespace();
        let mac = words.next()?;
        let to = words.skip_while(|word| *word != "dst").nth(1)?;
        Some(format!("{mac}>{to}"))
    };
    entries.lines().filter_map(way).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_side_has_is_a_difference() {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut found = Differences { words: Vec::new(), ways: Ways::Live };
        found.compare("taps", &set(&["a", "b"]), &set(&["b", "c"]));
        found.compare("bridges", &set(&["a"]), &set(&["a"]));
        assert_eq!(found.words, ["taps: too many [a], missing [c]"]);
    }

    #[test]
    fn ways_are_those_entries_that_have_a_host() {
        let entries = "06:00:00:00:00:02 vlan 1 master pt1 permanent\n\
                       06:00:00:00:00:01 dst 192.0.2.3 self permanent\n";
        assert_eq!(ways(entries), BTreeSet::from(["06:00:00:00:00:01>192.0.2.3".to_owned()]));
    }
}
