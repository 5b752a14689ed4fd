//! Several hosts with a scheduler of their own.

use crate::{Outcome, Story, family::require, stage::Stage};
use patina_tests::{host::Host, scheduler::Scheduler};
use std::time::{Duration, Instant};

/// A call that needs the scheduler says that it is away, however slow the machine.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

pub const STORIES: &[Story] =
    &[("cluster::two_hosts_share_a_scheduler_that_is_killed_and_comes_back", shared)];

fn shared(stage: &Stage) -> Outcome {
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
    require(alive.count() == 2, &hosts)?;

    let parent = first.run("cain", &[])?;
    let ticket = parent.sh("gc rt 2 2 1 20000 | awk '{print $2}'")?;
    let listed = second.call(&["ticket", "ls"])?;
    require(listed.contains(&ticket), format!("the other host's scheduler is the same: {listed}"))?;
    require(parent.sh(&format!("gc clone {ticket}"))? == "0", "the clone")?;
    let full = parent.exec(&["gc", "clone", "1"])?;
    require(full.code == 16, format!("a host for two clones has two: {full:?}"))?;

    scheduler.kill()?;
    let killed = Instant::now();
    let away = parent.exec(&["gc", "rt", "1", "1", "1", "100"])?;
    require(away.code == 11 && away.errors().contains("scheduler"), format!("{away:?}"))?;
    let away = first.vmctl(&["clone", "cain"])?;
    require(away.code != 0 && away.errors().contains("scheduler"), format!("{away:?}"))?;
    require(killed.elapsed() < TOLD_WITHIN * 2, format!("told after {:?}", killed.elapsed()))?;
    parent.call(&["true"])?;

    scheduler.start_again()?;
    let status = parent
        .sh(&format!("until gc lt > /tmp/lt; do :; done; grep {ticket} /tmp/lt | awk '{{print $3}}'"))?;
    require(status == "used", status)?;
    parent.call(&["gc", "kill", "--ticket", &ticket])?;
    let again = parent.sh("gc rt 2 2 1 20000 | awk '{print $2}'")?;
    require(again.len() == 36, again)
}
