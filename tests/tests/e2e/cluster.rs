//! Several hosts with one scheduler.

use crate::{
    Outcome, Story,
    family::{require, require_eq},
    stage::Stage,
};
use patina_tests::{host::Host, scheduler::Scheduler};
use std::time::{Duration, Instant};

/// A call that needs the scheduler says that it is away, however slow the machine.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

pub const STORIES: &[Story] = stories![
    two_hosts_share_a_scheduler_that_is_killed_and_comes_back,
    no_vm_misses_a_barrier_when_the_scheduler_and_vmmd_are_killed,
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
