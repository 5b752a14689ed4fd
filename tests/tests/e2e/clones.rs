//! A guest is cloned from outside. Each copy continues where its parent was, as a separate machine.

use crate::{
    Outcome, Story,
    family::{Family, PARENT, in_each, require, require_eq, with_family},
    network,
    stage::Stage,
};
use libtest_mimic::Failed;
use patina_daemon::kernel;
use patina_tests::{host::Host, leftovers, process, vm::Vm};
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

pub const STORIES: &[Story] = stories![
    with_family(two_clones_and_their_parent_go_on_each_for_itself),
    with_family(the_hosts_oom_killer_takes_clones_first_and_vmmd_last),
    with_family(no_two_of_32_clones_are_alike),
    with_family(sixty_one_clones_answer),
    with_family(memory_written_at_full_speed_is_whole_in_parent_and_clones),
    with_family(a_vmm_killed_in_the_middle_of_a_clone_takes_its_vm_only),
    with_family(a_hook_that_fails_stops_the_clone_with_its_output),
    a_guest_without_its_agent_is_not_cloned_and_not_touched,
    a_guest_of_two_vcpus_is_cloned_with_both,
];

fn two_clones_and_their_parent_go_on_each_for_itself(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    parent.sh("rm -f /tmp/of-*; echo before > /tmp/before")?;
    let pid_before = parent.field_number("pid")?;
    let made = family.clone(2)?;
    let [first, second] = &made[..] else { return Err("not two clones".into()) };
    let all = [parent, first, second];
    who_they_are(&all)?;
    each_for_itself(&all)?;
    require_eq("the parent's process", parent.field_number("pid")?, pid_before)?;

    let tree = family.host.call(&["ls"])?;
    let rows: Vec<&str> = tree.lines().filter(|line| line.contains(PARENT)).collect();
    let drawn = [PARENT.to_owned(), format!("  {}", first.name()), format!("  {}", second.name())];
    require(
        rows.len() == 3 && rows.iter().zip(&drawn).all(|(row, start)| row.starts_with(start)),
        format!("three rows, which begin with {drawn:?}"),
        &tree,
    )?;

    first.kill()?;
    require_eq("how the clone ended", first.wait_ended()?.0, "killed")?;
    for vm in [parent, second] {
        vm.call(&["true"])?;
    }
    let members = parent.call(&["gc", "list"])?;
    require(members.contains("ended"), "gc list shows a member that has ended", &members)
}

fn who_they_are(all: &[&Vm<'_>]) -> Outcome {
    in_each(all, |vm| {
        let vmid = vm.field_number("vmid")?.to_string();
        require_eq(format!("gc vmid in {}", vm.name()), vm.call(&["gc", "vmid"])?, vmid)?;
        let ip = vm.call(&["gc", "my-ip"])?;
        require_eq(format!("gc my-ip in {}", vm.name()), ip, vm.field("ip")?)?;
        let (hostname, mac) = (vm.call(&["hostname"])?, vm.call(&["cat", "/sys/class/net/eth0/address"])?);
        require_eq("hostname and MAC address", (hostname.as_str(), mac), (vm.name(), vm.field("mac")?))
    })?;
    Ok(())
}

fn each_for_itself(all: &[&Vm<'_>]) -> Outcome {
    in_each(all, |vm| {
        require_eq(format!("/tmp/before in {}", vm.name()), vm.call(&["cat", "/tmp/before"])?, "before")?;
        Ok(vm.sh(&format!("echo {0} > /tmp/of-{0}; sync", vm.name()))?)
    })?;
    in_each(all, |vm| {
        let files = vm.sh("cd /tmp && echo of-*")?;
        require_eq(format!("the files of {}", vm.name()), files, format!("of-{}", vm.name()))
    })?;
    Ok(())
}

/// What must be different in every machine, a line each; read by one process, as each takes time.
const WHO: [&str; 6] = [
    "cat",
    "/run/gridcentric/identity",
    "/sys/class/net/eth0/address",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/random/uuid",
];
/// Lines of the identity that all of a family have.
const ALIKE: [&str; 4] = ["prefix=", "gateway=", "family=", "ticket="];

fn no_two_of_32_clones_are_alike(family: &Family<'_>) -> Outcome {
    let clones = family.clone(32)?;
    let all: Vec<_> = clones.iter().chain([&family.parent]).collect();
    let told = in_each(&all, |vm| Ok(vm.call(&WHO)?))?;
    let mut seen = BTreeSet::new();
    for (vm, told) in all.into_iter().zip(told) {
        let own = told.lines().filter(|line| !ALIKE.iter().any(|key| line.starts_with(key)));
        for line in own {
            require(
                seen.insert(line.to_owned()),
                format!("no other machine has what {} has", vm.name()),
                line,
            )?;
        }
        let uuid = vm.field("uuid")?;
        require(seen.insert(uuid.clone()), "no other machine has this UUID", uuid)?;
    }
    // vmid, ip, mac, hostname of the identity, four lines of the kernel's, and the host's UUID.
    require_eq("the number of different lines", seen.len(), 33 * 9)
}

fn sixty_one_clones_answer(family: &Family<'_>) -> Outcome {
    let clones = family.clone(61)?;
    require_eq("the number of clones", clones.len(), 61)?;
    let members = family.parent.call(&["gc", "list"])?;
    let ready = members.lines().filter(|line| line.contains(" ready ")).count();
    require(ready == 62, "62 members are ready", &members)?;
    let some: Vec<_> = clones.iter().step_by(12).collect();
    in_each(&some, |vm| {
        let vmid = vm.field_number("vmid")?.to_string();
        require_eq(format!("gc vmid in {}", vm.name()), vm.call(&["gc", "vmid"])?, vmid)
    })?;
    Ok(())
}

fn memory_written_at_full_speed_is_whole_in_parent_and_clones(family: &Family<'_>) -> Outcome {
    let check = family.parent.install("guest-check")?;
    // The scribbler's exit code waits in a fifo until somebody reads it.
    family.parent.sh("rm -f /tmp/started /tmp/code; mkfifo /tmp/started /tmp/code")?;
    let scribbler = format!("{check} scribble 8 2> /tmp/started > /tmp/sum; cat /tmp/sum > /tmp/code");
    family
        .parent
        .sh(&format!("setsid sh -c '{scribbler}' < /dev/null > /dev/null 2>&1 & head -n 1 /tmp/started"))?;
    let is_whole = |vm: &Vm<'_>| {
        let told = vm.sh("killall -TERM guest-check; cat /tmp/code")?;
        require(told.contains("rounds "), format!("{} counts its rounds", vm.name()), told)
    };
    // Several times: the second and later freezes copy pages while they are written. Those that are
    // through write no more: they would take the CPUs of the others.
    let first = family.clone(1)?;
    let cousins = family.made(&["clone", first[0].name(), "--count", "1", "--timeout", "300"])?;
    first.iter().chain(&cousins).try_for_each(is_whole)?;
    for _ in 1..3 {
        family.clone(1)?.iter().try_for_each(is_whole)?;
    }
    is_whole(&family.parent)
}

/// How often it is tried to catch a clone before it has its identity.
const CATCHES: usize = 8;

fn a_vmm_killed_in_the_middle_of_a_clone_takes_its_vm_only(family: &Family<'_>) -> Outcome {
    for _ in 0..CATCHES {
        let (victim, others) = kill_one_of_six(family)?;
        for vm in &others {
            vm.wait_ready()?;
            vm.call(&["true"])?;
        }
        family.parent.call(&["true"])?;
        let tap = victim.field("tap")?;
        require(!leftovers::interface_exists(&tap), format!("{tap} has been removed"), "it exists")?;
        if victim.field_number("ready_after_us")? == 0 {
            return Ok(());
        }
    }
    Err(format!("all of {CATCHES} clones were ready before they could be killed").into())
}

/// A vmm dies as soon as it is there, its clone executing, without an identity yet if it is caught
/// in time.
fn kill_one_of_six<'a>(family: &Family<'a>) -> Result<(Vm<'a>, Vec<Vm<'a>>), Failed> {
    let made = family.host.json(&["clone", PARENT, "-n", "6", "--no-wait"])?;
    let clones = made["clones"].as_array().ok_or("no clones")?;
    let names = clones.iter().filter_map(|clone| clone["name"].as_str());
    let mut all: Vec<Vm<'a>> = names.map(|name| family.host.vm(name)).collect();
    require(all.len() == 6, "six clones", &made)?;
    let victim = all.pop().ok_or("no clone")?;
    let pid = i32::try_from(victim.field_number("pid")?)?;
    let pid = rustix::process::Pid::from_raw(pid).ok_or("no process")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let (kind, reason) = victim.wait_ended()?;
    require(kind == "vmm_died", "the kind of end is vmm_died", format!("{kind}: {reason}"))?;
    Ok((victim, all))
}

fn a_hook_that_fails_stops_the_clone_with_its_output(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    parent.sh(
        "mkdir -p /etc/gridcentric; printf '#!/bin/sh\\necho not today; exit 3\\n' > /etc/gridcentric/pre-clone; \
         chmod 755 /etc/gridcentric/pre-clone",
    )?;
    let refused = family.host.vmctl(&["clone", PARENT]);
    let inside = parent.exec(&["gc", "clone", "1"]);
    let unasked = family.made(&["clone", PARENT, "--no-prepare", "--timeout", "300"]);
    parent.sh("rm /etc/gridcentric/pre-clone")?;
    let (refused, inside, unasked) = (refused?, inside?, unasked?);
    require(
        refused.code != 0 && refused.errors().contains("not today"),
        "a refusal with the hook's words",
        format!("{refused:?}"),
    )?;
    require(
        inside.code != 0 && inside.errors().contains("not today"),
        "a refusal with the hook's words",
        format!("{inside:?}"),
    )?;
    let [unprepared] = &unasked[..] else { return Err("a guest that is not asked was not cloned".into()) };
    who_they_are(&[parent, unprepared])?;
    require_eq("the clones", family.clone_names()?, [unprepared.name()])?;
    parent.sh(
        "printf '#!/bin/sh\\necho $GC_ROLE $GC_VMID $GC_IP > /tmp/hooked\\n' > /etc/gridcentric/post-clone; \
         chmod 755 /etc/gridcentric/post-clone; rm -f /tmp/hooked; mkfifo /tmp/hooked",
    )?;
    let clones = family.clone(1)?;
    for (vm, role) in [(parent, "parent"), (&clones[0], "clone")] {
        let told = vm.sh("cat /tmp/hooked")?;
        let expected = format!("{role} {} {}", vm.field_number("vmid")?, vm.field("ip")?);
        require_eq(format!("what the hook saw in {}", vm.name()), told, expected)?;
    }
    parent.sh("rm /etc/gridcentric/post-clone")?;
    Ok(())
}

fn a_guest_without_its_agent_is_not_cloned_and_not_touched(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    // It must not have been frozen before, as one is that starts from an image or is kept as one:
    // what it has written since would be copied into the next generation.
    let vm = host.run("silent", &["--cold"])?;
    let told = with_a_stopped_agent(host, &vm);
    vm.remove()?;
    told
}

/// A stopped agent neither answers nor goes away.
fn with_a_stopped_agent(host: &Host, vm: &Vm<'_>) -> Outcome {
    let (ip, port) = (vm.field("ip")?, 8082);
    network::serve(vm, port, network::ECHO)?;
    network::round_trip(&ip, port, 100)?;
    let mut log = host.vmctl_command(&["logs", "-f", vm.name()]).stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(log.stdout.take().ok_or("no pipe")?).lines();
    let stop = "read go < /tmp/go; kill -STOP $(pidof gc-agent); echo the agent is stopped > /dev/console";
    vm.sh(&format!("mkfifo /tmp/go; setsid sh -c '{stop}' < /dev/null > /dev/null 2>&1 &"))?;
    // Nobody hears how this ends.
    let mut last = host.vmctl_command(&["exec", vm.name(), "--", "sh", "-c", "echo > /tmp/go"]).spawn()?;
    let stopped = lines.map_while(Result::ok).any(|line| line.contains("the agent is stopped"));
    log.kill()?;
    last.kill()?;
    log.wait()?;
    last.wait()?;
    require(stopped, "the console says that the agent is stopped", "the end of the log")?;
    let refused = host.vmctl(&["clone", vm.name()])?;
    require(
        refused.code != 0 && refused.errors().contains("agent"),
        "a refusal that names the agent",
        format!("{refused:?}"),
    )?;
    require_eq("the VM's state", vm.field("state")?, "ready")?;
    network::round_trip(&ip, port, 100)?;
    // Whoever does not need the agent has a clone all the same.
    let unasked = host.json(&["clone", vm.name(), "--no-prepare", "--no-wait"])?;
    let clone = host.vm(unasked["clones"][0]["name"].as_str().ok_or("no clone")?);
    let state = clone.field("state")?;
    require(state == "booting", "the clone is booting", format!("{state} {}", clone.field("end_reason")?))?;
    // What it has written since it was ready is copied for it as it goes on, where the kernel notes
    // what is written; nothing is for its clone.
    let (into, beside) = (unasked["copied_kib"].as_u64(), unasked["copied_beside_kib"].as_u64());
    let noted = beside.is_some_and(|kib| kib > 0) || !kernel::notes_writes(&kernel::release()?);
    require(
        into == Some(0) && noted,
        "nothing is copied into the clone, and what was written is copied beside the guest",
        unasked.to_string(),
    )?;
    clone.remove()?;
    network::round_trip(&ip, port, 100)
}

fn a_guest_of_two_vcpus_is_cloned_with_both(stage: &Stage) -> Outcome {
    let shared = stage.guest()?;
    let host = stage.host()?;
    let check = shared.install("guest-check")?;
    let made = host.json(&["clone", shared.name(), "--count", "2", "--timeout", "300"])?;
    let names =
        made["clones"].as_array().ok_or("no clones")?.iter().filter_map(|clone| clone["name"].as_str());
    let clones: Vec<Vm<'_>> = names.map(|name| host.vm(name)).collect();
    let told = clones.iter().chain([&shared]).try_for_each(|vm| {
        require_eq(format!("nproc in {}", vm.name()), vm.call(&["nproc"])?, "2")?;
        let report = vm.call(&[&check, "cpus", "1000"])?;
        require(report.ends_with("cpus 2"), "a report that ends with cpus 2", report)?;
        let report = vm.call(&[&check, "avx", "20"])?;
        require(report.matches("registers kept").count() == 2, "two threads kept their registers", report)
    });
    for clone in &clones {
        clone.remove()?;
    }
    require(clones.len() == 2, "two clones", made)?;
    told.map_err(|failed: Failed| failed)
}

fn the_hosts_oom_killer_takes_clones_first_and_vmmd_last(family: &Family<'_>) -> Outcome {
    // Without the right to it, as in some containers, vmmd goes on; its warning is a test of vmmd's
    // own.
    let may = process::run(
        Command::new("sh").args(["-c", "echo -900 > /proc/self/oom_score_adj"]),
        b"",
        Duration::from_secs(10),
    )?;
    let clones = family.clone(1)?;
    let score = |pid: u64| -> Result<i32, Failed> {
        Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?.trim().parse()?)
    };
    let vmmd = score(family.host.vmmd_pid().ok_or("vmmd does not run")?.into())?;
    let vms = [score(family.parent.field_number("pid")?)?, score(clones[0].field_number("pid")?)?];
    require_eq("oom_score_adj of master and clone", vms, [0, 500])?;
    require(
        (vmmd == -900) == (may.code == 0),
        "oom_score_adj of vmmd is -900 where it may be set",
        format!("{vmmd}; setting it: {may:?}"),
    )
}
