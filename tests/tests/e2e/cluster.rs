//! Several hosts with one scheduler.

use crate::{
    Outcome, Story,
    family::{require, require_eq},
    stage::Stage,
};
use patina_tests::{
    host::{Host, HostError},
    link::Link,
    scheduler::Scheduler,
};
use serde_json::Value;
use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// A call that needs the scheduler says that it is away, however slow the machine.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// How long a host may take to be suspect, or to be back.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

pub const STORIES: &[Story] = stories![
    two_hosts_share_a_scheduler_that_is_killed_and_comes_back,
    no_vm_misses_a_barrier_when_the_scheduler_and_vmmd_are_killed,
    a_host_that_is_cut_off_keeps_all_until_it_is_fenced,
];

fn two_hosts_share_a_scheduler_that_is_killed_and_comes_back(stage: &Stage) -> Outcome {
    let mut scheduler =
        Scheduler::start(stage.setup(), &["--overcommit-cpu", "64", "--overcommit-memory", "4"])?;
    let address = scheduler.address();
    let start = |most| Host::start_with(stage.setup(), &["--scheduler", &address, "--max-vms", most]);
    let (first, second) = (start("2")?, start("8")?);
    let told = one_ledger(&first, &second, &mut scheduler);
    let stopped = first.stop().and(second.stop());
    told?;
    stopped?;
    Ok(scheduler.stop()?)
}

fn one_ledger(first: &Host, second: &Host, scheduler: &mut Scheduler) -> Outcome {
    let hosts = first.json(&["hosts"])?;
    let alive = hosts.as_array().ok_or("no list of hosts")?.iter().filter(|host| host["alive"] == true);
    require(alive.count() == 2, "two hosts are alive", &hosts)?;

    let parent = first.run("cain", &[])?;
    let ticket = parent.sh("gc rt 2 2 1 20000 | awk '{print $2}'")?;
    let listed = second.call(&["ticket", "ls"])?;
    require(listed.contains(&ticket), format!("the other host's scheduler lists {ticket}"), listed)?;
    require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;
    let full = parent.exec(&["gc", "clone", "1"])?;
    require(full.code == 16, "exit code 16 for a third clone on a host for two", format!("{full:?}"))?;

    scheduler.kill()?;
    let killed = Instant::now();
    let away = parent.exec(&["gc", "rt", "1", "1", "1", "100"])?;
    require(
        away.code == 11 && away.errors().contains("scheduler"),
        "exit code 11, and an error that names the scheduler",
        format!("{away:?}"),
    )?;
    let away = first.vmctl(&["clone", "cain"])?;
    require(
        away.code != 0 && away.errors().contains("scheduler"),
        "an error that names the scheduler",
        format!("{away:?}"),
    )?;
    let elapsed = killed.elapsed();
    require(
        elapsed < TOLD_WITHIN * 2,
        format!("both answers within {:?}", TOLD_WITHIN * 2),
        format!("{elapsed:?}"),
    )?;
    parent.call(&["true"])?;

    scheduler.start_again()?;
    let status = parent
        .sh(&format!("until gc lt > /tmp/lt; do :; done; grep {ticket} /tmp/lt | awk '{{print $3}}'"))?;
    require_eq("the ticket's status", status, "used")?;
    parent.call(&["gc", "kill", "--ticket", &ticket])?;
    let again = parent.sh("gc rt 2 2 1 20000 | awk '{print $2}'")?;
    require(again.len() == 36, "a ticket, which is 36 characters long", again)
}

fn no_vm_misses_a_barrier_when_the_scheduler_and_vmmd_are_killed(stage: &Stage) -> Outcome {
    let mut scheduler = Scheduler::start(stage.setup(), &["--overcommit-cpu", "64"])?;
    let address = scheduler.address();
    let mut host = Host::start_with(stage.setup(), &["--scheduler", &address])?;
    let told = meet_again(&mut host, &mut scheduler);
    host.stop()?;
    told?;
    Ok(scheduler.stop()?)
}

/// Whoever is killed and when: each VM comes from one meeting after the other, once.
fn meet_again(host: &mut Host, scheduler: &mut Scheduler) -> Outcome {
    host.run("levi", &[])?;
    let ticket = host.vm("levi").sh("gc rt 2 2 1 20000 | awk '{print $2}'")?;
    require_eq("gc clone in the parent", host.vm("levi").sh(&format!("gc clone {ticket}"))?, "0")?;
    let members = host.vm("levi").sh("gc list | awk '$1 > 0 {print $1}'")?;
    let names: Vec<String> = members.lines().map(|vmid| format!("levi.{vmid}")).collect();
    require(names.len() == 2, "two clones", &members)?;
    // A program that tries again until it has met the others.
    let meet =
        |of: &str| format!("until gc sync {of} 60000 --json >> /tmp/met 2>> /tmp/failed; do sleep 1; done");
    for name in &names {
        let comes = format!("for round in 1 2 3 4 5; do {}; done", meet(&ticket));
        host.vm(name).sh(&format!("setsid sh -c '{comes}' < /dev/null > /dev/null 2>&1 &"))?;
    }
    let begin = |host: &Host, round: u32| {
        let comes = format!("{}; echo > /tmp/done-{round}", meet(&ticket));
        host.vm("levi").sh(&format!("setsid sh -c '{comes}' < /dev/null > /dev/null 2>&1 &"))
    };
    let come = |host: &Host, round: u32| {
        host.vm("levi").sh(&format!("until test -e /tmp/done-{round}; do sleep 1; done"))
    };
    begin(host, 1)?;
    come(host, 1)?;
    // While two wait for the third one.
    scheduler.kill()?;
    scheduler.start_again()?;
    begin(host, 2)?;
    come(host, 2)?;
    host.kill_vmmd()?;
    host.start_vmmd()?;
    begin(host, 3)?;
    come(host, 3)?;
    // While all of them are about to meet.
    begin(host, 4)?;
    scheduler.kill()?;
    scheduler.start_again()?;
    come(host, 4)?;
    begin(host, 5)?;
    host.kill_vmmd()?;
    host.start_vmmd()?;
    come(host, 5)?;
    for name in names.iter().map(String::as_str).chain(["levi"]) {
        let met = host.vm(name).sh(
            "until test \"$(wc -l < /tmp/met)\" = 5; do sleep 1; done; cat /tmp/met; echo; cat /tmp/failed",
        )?;
        let rounds: Vec<_> = met.lines().take(5).collect();
        let all = (1..=5).all(|round| {
            rounds.get(round - 1).is_some_and(|line| line.contains(&format!("\"round\":{round}")))
        });
        require(all, format!("{name} meets in rounds 1 to 5"), met)?;
    }
    host.vm("levi").call(&["gc", "kill", "--ticket", &ticket])?;
    Ok(())
}

fn a_host_that_is_cut_off_keeps_all_until_it_is_fenced(stage: &Stage) -> Outcome {
    let scheduler = Scheduler::start(stage.setup(), &["--lease", "2s", "--overcommit-cpu", "64"])?;
    let links = [Link::to(&scheduler.socket())?, Link::to(&scheduler.socket())?];
    let start =
        |link: &Link| Host::start_apart(stage.setup(), &["--scheduler", &link.address(), "--insecure"]);
    let hosts = [start(&links[0])?, start(&links[1])?];
    let told = cut_twice(&hosts, &links, &Watcher { host: &hosts[1], scheduler: scheduler.address() });
    let stopped = hosts.map(Host::stop);
    told?;
    stopped.into_iter().collect::<Result<(), _>>()?;
    Ok(scheduler.stop()?)
}

/// An operator beside the scheduler: cuts do not reach there.
struct Watcher<'a> {
    host: &'a Host,
    scheduler: String,
}

impl Watcher<'_> {
    fn call(&self, arguments: &[&str]) -> Result<String, HostError> {
        self.host.call(&[&["--scheduler", &self.scheduler], arguments].concat())
    }

    fn json(&self, arguments: &[&str]) -> Result<Value, HostError> {
        self.host.json(&[&["--scheduler", &self.scheduler], arguments].concat())
    }

    fn host(&self, id: &str) -> Result<Value, HostError> {
        let hosts = self.json(&["host", "ls"])?;
        let hosts = hosts.as_array().into_iter().flatten();
        Ok(hosts.into_iter().find(|host| host["id"] == id).cloned().unwrap_or_default())
    }

    fn until(&self, id: &str, state: &str) -> Outcome {
        let begun = Instant::now();
        loop {
            let host = self.host(id)?;
            if host["state"] == state {
                return Ok(());
            }
            require(begun.elapsed() < SEEN_WITHIN, format!("host {id} is {state}"), &host)?;
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn state(&self, ticket: &str) -> Result<String, HostError> {
        let ticket = self.json(&["ticket", "inspect", ticket])?;
        Ok(ticket["state"].as_str().unwrap_or_default().to_owned())
    }

    fn states(&self, tickets: [&str; 3], expected: [&str; 3], when: &str) -> Outcome {
        for (ticket, expected) in tickets.into_iter().zip(expected) {
            require_eq(when, self.state(ticket)?, expected)?;
        }
        Ok(())
    }
}

fn cut_twice(hosts: &[Host; 2], links: &[Link; 2], watcher: &Watcher<'_>) -> Outcome {
    let ids = [host_id(&hosts[0])?, host_id(&hosts[1])?];
    for number in 0..2 {
        links[number].plug(hosts[number].vmmd_pid().ok_or("vmmd does not run")?)?;
        watcher.until(&ids[number], "up")?;
    }
    let id = ids[0].as_str();
    let parent = hosts[0].run("noah", &[])?;
    let mut tickets = Vec::new();
    for clones in [true, true, false] {
        let ticket = parent.sh("gc rt 1 1 1 20000 | awk '{print $2}'")?;
        if clones {
            require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;
        }
        tickets.push(ticket);
    }
    let [first, second, unused] = [0, 1, 2].map(|number: usize| tickets[number].as_str());
    let clones = ["noah.1", "noah.2"].map(|name| hosts[0].vm(name));
    for clone in &clones {
        clone.wait_ready()?;
        clone.sh("echo here > /tmp/before")?;
    }
    let family = parent.field("family")?;

    links[0].cut()?;
    watcher.until(id, "suspect")?;
    let size = ["--family", &family, "--vcpus", "1", "--memory", "64M", "--anywhere"];
    let request = [&["ticket", "request", "--max-cpus", "1", "--min-vms", "1"], &size[..]].concat();
    let granted = watcher.json(&request)?;
    require_eq(
        "the host of a new ticket",
        granted["placements"][0]["host_id"].as_str().unwrap_or(""),
        &ids[1],
    )?;
    watcher.states([first, second, unused], ["used", "used", "granted"], "a ticket on a suspect host")?;
    keep(&clones)?;

    links[0].mend()?;
    watcher.until(id, "up")?;
    watcher.states([first, second, unused], ["used", "used", "granted"], "a ticket when the host is back")?;
    keep(&clones)?;

    links[0].cut()?;
    watcher.until(id, "suspect")?;
    watcher.call(&["host", "fence", id])?;
    watcher.states([first, second, unused], ["fenced"; 3], "a ticket on a fenced host")?;
    let host = watcher.host(id)?;
    require(host["state"] == "lost" && host["held_vms"] == 0, "a lost host of which nothing is held", &host)?;
    // The first clone is not wanted any more. It does not know that.
    watcher.call(&["kill", "--ticket", first])?;
    keep(&clones)?;

    links[0].mend()?;
    watcher.until(id, "up")?;
    hosts[0].call(&["wait", "noah.1", "--until", "ended", "--timeout", "60"])?;
    require_eq("the file in the clone that is kept", clones[1].sh("cat /tmp/before")?, "here")?;
    require_eq("the ticket of the clone that is kept", watcher.state(second)?, "used")?;
    require_eq("the ticket that was not used", watcher.state(unused)?, "fenced")
}

/// The clones go on.
fn keep(clones: &[patina_tests::vm::Vm<'_>]) -> Outcome {
    for clone in clones {
        require_eq("the file in a clone", clone.sh("cat /tmp/before")?, "here")?;
    }
    Ok(())
}

fn host_id(host: &Host) -> Result<String, libtest_mimic::Failed> {
    let text = fs::read_to_string(host.state_dir().join("host-id"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
