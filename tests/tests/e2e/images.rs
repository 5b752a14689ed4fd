//! VMs start from images of VMs that have booted, and are like no other.

use crate::{
    Outcome, Story,
    family::{require, require_eq},
    stage::{Stage, explain},
    tickets::memory_kib,
};
use libtest_mimic::Failed;
use patina_tests::{host::Host, vm::Vm};
use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

pub const STORIES: &[Story] = stories![vms_of_one_image_start_without_a_boot_and_are_alike_in_nothing];

/// A kind of VM that no other story has.
const KIND: [&str; 2] = ["--memory", "208M"];

/// The events of a host, from now on.
struct Events(Child);

impl Events {
    fn of(host: &Host) -> Result<Self, Failed> {
        let mut command = host.vmctl_command(&["events", "--follow", "--past"]);
        Ok(Self(command.stdout(Stdio::piped()).spawn()?))
    }

    /// Waits for one that tells `text`.
    fn wait(&mut self, text: &str) -> Outcome {
        let lines = BufReader::new(self.0.stdout.take().ok_or("no pipe")?).lines();
        let mut found = lines.map_while(Result::ok).filter(|line| line.contains(text));
        found.next().map(drop).ok_or_else(|| format!("no event {text:?}").into())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

fn run<'a>(host: &'a Host, name: &str) -> Result<(Vm<'a>, u128), Failed> {
    let began = Instant::now();
    let vm = host.run(name, &KIND).map_err(|error| format!("{error}\n{}", explain(host, name)))?;
    Ok((vm, began.elapsed().as_millis()))
}

/// What machines have for themselves. The image has no machine-id, and a MAC is of a family's own
/// network.
fn are_alike_in_nothing(vms: &[Vm<'_>]) -> Outcome {
    let mut seen = BTreeSet::new();
    for vm in vms {
        let random = ["/proc/sys/kernel/random/boot_id", "/proc/sys/kernel/random/uuid"];
        let told = vm.call(&["cat", random[0], random[1], "/proc/sys/kernel/hostname"])?;
        let own = told.lines().map(str::to_owned).chain([vm.call(&["gc", "my-ip"])?]);
        for line in own {
            require(seen.insert(line.clone()), format!("no other VM has what {} has", vm.name()), line)?;
        }
        require_eq("the host name", vm.call(&["hostname"])?, vm.name())?;
        require_eq("the address", vm.call(&["gc", "my-ip"])?, vm.field("ip")?)?;
    }
    Ok(())
}

fn vms_of_one_image_start_without_a_boot_and_are_alike_in_nothing(stage: &Stage) -> Outcome {
    let images = tempfile::tempdir()?;
    let folder = images.path().to_str().ok_or("a path that is no UTF-8")?;
    let host = Host::start_with(stage.setup(), &["--image-cache", folder, "--spare", "1"])?;
    let (first, boot_ms) = run(&host, "first")?;
    Events::of(&host)?.wait("image ")?;
    require_eq("the image of the first VM", first.field("image")?, "")?;
    let mut vms = vec![first];
    for name in ["second", "third"] {
        let (vm, start_ms) = run(&host, name)?;
        patina_daemon::say!("{name} was ready after {start_ms} ms, the first one after {boot_ms} ms");
        require(!vm.field("image")?.is_empty(), "an image", name)?;
        require(start_ms < boot_ms / 2, format!("less than half of {boot_ms} ms"), start_ms)?;
        vms.push(vm);
    }
    require_eq("the image", vms[1].field("image")?, vms[2].field("image")?)?;
    are_alike_in_nothing(&vms)?;
    for vm in &vms {
        let guest: u64 = vm.call(&["date", "+%s"])?.parse()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        require(now.abs_diff(guest) <= 3, format!("the time {now}"), guest)?;
        require_eq(format!("gc vmid in {}", vm.name()), vm.call(&["gc", "vmid"])?, "0")?;
        // No image has what was done in the VM that it is of, or in another one.
        vm.call(&["mkdir", "/tmp/only-here"])?;
    }
    require_eq("gc clone in a VM of an image", vms[2].sh("gc clone 1")?, "0")?;
    let cold = host.run("cold", &[&["--cold"], &KIND[..]].concat())?;
    require_eq("the image of a cold VM", cold.field("image")?, "")?;
    let (_, shared) = memory_kib(&host, "cold")?;
    let (own, of_the_image) = memory_kib(&host, "second")?;
    require(
        of_the_image > shared + 2_048,
        format!("much more than {shared} KiB in common with others"),
        format!("{of_the_image} KiB, and {own} KiB of its own"),
    )?;
    let pruned = host.json(&["image", "prune", "--all"])?;
    let left = pruned["in_use"].as_array().ok_or("no list")?.len();
    let gone = pruned["removed"].as_array().ok_or("no list")?.len();
    require(left + gone >= 1, "the image", &pruned)?;
    for vm in &vms {
        vm.call(&["true"])?;
    }
    Ok(host.stop()?)
}
