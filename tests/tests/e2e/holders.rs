//! Another host that has a clone's memory takes the place of one that fails.

use crate::{
    Outcome, Story,
    elsewhere::{Hosts, ticket_over_all},
    family::{require, require_eq},
    stage::Stage,
};
use libtest_mimic::Failed;
use patina_tests::{audit, host::Host};
use rustix::{
    fs::{SealFlags, fcntl_get_seals},
    process::{Pid, Signal, kill_process},
};
use std::{
    fs, thread,
    time::{Duration, Instant},
};

pub const STORIES: &[Story] =
    stories![a_clone_goes_on_with_another_host_s_memory_when_its_parent_s_host_dies];

/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

fn a_clone_goes_on_with_another_host_s_memory_when_its_parent_s_host_dies(stage: &Stage) -> Outcome {
    let mut hosts = Hosts::start(stage)?;
    let told = takes_over(&mut hosts);
    let logs: Vec<_> = hosts.hosts.iter().map(Host::vmmd_log).collect();
    hosts.stop()?;
    told.map_err(|failed| format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n==\n")).into())
}

/// Whether a host's pager has layers, and all of each.
fn has_all(host: &Host) -> Result<bool, Failed> {
    let processes = audit::processes(host)?;
    let Some((pager, _)) = processes.iter().find(|(_, name)| name == "pager") else { return Ok(false) };
    let files = fs::read_dir(format!("/proc/{pager}/fd"))?.flatten();
    let is_layer = |path: &std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("memfd:patina-layer"))
    };
    let layers: Vec<_> = files.map(|file| file.path()).filter(is_layer).collect();
    let is_sealed = |path: &std::path::PathBuf| {
        let seals = fs::File::open(path).ok().and_then(|file| fcntl_get_seals(&file).ok());
        seals.is_some_and(|seals| seals.contains(SealFlags::WRITE))
    };
    Ok(!layers.is_empty() && layers.iter().all(is_sealed))
}

/// Looks until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool, Failed>) -> Outcome {
    let begun = Instant::now();
    while !is_so()? {
        require(begun.elapsed() < PATIENCE, what, "it does not happen")?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn has_clone(host: &Host) -> bool {
    let vms = fs::read_dir(host.state_dir().join("vms")).into_iter().flatten().flatten();
    vms.into_iter().any(|vm| vm.file_name().to_string_lossy().starts_with("adam."))
}

fn takes_over(hosts: &mut Hosts) -> Outcome {
    let [first, second, third] = &hosts.hosts;
    let parent = first.run("adam", &[])?;
    parent.sh("dd if=/dev/urandom of=/tmp/before bs=64k count=64 2> /dev/null")?;
    let before = parent.sh("md5sum < /tmp/before")?;
    let ticket = ticket_over_all(first, &parent)?;
    let vmmd = third.vmmd_pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let vmmd = vmmd.ok_or("vmmd runs on the third host")?;

    // The third host takes the call only when the second one has all of the memory.
    kill_process(vmmd, Signal::STOP)?;
    thread::scope(|scope| {
        let call = ["clone", "adam", "--ticket", &ticket];
        let cloned = scope.spawn(move || first.vmctl(&call).map_err(|error| error.to_string()));
        let filled = until("the second host has all of the memory", || has_all(second));
        kill_process(vmmd, Signal::CONT)?;
        filled?;
        // It begins to fetch the memory: its parent's host dies with all that runs there.
        let doomed = audit::processes(first)?;
        until("a clone on the third host", || Ok(has_clone(third)))?;
        let mut pids = doomed.iter().filter_map(|(pid, _)| Pid::from_raw(i32::try_from(*pid).ok()?));
        pids.try_for_each(|pid| kill_process(pid, Signal::KILL))?;
        // It cannot have worked.
        let cloned = cloned.join().map_err(|_| "a thread ended")??;
        require(cloned.code != 0, "a call that was cut off", format!("{cloned:?}"))
    })?;
    let vms = Hosts::clones_of(&hosts.hosts[1..], "adam")?;
    require(vms.len() == 2, "two clones on two hosts", format!("{vms:?}"))?;
    for vm in &vms {
        vm.wait_ready()?;
        require_eq("a file of the parent", vm.sh("md5sum < /tmp/before")?, before.clone())?;
    }
    until("all of the memory on the third host", || has_all(&hosts.hosts[2]))?;
    let log = hosts.hosts[2].vmmd_log();
    require(log.contains("takes the place"), "the second host took over", &log)?;
    hosts.hosts[0].kill_vmmd()?;
    Ok(hosts.hosts[0].start_vmmd()?)
}
