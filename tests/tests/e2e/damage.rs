//! Snapshots that are damaged or go away while VMs run on them.

use crate::{
    Outcome, Story,
    family::{Family, require, require_eq, with_family},
    snapshots::{Shelf, and_remove, keep, text},
};
use libtest_mimic::Failed;
use patina_tests::{host::Host, leftovers, process::Output, vm::Vm};
use rustix::{
    fs::SeekFrom,
    io::Errno,
    process::{Pid, Signal, kill_process},
};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

pub const STORIES: &[Story] = stories![
    with_family(a_damaged_run_ends_the_vms_that_need_it_and_nothing_is_left),
    with_family(a_restored_vm_goes_on_when_its_snapshot_is_deleted_at_once),
    with_family(a_restored_vm_ends_with_data_loss_when_its_layers_are_cut_at_once),
];

/// Where the guest's kernel is, which every restored VM reads first, bytes.
const KERNEL_AT: u64 = 0x100_0000;
const RUN_BYTES: u64 = 64 * 1024;

/// The files of a snapshot's layers.
fn layers(place: &Path) -> Result<Vec<PathBuf>, Failed> {
    let paths = fs::read_dir(place)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let is_layer =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("layer-"));
    Ok(paths.filter(is_layer).collect())
}

/// Gives a snapshot files of its own. They may be those of an image, from which other VMs start,
/// and are to be damaged.
fn own_files(place: &Path) -> Outcome {
    for layer in layers(place)? {
        let copy = layer.with_extension("copy");
        fs::copy(&layer, &copy)?;
        fs::rename(&copy, &layer)?;
    }
    Ok(())
}

/// The bridges of all families of this machine, also of other stories' that have VMs still.
fn bridges() -> Result<BTreeSet<String>, Failed> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let entry = entry?;
        if entry.path().join("bridge").exists() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Removes VMs that have ended because memory was lost, after a look at how.
fn ended_with_data_loss(vms: &[Vm<'_>], words: &str) -> Outcome {
    for vm in vms {
        let (kind, reason) = vm.wait_ended()?;
        require_eq(format!("how {} ended", vm.name()), kind.as_str(), "data_loss")?;
        let is_named = reason.contains(words) && reason.contains("of layer");
        require(is_named, format!("{words} of a layer is named"), &reason)?;
        vm.remove()?;
    }
    Ok(())
}

fn a_damaged_run_ends_the_vms_that_need_it_and_nothing_is_left(family: &Family<'_>) -> Outcome {
    let (host, shelf) = (family.host, Shelf::new()?);
    // A VM of its own that boots: of several layers, the damaged one may be hidden by a later one.
    let parent = &host.run("whole", &["--cold"])?;
    let place = shelf.place("base");
    keep(host, parent, &place)?;
    let has_it = |file: &fs::File| rustix::fs::seek(file, SeekFrom::Data(KERNEL_AT)) == Ok(KERNEL_AT);
    let file = layers(&place)?
        .into_iter()
        .filter_map(|layer| fs::File::options().read(true).write(true).open(layer).ok())
        .find(has_it)
        .ok_or("no layer")?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, KERNEL_AT)?;
    file.write_all_at(&[byte[0] ^ 0x10], KERNEL_AT)?;
    let vms = || host.json(&["ls"]).map(|list| list.as_array().map(Vec::len));
    let before = (vms()?, bridges()?);
    let run = format!("run {}", KERNEL_AT / RUN_BYTES);
    let restore = ["snapshot", "restore", text(&place)?, "-n", "2", "--name", "lost"];
    for command in [&["snapshot", "verify", text(&place)?][..], &restore] {
        let refused = host.vmctl(command)?;
        require_eq("the exit code", refused.code, 8)?;
        let is_named = refused.errors().contains(&run) && refused.errors().contains("of layer");
        require(is_named, format!("{run} of a layer is named"), refused.errors())?;
    }
    ended_with_data_loss(&[host.vm("lost"), host.vm("lost.1")], &run)?;
    require_eq("what the parent says", parent.sh("echo lives")?, "lives")?;
    require_eq("how many VMs there are", vms()?, before.0)?;
    let new: Vec<_> = bridges()?.difference(&before.1).cloned().collect();
    require_eq("new bridges", new, [""; 0])?;
    file.write_all_at(&byte, KERNEL_AT)?;
    host.call(&["snapshot", "verify", text(&place)?])?;
    Ok(parent.remove()?)
}

/// How long a call may take to open a snapshot and to need the pager.
const OPENED_WITHIN: Duration = Duration::from_secs(60);

/// The pager's process.
fn pager(host: &Host) -> Option<Pid> {
    let processes = leftovers::processes_of(&host.state_dir()).ok()?;
    processes.iter().find_map(|process| {
        process.strip_prefix("process pager (")?.strip_suffix(')')?.parse().ok().and_then(Pid::from_raw)
    })
}

/// Whether vmmd has a file of a snapshot open.
fn is_open(host: &Host, place: &Path) -> Result<bool, Failed> {
    let pid = host.vmmd_pid().ok_or("vmmd does not run")?;
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    Ok(files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.starts_with(place)))
}

/// Signals a process that may have ended: a pager does when nobody needs it any more.
fn signal(pid: Pid, signal: Signal) -> Outcome {
    match kill_process(pid, signal) {
        Err(Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

/// Restores a VM `name`, and does something to the snapshot when it is opened and next to nothing
/// of its memory has been read: with the pager stopped, which has just been started.
fn restore_and(
    host: &Host,
    place: &Path,
    name: &str,
    change: impl FnOnce() -> std::io::Result<()>,
) -> Result<Output, Failed> {
    let before = pager(host);
    if let Some(pid) = before {
        signal(pid, Signal::KILL)?;
    }
    let restore = ["snapshot", "restore", text(place)?, "--name", name, "--timeout", "300"];
    thread::scope(|scope| {
        let restored = scope.spawn(|| host.vmctl(&restore).map_err(|error| error.to_string()));
        let begun = Instant::now();
        let pid = loop {
            if let Some(pid) = pager(host).filter(|pid| before != Some(*pid))
                && kill_process(pid, Signal::STOP).is_ok()
            {
                break pid;
            }
            if begun.elapsed() > OPENED_WITHIN || restored.is_finished() {
                return Err("no pager came".into());
            }
        };
        // One that others need comes at once, maybe before the call has opened the snapshot.
        while !is_open(host, place)? && !restored.is_finished() && begun.elapsed() < OPENED_WITHIN {
            thread::yield_now();
        }
        let changed = change();
        signal(pid, Signal::CONT)?;
        changed?;
        Ok(restored.join().map_err(|_| "a thread ended")??)
    })
}

fn a_restored_vm_goes_on_when_its_snapshot_is_deleted_at_once(family: &Family<'_>) -> Outcome {
    let (host, parent, shelf) = (family.host, &family.parent, Shelf::new()?);
    parent.sh("head -c 2000000 /dev/urandom > /tmp/noise")?;
    let expected = parent.sh("sha256sum < /tmp/noise")?;
    let place = shelf.place("base");
    keep(host, parent, &place)?;
    let restored = restore_and(host, &place, "kept-on", || fs::remove_dir_all(&place))?;
    require_eq("the exit code", restored.code, 0)?;
    let vms = [host.vm("kept-on")];
    let told = (|| {
        require_eq("whether the snapshot is there", place.exists(), false)?;
        require_eq("the noise", vms[0].sh("sha256sum < /tmp/noise")?, expected)
    })();
    and_remove(host, &vms, told)?;
    parent.sh("rm /tmp/noise")?;
    Ok(())
}

fn a_restored_vm_ends_with_data_loss_when_its_layers_are_cut_at_once(family: &Family<'_>) -> Outcome {
    let (host, parent, shelf) = (family.host, &family.parent, Shelf::new()?);
    let place = shelf.place("base");
    keep(host, parent, &place)?;
    own_files(&place)?;
    let cut = || {
        let layers = layers(&place).map_err(|_| std::io::Error::other("no layers"))?;
        layers.into_iter().try_for_each(|layer| fs::File::options().write(true).open(layer)?.set_len(0))
    };
    let restored = restore_and(host, &place, "cut", cut)?;
    require_eq("the exit code", restored.code, 8)?;
    // It is there if it has started.
    if host.vmctl(&["inspect", "cut"])?.code == 0 {
        ended_with_data_loss(&[host.vm("cut")], "run ")?;
    }
    require(restored.errors().contains("of layer"), "the layer is named", restored.errors())?;
    require_eq("what the parent says", parent.sh("echo lives")?, "lives")?;
    let refused = host.vmctl(&["snapshot", "restore", text(&place)?])?;
    require_eq("the exit code of the next restore", refused.code, 8)
}
