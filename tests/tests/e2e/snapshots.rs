//! VMs are kept on the disk and restored: as new families, with everything that was in their
//! memory.

use crate::{
    Outcome, Story,
    family::{Family, PARENT, require, require_eq, with_family},
    network::{ECHO, end_servers, round_trip, serve},
    stage::{Stage, explain, free_port},
};
use libtest_mimic::Failed;
use patina_tests::{host::Host, leftovers, vm::Vm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

pub const STORIES: &[Story] = stories![
    with_family(a_program_counts_on_in_the_vm_that_was_kept_and_in_two_restored_ones),
    with_family(restored_vms_are_a_family_of_their_own_and_no_two_are_alike),
    with_family(a_second_snapshot_writes_only_the_newest_layer),
    with_family(elapsed_time_stands_still_in_a_snapshot),
    with_family(memory_is_right_while_it_arrives_and_the_pager_is_killed_again_and_again),
    snapshots_outlive_their_vm_and_vmmd,
];

/// How old a snapshot is whose VMs must not notice it.
const AGE: Duration = Duration::from_secs(16);

/// Counts the lines that it reads, in memory alone, and tells how many there were.
const COUNTER: &str = "exec 3<> /tmp/count-in 4<> /tmp/count-out; n=0; \
     while read -r line <&3; do n=$((n+1)); echo $n >&4; done";

fn start_counter(vm: &Vm<'_>) -> Outcome {
    vm.sh("rm -f /tmp/count-in /tmp/count-out; mkfifo /tmp/count-in /tmp/count-out")?;
    vm.sh(&format!("setsid sh -c '{COUNTER}' < /dev/null > /dev/null 2>&1 &"))?;
    Ok(())
}

/// Has the program in a VM count one further; how far it is.
fn count(vm: &Vm<'_>) -> Result<u32, Failed> {
    Ok(vm.sh("echo next > /tmp/count-in; head -n 1 /tmp/count-out")?.parse()?)
}

fn stop_counter(vm: &Vm<'_>) -> Outcome {
    vm.sh("kill $(fuser /tmp/count-in 2>/dev/null) 2>/dev/null; rm -f /tmp/count-in /tmp/count-out")?;
    Ok(())
}

/// A folder of the test's own, and the snapshots in it.
pub struct Shelf(tempfile::TempDir);

impl Shelf {
    pub fn new() -> Result<Self, Failed> {
        Ok(Self(tempfile::tempdir()?))
    }

    pub fn place(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

pub fn text(path: &Path) -> Result<&str, Failed> {
    path.to_str().ok_or_else(|| "a path that is no UTF-8".into())
}

/// Keeps a VM; what `vmctl` says of it.
pub fn keep(host: &Host, vm: &Vm<'_>, place: &Path) -> Result<Value, Failed> {
    Ok(host.json(&["snapshot", "create", vm.name(), text(place)?])?)
}

/// The VMs that were restored, all ready.
pub fn restore<'a>(host: &'a Host, place: &Path, arguments: &[&str]) -> Result<Vec<Vm<'a>>, Failed> {
    let made =
        host.json(&[&["snapshot", "restore", text(place)?, "--timeout", "300"], arguments].concat())?;
    let vms = made["vms"].as_array().ok_or("no VMs")?;
    vms.iter()
        .map(|vm| match (&vm["name"], &vm["state"]) {
            (Value::String(name), Value::String(state)) if state == "ready" => Ok(host.vm(name)),
            _ => Err(format!("a restored VM is not ready: {vm}").into()),
        })
        .collect()
}

/// Ends the VMs whatever the story has found; a failure tells what they printed.
pub fn and_remove(host: &Host, vms: &[Vm<'_>], told: Outcome) -> Outcome {
    let told = told.map_err(|failed| {
        let logs: Vec<String> =
            vms.iter().map(|vm| format!("== {}\n{}", vm.name(), explain(host, vm.name()))).collect();
        Failed::from(format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n")))
    });
    for vm in vms.iter().rev() {
        vm.remove()?;
    }
    told
}

fn a_program_counts_on_in_the_vm_that_was_kept_and_in_two_restored_ones(family: &Family<'_>) -> Outcome {
    let (host, parent, shelf) = (family.host, &family.parent, Shelf::new()?);
    start_counter(parent)?;
    for expected in 1..=3 {
        require_eq("the count", count(parent)?, expected)?;
    }
    let pid = parent.field_number("pid")?;
    let place = shelf.place("base");
    let kept = keep(host, parent, &place)?;
    require(kept["pause_us"].as_u64().is_some_and(|us| us > 0), "a pause", &kept)?;
    require_eq("the count in the VM that was kept", count(parent)?, 4)?;
    require_eq("its process", parent.field_number("pid")?, pid)?;
    // Twice at the same time.
    let [first, second] = std::thread::scope(|scope| {
        let [first, second] = ["back-1", "back-2"].map(|name| {
            scope.spawn(|| {
                restore(host, &place, &["--name", name])
                    .map_err(|e| e.message().unwrap_or("failed").to_owned())
            })
        });
        [first.join(), second.join()]
    });
    let mut restored = Vec::new();
    for made in [first, second] {
        restored.extend(made.map_err(|_| "a thread ended")??);
    }
    let told = (|| {
        for vm in &restored {
            for expected in 4..=5 {
                require_eq(format!("the count in {}", vm.name()), count(vm)?, expected)?;
            }
        }
        require_eq("the count in the VM that was kept", count(parent)?, 5)
    })();
    and_remove(host, &restored, told)?;
    stop_counter(parent)
}

/// What must be different in every machine, a line each.
const WHO: [&str; 7] = [
    "cat",
    "/run/gridcentric/identity",
    "/etc/machine-id",
    "/sys/class/net/eth0/address",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/random/uuid",
];

fn restored_vms_are_a_family_of_their_own_and_no_two_are_alike(family: &Family<'_>) -> Outcome {
    let (host, parent, shelf) = (family.host, &family.parent, Shelf::new()?);
    parent.sh("echo 0123456789abcdef0123456789abcdef > /etc/machine-id")?;
    serve(parent, 7100, ECHO)?;
    parent.sh(
        "mkdir -p /etc/gridcentric; printf '#!/bin/sh\\necho $GC_ROLE $GC_VMID $GC_IP > /tmp/hooked\\n' > \
         /etc/gridcentric/post-clone; chmod 755 /etc/gridcentric/post-clone; rm -f /tmp/hooked; mkfifo /tmp/hooked",
    )?;
    let place = shelf.place("base");
    keep(host, parent, &place)?;
    require_eq(
        "what the hook saw in the parent",
        parent.sh("cat /tmp/hooked")?,
        format!("parent 0 {}", parent.field("ip")?),
    )?;
    parent.sh("rm /etc/gridcentric/post-clone")?;
    let port = free_port()?;
    let publish = format!("{port}:7100");
    let restored = restore(host, &place, &["--name", "back", "-n", "3", "-p", &publish])?;
    let told = (|| {
        let who: Vec<String> = restored.iter().map(|vm| vm.name().to_owned()).collect();
        require_eq("the names", who, ["back", "back.1", "back.2"].map(str::to_owned).to_vec())?;
        for vm in &restored {
            let expected = format!("clone {} {}", vm.field_number("vmid")?, vm.field("ip")?);
            require_eq(format!("what the hook saw in {}", vm.name()), vm.sh("cat /tmp/hooked")?, expected)?;
        }
        let all: Vec<&Vm<'_>> = restored.iter().chain([parent]).collect();
        alike_in_nothing(&all)?;
        family_of_their_own(&restored, parent, &place)?;
        // What listened listens on, at the new address and where it is published.
        round_trip("127.0.0.1", port, 100)?;
        round_trip(&restored[2].field("ip")?, 7100, 100)
    })();
    and_remove(host, &restored, told)?;
    parent.sh("rm -f /etc/machine-id /tmp/hooked")?;
    end_servers(parent)
}

fn alike_in_nothing(all: &[&Vm<'_>]) -> Outcome {
    /// Lines of the identity that families have in common, or may have.
    const ALIKE: [&str; 4] = ["prefix=", "gateway=", "family=", "ticket="];
    let mut seen = BTreeSet::new();
    for vm in all {
        let told = vm.call(&WHO)?;
        let own = told.lines().filter(|line| !ALIKE.iter().any(|key| line.starts_with(key)));
        // Every family has a master.
        for line in own.filter(|line| *line != "vmid=0") {
            require(
                seen.insert(line.to_owned()),
                format!("no other machine has what {} has", vm.name()),
                line,
            )?;
        }
        require_eq("the host name", vm.call(&["hostname"])?, vm.name())?;
        require_eq("the MAC", vm.call(&["cat", "/sys/class/net/eth0/address"])?, vm.field("mac")?)?;
        require_eq("the address", vm.call(&["gc", "my-ip"])?, vm.field("ip")?)?;
    }
    Ok(())
}

fn family_of_their_own(restored: &[Vm<'_>], parent: &Vm<'_>, place: &Path) -> Outcome {
    let family = restored[0].field("family")?;
    require(family != parent.field("family")?, "a family of their own", &family)?;
    for (vmid, vm) in restored.iter().enumerate() {
        require_eq("the family", vm.field("family")?, family.clone())?;
        require_eq("the snapshot", vm.field("snapshot")?, text(place)?)?;
        require_eq("gc vmid", vm.call(&["gc", "vmid"])?, vmid.to_string())?;
        let is_master = vm.exec(&["gc", "ismaster"])?.code == 0;
        require_eq(format!("gc ismaster in {}", vm.name()), is_master, vmid == 0)?;
        let members = vm.call(&["gc", "list"])?;
        require(
            members.lines().filter(|line| line.contains(" ready ")).count() == 3,
            "three members",
            members,
        )?;
    }
    // A restored master clones itself as any other.
    require_eq("gc clone in the restored master", restored[0].sh("gc clone 1")?, "0")
}

fn a_second_snapshot_writes_only_the_newest_layer(family: &Family<'_>) -> Outcome {
    let (host, shelf) = (family.host, Shelf::new()?);
    // A VM of its own: one that was cloned often gets its layers merged at any time. It boots: of
    // one that starts from an image, most is on the disk before the first snapshot.
    let parent = &host.run("kept", &["--cold"])?;
    let number = |value: &Value| value.as_u64().ok_or("no number");
    let first = keep(host, parent, &shelf.place("first"))?;
    parent.sh("head -c 1000000 /dev/urandom > /tmp/noise")?;
    let second = keep(host, parent, &shelf.place("second"))?;
    require_eq("how many layers were written", number(&second["written_layers"])?, 1)?;
    let (all, new) = (number(&first["written_kib"])?, number(&second["written_kib"])?);
    require((976..all / 2).contains(&new), format!("the noise, and much less than {all} KiB"), new)?;
    let shown = host.json(&["snapshot", "inspect", text(&shelf.place("second"))?])?;
    let (own, shared) = (number(&shown["own_kib"])?, number(&shown["shared_kib"])?);
    require((976..shared).contains(&own), "most of it on the disk is the first one's", &shown)?;
    // The first one can go.
    host.call(&["snapshot", "rm", text(&shelf.place("first"))?])?;
    host.call(&["snapshot", "verify", text(&shelf.place("second"))?])?;
    let restored = restore(host, &shelf.place("second"), &["--name", "back"])?;
    let told = (|| {
        let sums = [parent.sh("sha256sum < /tmp/noise")?, restored[0].sh("sha256sum < /tmp/noise")?];
        require_eq("the noise", &sums[1], &sums[0])?;
        // A restored VM has the layers of its snapshot, and so has a clone of it.
        let clones = family.made(&["clone", "back", "--timeout", "300"])?;
        let third = keep(host, &clones[0], &shelf.place("third"))?;
        let (written, layers) =
            (number(&third["written_layers"])?, third["snapshot"]["layers"].as_array().map(Vec::len));
        require(
            layers.is_some_and(|layers| written as usize + 2 <= layers),
            "two layers or more are there already",
            &third,
        )?;
        clones[0].remove()?;
        Ok(())
    })();
    and_remove(host, &restored, told)?;
    Ok(parent.remove()?)
}

/// CLOCK_MONOTONIC in a guest, and since when, by the host's clock.
fn elapsed(vm: &Vm<'_>, check: &str) -> Result<(Duration, Instant), Failed> {
    let told: u64 = vm.call(&[check, "clocks"])?.parse()?;
    Ok((Duration::from_millis(told), Instant::now()))
}

/// By how much less time has passed in a guest than on the host, between two looks.
fn stood_still((guest, host): (Duration, Instant), (later, at): (Duration, Instant)) -> Duration {
    at.duration_since(host).saturating_sub(later.saturating_sub(guest))
}

fn elapsed_time_stands_still_in_a_snapshot(family: &Family<'_>) -> Outcome {
    let (host, parent, shelf) = (family.host, &family.parent, Shelf::new()?);
    let check = parent.install("guest-check")?;
    let before = elapsed(parent, &check)?;
    let place = shelf.place("old");
    keep(host, parent, &place)?;
    // What is tested is time itself.
    std::thread::sleep(AGE);
    let restored = restore(host, &place, &["--name", "younger"])?;
    let told = (|| {
        let [vm] = &restored[..] else { return Err("not one VM".into()) };
        let still = stood_still(before, elapsed(vm, &check)?);
        require(still >= AGE / 2, format!("{AGE:?} that did not pass"), format!("{still:?}"))
    })();
    and_remove(host, &restored, told)?;
    let still = stood_still(before, elapsed(parent, &check)?);
    require(still < AGE / 2, "no time lost in the VM that was kept", format!("{still:?}"))
}

fn snapshots_outlive_their_vm_and_vmmd(stage: &Stage) -> Outcome {
    let mut host = Host::start(stage.setup())?;
    host.run(PARENT, &[]).map_err(|error| format!("{error}\n{}", explain(&host, PARENT)))?;
    {
        let vm = host.vm(PARENT);
        start_counter(&vm)?;
        require_eq("the count", count(&vm)?, 1)?;
        let clone = host.json(&["clone", PARENT, "--timeout", "300"])?;
        let clone = host.vm(clone["clones"][0]["name"].as_str().ok_or("no clone")?);
        require_eq("the count in the clone", count(&clone)?, 2)?;
        // By name: in vmmd's state folder.
        host.call(&["snapshot", "create", clone.name(), "base"])?;
        clone.remove()?;
        vm.remove()?;
    }
    host.kill_vmmd()?;
    host.start_vmmd()?;
    let listed = host.json(&["snapshot", "ls"])?;
    require_eq("what the listed snapshot is of", &listed[0]["vm"], &Value::from(format!("{PARENT}.1")))?;
    host.call(&["snapshot", "restore", "base", "--name", "back", "--timeout", "300"])?;
    let before = {
        let vm = host.vm("back");
        require_eq("the count in the restored VM", count(&vm)?, 3)?;
        vm.inspect()?
    };
    // It is taken over as any other VM, and needs its snapshot no more.
    host.call(&["snapshot", "rm", "base"])?;
    host.kill_vmmd()?;
    host.start_vmmd()?;
    let vm = host.vm("back");
    let after = vm.inspect()?;
    for field in ["pid", "uuid", "family", "ip", "state", "snapshot"] {
        require_eq(field, &after[field], &before[field])?;
    }
    require_eq("the count after vmmd was killed", count(&vm)?, 4)?;
    vm.kill()?;
    require_eq("how it ended", vm.wait_ended()?.0, "killed")?;
    Ok(host.stop()?)
}

/// What of a guest's 256 MiB has the pattern, MiB.
const PATTERN_MIB: u32 = 24;

/// Kills the pager of a host, if it runs.
fn kill_pager(host: &Host) -> Result<bool, Failed> {
    let processes = leftovers::processes_of(&host.state_dir())?;
    let pid = processes.iter().find_map(|process| {
        process.strip_prefix("process pager (")?.strip_suffix(')')?.parse().ok().and_then(Pid::from_raw)
    });
    Ok(pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok()))
}

fn memory_is_right_while_it_arrives_and_the_pager_is_killed_again_and_again(family: &Family<'_>) -> Outcome {
    let (host, parent, shelf) = (family.host, &family.parent, Shelf::new()?);
    let check = parent.install("guest-check")?;
    parent.sh("cd /tmp; rm -f filled look outcome; mkfifo filled look outcome")?;
    let script = format!(
        "told=$({check} pattern {PATTERN_MIB} /tmp/filled /tmp/look 2>&1); echo $told > /tmp/outcome"
    );
    parent.sh(&format!("setsid sh -c '{script}' < /dev/null > /dev/null 2>&1 & cat /tmp/filled"))?;
    let place = shelf.place("base");
    keep(host, parent, &place)?;
    let (kills, is_done) = (AtomicU32::new(0), AtomicBool::new(false));
    let restored = restore(host, &place, &["--name", "back", "-n", "2"])?;
    let told = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let killed = if kill_pager(host).unwrap_or(false) {
                    kills.fetch_add(1, Ordering::Relaxed) + 1
                } else {
                    kills.load(Ordering::Relaxed)
                };
                // Within the limit of restarts, which is 20 in 10 s; most while memory arrives.
                std::thread::sleep(Duration::from_millis(if killed < 10 { 120 } else { 1_100 }));
            }
        });
        let looked = restored.iter().try_for_each(|vm| {
            let told = vm.sh("echo > /tmp/look; cat /tmp/outcome")?;
            require_eq(format!("what {} told", vm.name()), told, format!("{} pages right", PATTERN_MIB * 256))
        });
        is_done.store(true, Ordering::Relaxed);
        looked
    });
    let told = told.and_then(|()| {
        let kills = kills.load(Ordering::Relaxed);
        require(kills >= 3, "the pager was killed again and again", kills)
    });
    and_remove(host, &restored, told)
}
