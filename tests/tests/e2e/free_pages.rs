//! Snapshots have no pages that the guest's kernel has on its lists of free ones, and all others.

use crate::{
    Outcome, Story,
    family::{Family, require, require_eq, with_family},
    snapshots::{Shelf, and_remove, keep, restore, text},
};
use libtest_mimic::Failed;
use patina_tests::vm::Vm;
use serde_json::Value;

pub const STORIES: &[Story] = stories![with_family(what_a_guest_has_freed_is_not_in_its_snapshot)];

/// With so much memory the guest's kernel has huge pages. A page fault for each small one would
/// take minutes.
const KIND: [&str; 2] = ["--memory", "576M"];
/// What the guest writes and frees, MiB.
const FREED_MIB: u32 = 64;
/// What it writes and keeps.
const KEPT_MIB: u32 = 16;
/// What a program in the restored VM uses: more than was freed, so that what was left out is used
/// again.
const USED_MIB: u32 = 96;

/// Has a program fill memory. It looks at all of it, and tells, when [`look`] asks it.
fn fill(vm: &Vm<'_>, check: &str, mib: u32) -> Outcome {
    vm.sh("cd /tmp; rm -f filled look outcome; mkfifo filled look outcome")?;
    let script =
        format!("told=$({check} pattern {mib} /tmp/filled /tmp/look 2>&1); echo $told > /tmp/outcome");
    vm.sh(&format!("setsid sh -c '{script}' < /dev/null > /dev/null 2>&1 & cat /tmp/filled"))?;
    Ok(())
}

fn look(vm: &Vm<'_>, mib: u32) -> Outcome {
    let told = vm.sh("echo > /tmp/look; cat /tmp/outcome")?;
    require_eq(format!("what {} told", vm.name()), told, format!("{} pages right", mib * 256))
}

fn kib(value: &Value) -> Result<u64, Failed> {
    value.as_u64().ok_or_else(|| "no number".into())
}

fn what_a_guest_has_freed_is_not_in_its_snapshot(family: &Family<'_>) -> Outcome {
    let (host, shelf) = (family.host, Shelf::new()?);
    // A VM of its own, which has freed nothing yet.
    let parent = &host.run("lean", &KIND)?;
    let check = parent.install("guest-check")?;
    parent.sh("head -c 50000 /dev/urandom > /tmp/noise")?;
    let noise = parent.sh("sha256sum < /tmp/noise")?;
    fill(parent, &check, FREED_MIB)?;
    look(parent, FREED_MIB)?;
    fill(parent, &check, KEPT_MIB)?;
    let kept = keep(host, parent, &shelf.place("lean"))?;
    patina_daemon::say!(
        "{} KiB written, {} KiB left out as free, paused for {} us",
        kept["written_kib"],
        kept["free_kib"],
        kept["pause_us"]
    );
    let (written, free) = (kib(&kept["written_kib"])?, kib(&kept["free_kib"])?);
    // What is kept lies in pages that were freed before.
    let freed = u64::from(FREED_MIB - KEPT_MIB) * 1024;
    require(free >= freed * 3 / 4, format!("most of {freed} KiB left out"), free)?;
    let shown = host.json(&["snapshot", "inspect", text(&shelf.place("lean"))?])?;
    let own = kib(&shown["own_kib"])?;
    require(own <= written + 1024, format!("no more on the disk than {written} KiB"), own)?;
    host.call(&["snapshot", "verify", text(&shelf.place("lean"))?])?;
    let restored = restore(host, &shelf.place("lean"), &["--name", "fat"])?;
    let told = (|| {
        for vm in [parent, &restored[0]] {
            require_eq("the noise", &vm.sh("sha256sum < /tmp/noise")?, &noise)?;
            look(vm, KEPT_MIB)?;
        }
        // What was left out serves again.
        let vm = &restored[0];
        fill(vm, &check, USED_MIB)?;
        look(vm, USED_MIB)?;
        require_eq("the noise", &vm.sh("sha256sum < /tmp/noise")?, &noise)?;
        require_eq("gc clone in the restored VM", vm.sh("gc clone 1")?, "0")
    })();
    and_remove(host, &restored, told)?;
    Ok(parent.remove()?)
}
