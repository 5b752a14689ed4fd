//! A guest is cloned: each copy goes on where it stood, as a machine of its own.

use crate::{
    Outcome, Story,
    stage::{Stage, explain},
};
use libtest_mimic::Failed;
use patina_tests::{host::Host, vm::Vm};
use serde_json::Value;
use std::collections::BTreeSet;

pub const STORIES: &[Story] = &[("clones::two_clones_and_their_parent_go_on_each_for_itself", two_clones)];

/// The parent's name.
const PARENT: &str = "adam";

fn two_clones(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    host.run(PARENT, &[]).map_err(|error| format!("{error}\n{}", explain(host, PARENT)))?;
    let told = clone_and_look(host).map_err(|failed| {
        let logs = [PARENT, "adam.1", "adam.2"].map(|name| format!("== {name}\n{}", explain(host, name)));
        Failed::from(format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n")))
    });
    for name in [PARENT, "adam.1", "adam.2"] {
        // One that was never made is not there to be removed.
        if host.vmctl(&["inspect", name])?.code == 0 {
            host.vm(name).remove()?;
        }
    }
    told
}

fn clone_and_look(host: &Host) -> Outcome {
    let parent = host.vm(PARENT);
    parent.sh("echo before > /tmp/before")?;
    let pid_before = parent.field_number("pid")?;
    let made = host.json(&["clone", PARENT, "--count", "2", "--timeout", "120"])?;
    let clones = made["clones"].as_array().ok_or("no clones")?;
    let seen: Vec<(&Value, &Value, &Value)> =
        clones.iter().map(|clone| (&clone["vmid"], &clone["name"], &clone["state"])).collect();
    let expected =
        [(1, "adam.1"), (2, "adam.2")].map(|(vmid, name)| (vmid.into(), name.into(), "ready".into()));
    require(seen.iter().map(|(a, b, c)| (*a, *b, *c)).eq(expected.iter().map(|(a, b, c)| (a, b, c))), &made)?;
    require(made["freeze_us"].as_u64().is_some_and(|us| us > 0), &made)?;

    let family = [host.vm(PARENT), host.vm("adam.1"), host.vm("adam.2")];
    who_they_are(&family)?;
    each_for_itself(&family)?;
    require(parent.field_number("pid")? == pid_before, "the parent's process is another")?;

    let tree = host.call(&["ls"])?;
    let rows: Vec<&str> = tree.lines().filter(|line| line.contains(PARENT)).collect();
    let drawn = [PARENT, "  adam.1", "  adam.2"];
    require(rows.len() == 3 && rows.iter().zip(drawn).all(|(row, start)| row.starts_with(start)), &tree)?;

    let [parent, first, second] = family;
    first.kill()?;
    require(first.wait_ended()?.0 == "killed", "the clone was not killed")?;
    for vm in [&parent, &second] {
        vm.call(&["true"])?;
    }
    let members = parent.call(&["gc", "list"])?;
    require(members.lines().count() == 3 && members.contains("ended"), &members)?;
    parent.kill()?;
    require(second.call(&["gc", "vmid"])? == "2", "a clone does not outlive its parent")
}

fn who_they_are(family: &[Vm<'_>; 3]) -> Outcome {
    let mut distinct = BTreeSet::new();
    for (vmid, vm) in family.iter().enumerate() {
        require(vm.call(&["gc", "vmid"])? == vmid.to_string(), vm.name())?;
        let ip = vm.call(&["gc", "my-ip"])?;
        require(ip == vm.field("ip")?, &ip)?;
        let (hostname, mac) = (vm.call(&["hostname"])?, vm.call(&["cat", "/sys/class/net/eth0/address"])?);
        require(hostname == vm.name() && mac == vm.field("mac")?, format!("{hostname} {mac}"))?;
        let random = vm.call(&["head", "-c", "16", "/proc/sys/kernel/random/uuid"])?;
        distinct.extend([ip, hostname, mac, random, vm.field("uuid")?]);
    }
    require(distinct.len() == 15, format!("not distinct: {distinct:?}"))
}

fn each_for_itself(family: &[Vm<'_>; 3]) -> Outcome {
    for vm in family {
        require(vm.call(&["cat", "/tmp/before"])? == "before", "the past is not the same")?;
        vm.sh(&format!("echo {0} > /tmp/of-{0}; sync", vm.name()))?;
    }
    for vm in family {
        let files = vm.sh("cd /tmp && echo of-*")?;
        require(files == format!("of-{}", vm.name()), format!("{} sees {files}", vm.name()))?;
    }
    Ok(())
}

/// Fails with what was seen. The logs of all guests are added to a failure: no panic takes them away.
fn require(holds: bool, seen: impl std::fmt::Display) -> Outcome {
    if holds { Ok(()) } else { Err(format!("not as it should be: {seen}").into()) }
}
