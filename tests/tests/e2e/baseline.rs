//! A family with a CPU baseline runs on hosts whose processors differ.
//!
//! The hosts are on one machine. One of them has a `vmm` that says of its CPU that it lacks a
//! feature; all else is the real one.

use crate::{
    Outcome, Story,
    elsewhere::Hosts,
    family::{require, require_eq},
    stage::Stage,
};
use libtest_mimic::Failed;
use patina_control::config::HostCheck;
use patina_snapshot::{
    cpuid::{Register, register},
    facts::HostFacts,
    layout,
};
use patina_tests::{
    host::{Host, HostError},
    scheduler::Scheduler,
    setup::Setup,
    vm::Vm,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

pub const STORIES: &[Story] = stories![
    a_family_with_a_cpu_baseline_runs_on_a_host_with_fewer_features,
    a_baseline_that_cannot_be_had_is_refused_with_the_reason,
];

/// Bits of CPUID leaf 7, EBX, as a guest's Linux kernel calls them. It uses each of them itself, so
/// that it does without them on software KVM, too, where CPUID is not intercepted.
const FEATURES: [(u32, &str); 4] = [(24, "clwb"), (23, "clflushopt"), (9, "erms"), (18, "rdseed")];

/// A `vmm` that says that this host lacks a feature, and the feature's name.
fn lesser_vmm(setup: &Setup, folder: &Path) -> Result<(PathBuf, &'static str), Failed> {
    let real = setup.binary("vmm").canonicalize()?;
    let output = Command::new(&real).arg("--check-host").output()?;
    let check: HostCheck = serde_json::from_slice(&output.stdout)?;
    let facts = check.facts.as_deref().ok_or("vmm --check-host says nothing of the CPU")?;
    let mut facts: HostFacts = layout::from_bytes(facts)?;
    let has = register(&facts.cpuid, 7, 0, Register::Ebx);
    let (bit, name) =
        FEATURES.iter().find(|(bit, _)| has >> bit & 1 != 0).ok_or("this CPU has none of them")?;
    for entry in facts.cpuid.iter_mut().filter(|entry| (entry.function, entry.index) == (7, 0)) {
        entry.ebx &= !(1 << bit);
    }
    let says = HostCheck { facts: Some(layout::to_bytes(&facts)), ..check };
    let (says_at, vmm) = (folder.join("facts.json"), folder.join("vmm"));
    fs::write(&says_at, serde_json::to_vec(&says)?)?;
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = --check-host ] && exec /bin/cat {}\nexec {} \"$@\"\n",
        says_at.display(),
        real.display()
    );
    fs::write(&vmm, script)?;
    fs::set_permissions(&vmm, fs::Permissions::from_mode(0o755))?;
    Ok((vmm, name))
}

fn a_family_with_a_cpu_baseline_runs_on_a_host_with_fewer_features(stage: &Stage) -> Outcome {
    let folder = tempfile::tempdir()?;
    let (vmm, feature) = lesser_vmm(stage.setup(), folder.path())?;
    let scheduler = Scheduler::start(stage.setup(), &["--overcommit-cpu", "64"])?;
    let address = scheduler.address();
    let images = folder.path().join("images");
    let images = images.to_string_lossy();
    let options = ["--scheduler", &address, "--max-vms", "2", "--warm", "0", "--image-cache", &images];
    let full = Host::start_apart(stage.setup(), &options)?;
    let vmm = vmm.to_string_lossy();
    let lesser = Host::start_apart(stage.setup(), &[&options[..], &["--vmm", &vmm]].concat())?;
    let told = on_both([&full, &lesser], feature);
    let logs = [full.vmmd_log(), lesser.vmmd_log()];
    full.stop().and(lesser.stop())?;
    scheduler.stop()?;
    told.map_err(|failed| format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n==\n")).into())
}

fn on_both([full, lesser]: [&Host; 2], feature: &str) -> Outcome {
    let has = |vm: &Vm<'_>| vm.sh(&format!("grep -c -w {feature} /proc/cpuinfo || true"));
    let plain = full.run("plain", &[])?;
    require_eq("CPUs with the feature, without a baseline", has(&plain)?, "1")?;
    // There is room for two clones on each host.
    let refused = plain.sh("gc rt 3 3 1 100 2>&1; echo code $?")?;
    require(refused.contains("does not fit"), "a host that does not fit the VM", &refused)?;

    let parent = full.run("adam", &["--cpu-baseline"])?;
    let inspected = parent.inspect()?;
    let hosts = inspected["cpu_baseline"].as_array().map_or(0, Vec::len);
    require(hosts == 2, "a baseline of two hosts", &inspected)?;
    let shown = full.call(&["inspect", "adam"])?;
    require(shown.contains("common to "), "what inspect says of the CPU's features", shown)?;
    require_eq("CPUs with the feature, with the baseline", has(&parent)?, "0")?;
    for clone in &clones_on_both([full, lesser], &parent)? {
        require_eq("CPUs with the feature, in a clone", has(clone)?, "0")?;
        clone.kill()?;
    }
    images_are_of_vms_with_the_same_features(full, has)?;

    // A VM that comes to a better host still needs no more: its clones can go back. Without the
    // baseline it would have all that the machine has: the vmm does not keep to its word.
    for name in ["plain", "adam", "abel", "cain"] {
        // Each host numbers its families itself: this one may get the network of one of these.
        full.vm(name).kill()?;
    }
    let parent = lesser.run("seth", &["--cpu-baseline"])?;
    let clones = clones_on_both([full, lesser], &parent)?;
    let (there, here): (Vec<_>, Vec<_>) = clones
        .into_iter()
        .partition(|clone| full.vmctl(&["inspect", clone.name()]).is_ok_and(|told| told.code == 0));
    here.iter().try_for_each(Vm::kill)?;
    let [there] = &there[..] else { return Err(format!("not one clone: {there:?}").into()) };
    let shown = full.call(&["inspect", there.name()])?;
    require(shown.contains("fewer than its host offers"), "what inspect says of the CPU's features", shown)?;
    // One of its clones has no room where it is.
    let ticket = there.sh("gc rt 2 2 1 20000 | awk '{print $2}'")?;
    require_eq("gc clone in the clone", there.sh(&format!("gc clone {ticket}"))?, "0")?;
    let listed = Hosts::clones_of(std::slice::from_ref(lesser), "seth")?;
    let is_new = |vm: &&Vm<'_>| here.iter().all(|clone| clone.name() != vm.name());
    let back: Vec<_> = listed.iter().filter(is_new).collect();
    let [back] = &back[..] else { return Err(format!("not one clone of the clone: {listed:?}").into()) };
    Ok(back.wait_ready()?)
}

/// Three clones, of which no host has room for all.
fn clones_on_both<'a>(hosts: [&'a Host; 2], parent: &Vm<'_>) -> Result<Vec<Vm<'a>>, Failed> {
    let ticket = parent.sh("gc rt 3 3 1 20000 | awk '{print $2}'")?;
    require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;
    let mut all = Vec::new();
    for host in hosts {
        let clones = Hosts::clones_of(std::slice::from_ref(host), parent.name())?;
        require(!clones.is_empty(), "clones on each host", format!("{clones:?}"))?;
        clones.iter().try_for_each(Vm::wait_ready)?;
        all.extend(clones);
    }
    require(all.len() == 3, "three clones", format!("{all:?}"))?;
    Ok(all)
}

fn images_are_of_vms_with_the_same_features(
    full: &Host,
    has: impl Fn(&Vm<'_>) -> Result<String, HostError>,
) -> Outcome {
    // An image is written while its VM runs on.
    while full.json(&["image", "ls"])?.as_array().map_or(0, Vec::len) < 2 {}
    let with = full.run("abel", &["--cpu-baseline"])?;
    require_eq("CPUs with the feature, in the next VM with a baseline", has(&with)?, "0")?;
    let without = full.run("cain", &[])?;
    require_eq("CPUs with the feature, in the next VM without one", has(&without)?, "1")?;
    let images = [with.field("image")?, without.field("image")?];
    let are_two = images[0] != images[1] && images.iter().all(|image| !image.is_empty());
    require(are_two, "two images", format!("{images:?}"))?;
    // Either is still of use.
    let pruned = full.json(&["image", "prune"])?;
    require(pruned["removed"].as_array().is_some_and(Vec::is_empty), "no image that goes", pruned)
}

fn a_baseline_that_cannot_be_had_is_refused_with_the_reason(stage: &Stage) -> Outcome {
    let refused = |host: &Host, words: &[&str]| host.vmctl(&[&["run", "--name", "eve"], words].concat());
    let alone = refused(stage.host()?, &["--cpu-baseline"])?;
    require(
        alone.code == 5 && alone.errors().contains("start vmmd with --scheduler"),
        "exit code 5, and what to do",
        format!("{alone:?}"),
    )?;
    let scheduler = Scheduler::start(stage.setup(), &[])?;
    let host = Host::start_with(stage.setup(), &["--scheduler", &scheduler.address(), "--warm", "0"])?;
    let unknown = refused(&host, &["--cpu-baseline", "nowhere"]);
    let listed = host.json(&["ls"]);
    host.stop()?;
    scheduler.stop()?;
    let unknown = unknown?;
    require(
        unknown.code == 2 && unknown.errors().contains("no host \"nowhere\""),
        "exit code 2, and the host's name",
        format!("{unknown:?}"),
    )?;
    require_eq("VMs", listed?.as_array().map_or(0, Vec::len), 0)
}
