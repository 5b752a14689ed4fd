//! Families over several hosts whose VMs reach each other.

use crate::{
    Outcome, Story,
    family::{require, require_eq},
    stage::Stage,
};
use libtest_mimic::Failed;
use patina_tests::{
    host::{Host, HostError},
    scheduler::Scheduler,
    switch::Switch,
    vm::Vm,
};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};

pub const STORIES: &[Story] = stories![
    vms_of_a_family_reach_each_other_on_three_hosts,
    all_hosts_know_who_has_ended_and_who_is_new,
    hosts_of_which_one_has_no_overlay_make_no_clones_for_each_other,
];

/// How long hosts may take to tell each other what has changed.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// Where VMs answer with their address, by TCP and by UDP; clones, too.
const PORT: &str = "7000";

/// Three hosts on one Ethernet.
struct Hosts {
    hosts: Vec<Host>,
    scheduler: Scheduler,
    switch: Switch,
}

impl Hosts {
    fn start(stage: &Stage, has_overlay: [bool; 3]) -> Result<Self, HostError> {
        let scheduler = Scheduler::start(stage.setup(), &["--overcommit-cpu", "64"])?;
        let switch = Switch::of(3)?;
        let mut hosts = Vec::new();
        for (number, has_overlay) in (0..).zip(has_overlay) {
            let (address, overlay) = (scheduler.address(), switch.address(number));
            let mut options = vec!["--scheduler", &address, "--max-vms", "8", "--warm", "0"];
            if has_overlay {
                options.extend(["--overlay", &overlay]);
            }
            let wrapper = switch.wrapper(number);
            hosts.push(Host::start_in(stage.setup(), &wrapper, &options)?);
        }
        Ok(Self { hosts, scheduler, switch })
    }

    /// Ends all. What the hosts logged is shown if the story failed.
    fn stop(self, told: Outcome) -> Outcome {
        let logs: Vec<_> = self.hosts.iter().map(Host::vmmd_log).collect();
        let stopped: Result<(), _> = self.hosts.into_iter().try_for_each(Host::stop);
        let scheduler = self.scheduler.stop();
        told.map_err(|failed| format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n==\n")))?;
        stopped?;
        Ok(scheduler?)
    }

    /// A VM on the first host, and a clone of it on each host.
    fn family(&self, name: &str) -> Result<Vec<Member>, Failed> {
        let parent = self.hosts[0].run(name, &[])?;
        let check = parent.install("guest-check")?;
        let says = parent.sh(&format!(
            "mkfifo /tmp/served; setsid {check} answer {PORT} /tmp/own < /dev/null > /tmp/served 2>&1 & \
             read line < /tmp/served; echo $line"
        ))?;
        require_eq("what the server says", says, "listening")?;
        let mut members = vec![Member::of(self, 0, name)?];
        members.extend(self.three_clones(name)?);
        let on: Vec<_> = members.iter().map(|member| member.host).collect();
        require_eq("the hosts of a VM and its clones", on, vec![0, 0, 1, 2])?;
        Ok(members)
    }

    /// New clones of a VM of the first host, on those hosts that have the fewest, in their order.
    fn three_clones(&self, name: &str) -> Result<Vec<Member>, Failed> {
        let parent = self.hosts[0].vm(name);
        let before = self.clones_of(name)?;
        let ticket = ticket_anywhere(&self.hosts[0], &parent)?;
        require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;
        let mut clones = self.clones_of(name)?;
        clones.retain(|clone| !before.contains(clone));
        clones.into_iter().map(|(host, name)| Member::of(self, host, &name)).collect()
    }

    fn clones_of(&self, master: &str) -> Result<Vec<(usize, String)>, Failed> {
        let mut clones = Vec::new();
        for (number, host) in self.hosts.iter().enumerate() {
            let listed = host.json(&["ls"])?;
            let names = listed.as_array().into_iter().flatten().filter_map(|vm| vm["name"].as_str());
            let own = names.filter(|name| name.starts_with(&format!("{master}.")));
            clones.extend(own.map(|name| (number, name.to_owned())));
        }
        Ok(clones)
    }

    /// Waits until a host sends what is for a VM to another host, or to none.
    fn until_sent(&self, on: usize, vm: &Member, to: Option<usize>) -> Outcome {
        let begun = Instant::now();
        let device = format!("pt{}.x", vm.network);
        loop {
            let number = u8::try_from(on)?;
            let entries = self.switch.call(number, &["bridge", "fdb", "show", "dev", &device])?;
            let neighbours = self.switch.call(number, &["ip", "neigh", "show", "dev", &device])?;
            let line = entries.lines().find(|line| line.starts_with(&vm.mac) && line.contains(" dst "));
            let is_right = match (line, to) {
                (Some(line), Some(to)) => {
                    let host = self.switch.address(u8::try_from(to)?);
                    line.contains(&format!(" dst {host} ")) && neighbours.contains(&vm.ip)
                }
                (None, None) => !neighbours.contains(&vm.ip) && !entries.contains(&vm.mac),
                _ => false,
            };
            if is_right {
                return Ok(());
            }
            let found = format!("{entries}{neighbours}");
            require(begun.elapsed() < TOLD_WITHIN, format!("host {on} sends {} to {to:?}", vm.ip), found)?;
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A VM of a family.
#[derive(Debug)]
struct Member {
    host: usize,
    name: String,
    ip: String,
    mac: String,
    network: u64,
}

impl Member {
    fn of(hosts: &Hosts, host: usize, name: &str) -> Result<Self, Failed> {
        let vm = hosts.hosts[host].vm(name);
        vm.wait_ready()?;
        let inspected = vm.inspect()?;
        let bridge = inspected["bridge"].as_str().unwrap_or_default();
        let network = bridge.trim_start_matches("pt").parse()?;
        let mac = vm.sh("cat /sys/class/net/eth0/address")?;
        let ip = vm.sh("gc my-ip > /tmp/own; cat /tmp/own")?;
        Ok(Self { host, name: name.to_owned(), ip, mac, network })
    }

    fn vm<'a>(&self, hosts: &'a Hosts) -> Vm<'a> {
        hosts.hosts[self.host].vm(&self.name)
    }

    /// What others answer by TCP and by UDP, within some seconds each.
    fn ask(&self, hosts: &Hosts, others: &[&Self], seconds: &str) -> Result<Vec<String>, HostError> {
        let ips: Vec<_> = others.iter().map(|other| other.ip.as_str()).collect();
        let vm = self.vm(hosts);
        let check = vm.install("guest-check")?;
        let answers = vm.call(&[&[check.as_str(), "ask", seconds, PORT], &ips[..]].concat())?;
        Ok(answers.lines().map(str::to_owned).collect())
    }
}

/// All reach all, themselves left out.
fn all_reach_all(hosts: &Hosts, members: &[Member]) -> Outcome {
    for from in members {
        let others: Vec<_> = members.iter().filter(|to| to.ip != from.ip).collect();
        let expected: Vec<_> = others.iter().map(|other| format!("{0} {0}", other.ip)).collect();
        let what = format!("what {} on host {} hears of {others:?} by TCP and UDP", from.ip, from.host);
        require_eq(what, from.ask(hosts, &others, "60")?, expected)?;
    }
    Ok(())
}

fn vms_of_a_family_reach_each_other_on_three_hosts(stage: &Stage) -> Outcome {
    let hosts = Hosts::start(stage, [true; 3])?;
    let told = reach(&hosts);
    hosts.stop(told)
}

fn reach(hosts: &Hosts) -> Outcome {
    let members = hosts.family("adam")?;
    all_reach_all(hosts, &members)?;

    // A port of a clone is published on the host that the clone runs on.
    let last = &members[3];
    hosts.hosts[2].call(&["publish", &last.name, "0.0.0.0:7777:7000"])?;
    let ask = "import socket, sys; print(socket.create_connection((sys.argv[1], 7777)).recv(99).decode())";
    let heard = hosts.switch.call(0, &["python3", "-c", ask, &hosts.switch.address(2)])?;
    require_eq("what answers at the third host", heard.trim(), last.ip.as_str())?;

    // Another family on the same hosts has its own network.
    let others = hosts.family("noah")?;
    all_reach_all(hosts, &others)?;
    for (from, to) in [(&members[0], &others[3]), (&others[2], &members[3])] {
        require_eq(
            "what a VM of another family answers",
            from.ask(hosts, &[to], "5")?,
            vec!["- -".to_owned()],
        )?;
    }
    Ok(())
}

fn all_hosts_know_who_has_ended_and_who_is_new(stage: &Stage) -> Outcome {
    let mut hosts = Hosts::start(stage, [true; 3])?;
    let told = change(&mut hosts);
    hosts.stop(told)
}

fn change(hosts: &mut Hosts) -> Outcome {
    let mut members = hosts.family("adam")?;
    let killed = members.pop().ok_or("no clone")?;
    for host in [0, 1] {
        hosts.until_sent(host, &killed, Some(2))?;
    }
    killed.vm(hosts).kill()?;
    for host in [0, 1] {
        hosts.until_sent(host, &killed, None)?;
    }
    // It was the last one there: that host has nothing of the family any more.
    let links = hosts.switch.call(2, &["ip", "-o", "link"])?;
    require(!links.contains(&format!("pt{}", killed.network)), "no network of the family", links)?;

    // While a vmmd is away a VM ends elsewhere. The next one hears of it, and its VMs go on.
    hosts.hosts[1].kill_vmmd()?;
    let ended = members.remove(1);
    ended.vm(hosts).kill()?;
    hosts.hosts[1].start_vmmd()?;
    hosts.until_sent(1, &ended, None)?;
    all_reach_all(hosts, &members)?;

    // A clone that a clone makes of itself.
    let before = hosts.clones_of("adam")?;
    let own = members[1].vm(hosts).sh("gc clone 1 > /tmp/number; cat /tmp/number")?;
    require_eq("gc clone in a clone", own, "0")?;
    let mut again = hosts.clones_of("adam")?;
    again.retain(|clone| !before.contains(clone));
    let [(1, again)] = again.as_slice() else { return Err(format!("no clone of a clone: {again:?}").into()) };
    members.push(Member::of(hosts, 1, again)?);
    hosts.until_sent(0, &members[2], Some(1))?;
    all_reach_all(hosts, &members)?;

    // New clones are reached, also where one was before.
    let new = hosts.three_clones("adam")?;
    require(
        new.len() == 3 && new.iter().any(|clone| clone.host == 2),
        "a clone on the third host",
        format!("{new:?}"),
    )?;
    members.extend(new);
    all_reach_all(hosts, &members)
}

fn hosts_of_which_one_has_no_overlay_make_no_clones_for_each_other(stage: &Stage) -> Outcome {
    for has_overlay in [[true, false, false], [false, true, true]] {
        let hosts = Hosts::start(stage, has_overlay)?;
        let told = refused(&hosts, has_overlay[0]);
        hosts.stop(told)?;
    }
    Ok(())
}

fn refused(hosts: &Hosts, caller_has: bool) -> Outcome {
    let parent = hosts.hosts[0].run("adam", &[])?;
    let ticket = ticket_anywhere(&hosts.hosts[0], &parent)?;
    let cloned = hosts.hosts[0].vmctl(&["-o", "json", "clone", "adam", "--ticket", &ticket])?;
    let made: Value = serde_json::from_str(&cloned.text())?;
    let errors: Vec<_> =
        made["clones"].as_array().into_iter().flatten().filter_map(|clone| clone["error"].as_str()).collect();
    let says = if caller_has { "has --overlay, and this one's has not" } else { "has no --overlay, and" };
    let all_say = errors.iter().all(|error| error.contains(says) && error.contains("on all hosts"));
    require(errors.len() == 2 && all_say, "two clones that are refused for --overlay", &made)?;
    for host in &hosts.hosts[1..] {
        require_eq("VMs on another host", host.json(&["ls"])?.to_string(), "[]")?;
    }
    Ok(())
}

/// A ticket for three clones, on as many hosts as have room.
fn ticket_anywhere(host: &Host, parent: &Vm<'_>) -> Result<String, Failed> {
    let family = parent.field("family")?;
    let request = ["ticket", "request", "--max-cpus", "3", "--min-vms", "3", "--family", &family];
    let size = ["--vcpus", "1", "--memory", "256M", "--anywhere", "--policy", "spread"];
    let granted = host.json(&[&request[..], &size[..]].concat())?;
    Ok(granted["id"].as_str().unwrap_or_default().to_owned())
}
