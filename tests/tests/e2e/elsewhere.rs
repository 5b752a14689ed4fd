//! One call makes clones on several hosts.

use crate::{
    Outcome, Story,
    family::{require, require_eq},
    stage::Stage,
    tickets::EXAMPLE,
};
use libtest_mimic::Failed;
use patina_tests::{
    host::{Host, HostError},
    scheduler::Scheduler,
    setup::Setup,
    vm::Vm,
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
};

pub const STORIES: &[Story] = stories![
    one_call_makes_clones_on_three_hosts,
    a_host_that_is_gone_fails_only_its_own_clones,
    vms_are_found_wherever_they_run,
    the_map_reduce_example_runs_over_three_hosts_unchanged,
    a_guest_s_ticket_is_for_all_hosts_unless_its_own_keeps_it,
    hosts_without_the_image_fetch_it_once_and_run_the_clones,
];

/// Three hosts, each in a network namespace of its own, with room for two clones each.
pub struct Hosts {
    scheduler: Scheduler,
    pub hosts: [Host; 3],
}

impl Hosts {
    pub fn start(stage: &Stage) -> Result<Self, HostError> {
        let scheduler = Scheduler::start(stage.setup(), &["--overcommit-cpu", "64"])?;
        let start = || {
            let options = ["--scheduler", &scheduler.address(), "--max-vms", "2", "--warm", "0"];
            Host::start_apart(stage.setup(), &options)
        };
        let hosts = [start()?, start()?, start()?];
        Ok(Self { scheduler, hosts })
    }

    pub fn stop(self) -> Outcome {
        let stopped = self.hosts.map(Host::stop);
        stopped.into_iter().collect::<Result<(), _>>()?;
        Ok(self.scheduler.stop()?)
    }

    /// The clones of a family on some hosts.
    pub fn clones_of<'a>(hosts: &'a [Host], master: &str) -> Result<Vec<Vm<'a>>, Failed> {
        let mut clones = Vec::new();
        for host in hosts {
            let listed = host.json(&["ls"])?;
            let names = listed.as_array().into_iter().flatten().filter_map(|vm| vm["name"].as_str());
            clones.extend(
                names.filter(|name| name.starts_with(&format!("{master}."))).map(|name| host.vm(name)),
            );
        }
        Ok(clones)
    }
}

fn one_call_makes_clones_on_three_hosts(stage: &Stage) -> Outcome {
    let hosts = Hosts::start(stage)?;
    let told = three_clones(&hosts);
    let logs: Vec<_> = hosts.hosts.iter().map(Host::vmmd_log).collect();
    hosts.stop()?;
    told.map_err(|failed| format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n==\n")).into())
}

fn three_clones(hosts: &Hosts) -> Outcome {
    let parent = hosts.hosts[0].run("adam", &[])?;
    parent.sh("dd if=/dev/urandom of=/tmp/before bs=64k count=16 2> /dev/null")?;
    let before = parent.sh("md5sum < /tmp/before")?;
    let ticket = ticket_over_all(&hosts.hosts[0], &parent)?;
    // The guest waits for its clones, as a program does that starts workers.
    require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;

    let vms = Hosts::clones_of(&hosts.hosts, "adam")?;
    require(vms.len() == 3, "three clones", format!("{vms:?}"))?;
    let mut seen = BTreeSet::new();
    for (number, vm) in vms.iter().enumerate() {
        vm.wait_ready()?;
        require_eq("a file of the parent in a clone", vm.sh("md5sum < /tmp/before")?, before.clone())?;
        seen.insert((vm.sh("gc vmid")?, vm.sh("gc my-ip")?));
        vm.sh(&format!("echo {number} > /tmp/own"))?;
    }
    let numbers: Vec<_> = seen.iter().map(|(vmid, _)| vmid.as_str()).collect();
    require_eq("the vmids", numbers.join(" "), "1 2 3")?;
    let addresses: BTreeSet<_> = seen.iter().map(|(_, ip)| ip).collect();
    require(addresses.len() == 3, "three addresses", format!("{seen:?}"))?;
    for (number, vm) in vms.iter().enumerate() {
        require_eq("a clone's own file", vm.sh("cat /tmp/own")?, number.to_string())?;
    }

    // Each of them sees all of the family, wherever it runs.
    for vm in std::iter::once(&parent).chain(&vms) {
        let listed = vm.sh("gc list")?;
        let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
        let states: Vec<_> = rows.iter().filter_map(|row| Some((*row.first()?, *row.get(2)?))).collect();
        let ready = ["0", "1", "2", "3"].map(|vmid| (vmid, "ready"));
        require(states == ready, "four VMs that are ready", format!("{}: {listed}", vm.name()))?;
        // Hosts of one machine have one name.
        require(rows.iter().all(|row| row.len() == 4), "the host of each", &listed)?;
    }

    // A clone clones itself where it is. Its clone has a vmid that no other host gives, and goes.
    let last = &vms[2];
    let own = last.sh("gc clone 1 > /tmp/number; cat /tmp/number")?;
    require_eq("gc clone in a clone", own, "0")?;
    let again = Hosts::clones_of(&hosts.hosts[2..], "adam")?;
    let again =
        again.iter().find(|vm| vm.name() != last.name()).ok_or("the clone of a clone is not there")?;
    again.wait_ready()?;
    let vmid: u32 = again.sh("gc vmid")?.parse()?;
    require(vmid > 3, "a vmid that nobody has", vmid)?;
    require_eq("the file in the clone of a clone", again.sh("cat /tmp/own")?, "2")?;
    again.kill()?;

    // They meet, whichever host they are on, and their parent gets what they leave.
    for vm in &vms {
        vm.sh("setsid sh -c 'gc sync; echo -n of $(gc vmid) | gc join --status 7 --data -' < /dev/null > /dev/null 2>&1 &")?;
    }
    parent.sh(&format!("gc sync {ticket} 120000"))?;
    parent.sh(&format!("gc join {ticket} --data-dir /tmp/left"))?;
    let left = parent.sh("cd /tmp/left && for vmid in 1 2 3; do cat $vmid; echo; done")?;
    require_eq("what the clones left", left, "of 1\nof 2\nof 3")
}

fn a_host_that_is_gone_fails_only_its_own_clones(stage: &Stage) -> Outcome {
    let mut hosts = Hosts::start(stage)?;
    let told = two_of_three(&mut hosts);
    hosts.stop()?;
    told
}

fn two_of_three(hosts: &mut Hosts) -> Outcome {
    hosts.hosts[0].run("adam", &[])?;
    let ticket = ticket_over_all(&hosts.hosts[0], &hosts.hosts[0].vm("adam"))?;
    hosts.hosts[2].kill_vmmd()?;
    let cloned = hosts.hosts[0].vmctl(&["-o", "json", "clone", "adam", "--ticket", &ticket])?;
    require(cloned.code != 0, "an exit code that is not 0", format!("{cloned:?}"))?;
    let made: Value = serde_json::from_str(&cloned.text())?;
    let failed: Vec<_> =
        made["clones"].as_array().into_iter().flatten().filter(|clone| !clone["error"].is_null()).collect();
    require(
        failed.len() == 1 && cloned.errors().contains("on host"),
        "one clone that failed on its host",
        &made,
    )?;
    let clones = Hosts::clones_of(&hosts.hosts[..2], "adam")?;
    require(clones.len() == 2, "two clones", format!("{clones:?}"))?;
    // The ticket is that of the clones that there are: they meet without the third one.
    for vm in &clones {
        vm.wait_ready()?;
        vm.sh("setsid sh -c 'gc sync; gc join --status 3' < /dev/null > /dev/null 2>&1 &")?;
    }
    let parent = hosts.hosts[0].vm("adam");
    parent.sh(&format!("gc sync {ticket} 120000"))?;
    parent.sh(&format!("gc join {ticket}"))?;
    hosts.hosts[2].start_vmmd()?;
    require(hosts.hosts[2].json(&["ls"])? == serde_json::json!([]), "no VM on the host that was gone", "one")
}

fn vms_are_found_wherever_they_run(stage: &Stage) -> Outcome {
    let mut hosts = Hosts::start(stage)?;
    let told = found_anywhere(&mut hosts);
    hosts.stop()?;
    told
}

fn found_anywhere(hosts: &mut Hosts) -> Outcome {
    let first = &hosts.hosts[0];
    let parent = first.run("adam", &[])?;
    let ticket = ticket_over_all(first, &parent)?;
    require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;

    let listed = first.json(&["ls", "--all-hosts"])?;
    let places: BTreeMap<_, _> = listed
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|vm| Some((vm["name"].as_str()?.to_owned(), vm["host"].as_str()?.to_owned())))
        .collect();
    require_eq(
        "the VMs of all hosts",
        places.keys().cloned().collect::<Vec<_>>().join(" "),
        "adam adam.1 adam.2 adam.3",
    )?;
    let apart: BTreeSet<_> = places.values().collect();
    require(apart.len() == 3, "VMs on three hosts", &listed)?;
    let table = first.call(&["ls", "--all-hosts"])?;
    require(table.starts_with("NAME") && table.contains("HOST"), "a column of hosts", &table)?;

    for name in ["adam.1", "adam.2", "adam.3"] {
        first.call(&["wait", "--all-hosts", name, "--until", "ready"])?;
        let shown = first.json(&["inspect", "--all-hosts", name])?;
        require_eq("the host of a clone", shown["host"].as_str().unwrap_or_default(), places[name].as_str())?;
        let script = "cat > /tmp/given; echo line of $(gc vmid) > /dev/console; cat /tmp/given; exit 5";
        let run =
            first.vmctl_with_input(&["exec", "--all-hosts", name, "--", "sh", "-c", script], b"given")?;
        require_eq("a program in a clone", (run.code, run.text()), (5, "given".to_owned()))?;
        let console = first.call(&["logs", "--all-hosts", name])?;
        let line = format!("line of {}", name.trim_start_matches("adam."));
        require(console.contains(&line), "the console of that clone", &console)?;
    }

    // One that is elsewhere, and not on the host that is asked.
    let (name, _) =
        places.iter().rev().find(|(_, host)| **host != places["adam"]).ok_or("none is elsewhere")?;
    require_eq("a VM of another host, asked of this one", first.vmctl(&["kill", name])?.code, 3)?;
    require_eq("kill", first.call(&["kill", "--all-hosts", name])?, name.clone())?;
    let shown = first.json(&["inspect", "--all-hosts", name])?;
    require_eq("its end", shown["end_kind"].as_str().unwrap_or_default(), "killed")?;

    // A host that does not answer: the others' VMs are listed, and what is found is looked at.
    hosts.hosts[2].kill_vmmd()?;
    let first = &hosts.hosts[0];
    let listed = first.vmctl(&["-o", "json", "ls", "--all-hosts"])?;
    require(
        listed.code == 6 && listed.errors().contains("1 of 3 hosts"),
        "a list that says it is not complete",
        format!("{listed:?}"),
    )?;
    let left: Value = serde_json::from_str(&listed.text())?;
    require_eq("the VMs of two hosts", left.as_array().map_or(0, Vec::len), 3)?;
    require_eq(
        "a look",
        first.json(&["inspect", "--all-hosts", "adam"])?["name"].clone(),
        Value::from("adam"),
    )?;
    hosts.hosts[2].start_vmmd()?;
    let killed = hosts.hosts[0].call(&["kill", "--all-hosts", "--family", "adam"])?;
    require_eq("kill of a family", killed.lines().count(), 3)
}

fn a_guest_s_ticket_is_for_all_hosts_unless_its_own_keeps_it(stage: &Stage) -> Outcome {
    let hosts = Hosts::start(stage)?;
    let address = hosts.scheduler.address();
    let options = ["--scheduler", &address, "--max-vms", "2", "--warm", "0", "--tickets", "own"];
    let keeper = Host::start_apart(stage.setup(), &options)?;
    let told = own_ticket(&hosts, &keeper);
    let stopped = keeper.stop();
    hosts.stop()?;
    told?;
    Ok(stopped?)
}

fn own_ticket(hosts: &Hosts, keeper: &Host) -> Outcome {
    let all = hosts.hosts[0].json(&["host", "ls"])?;
    let name = all[0]["id"].as_str().unwrap_or_default();
    let shown = hosts.hosts[0].json(&["host", "inspect", name])?;
    require(shown["facts"]["lazy_memory"] == true, "what the host has", &shown)?;

    // As many as there is room for here, and the third one elsewhere.
    let parent = hosts.hosts[0].run("adam", &[])?;
    let ticket = parent.sh("gc rt 3 3 1 20000 | awk '{print $2}'")?;
    require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;
    let here = Hosts::clones_of(&hosts.hosts[..1], "adam")?;
    require(here.len() == 2, "two clones on the parent's host", format!("{here:?}"))?;
    let there = Hosts::clones_of(&hosts.hosts[1..], "adam")?;
    let kept = Hosts::clones_of(std::slice::from_ref(keeper), "adam")?;
    require(there.len() + kept.len() == 1, "one clone elsewhere", format!("{there:?} {kept:?}"))?;
    for vm in here.iter().chain(&there).chain(&kept) {
        vm.wait_ready()?;
        vm.sh("setsid sh -c 'gc sync; gc join --status 3' < /dev/null > /dev/null 2>&1 &")?;
    }
    parent.sh(&format!("gc sync {ticket} 120000"))?;
    parent.sh(&format!("gc join {ticket}"))?;

    // This host keeps its guests' tickets.
    let eve = keeper.run("eve", &[])?;
    let refused = eve.exec(&["gc", "rt", "3", "3", "1", "100"])?;
    require(refused.code == 22, "exit code 22 for three VMs on a host for two", format!("{refused:?}"))?;
    let ticket = eve.sh("gc rt 2 2 1 20000 | awk '{print $2}'")?;
    require_eq("gc clone in a VM of that host", eve.sh(&format!("gc clone {ticket}"))?, "0")?;
    let kept = Hosts::clones_of(std::slice::from_ref(keeper), "eve")?;
    require(kept.len() == 2, "two clones on their parent's host", format!("{kept:?}"))
}

fn hosts_without_the_image_fetch_it_once_and_run_the_clones(stage: &Stage) -> Outcome {
    // The parent's host has files that the other two do not see, as if they were on its disk only.
    let folder = tempfile::Builder::new().prefix("patina-images-").tempdir()?;
    let images = folder.path().join("images");
    fs::create_dir(&images)?;
    let [kernel, rootfs] = ["kernel", "rootfs"].map(|name| images.join(name));
    fs::copy(&stage.setup().kernel, &kernel)?;
    fs::copy(&stage.setup().rootfs, &rootfs)?;
    let setup = Setup { kernel, rootfs, image_cache: None, ..stage.setup().clone() };
    let script = folder.path().join("without-images");
    let hide = format!("mount -t tmpfs none {} && exec \"$@\"", images.display());
    fs::write(&script, format!("exec unshare --net --mount sh -c '{hide}' sh \"$@\"\n"))?;
    let wrapper = ["sh".to_owned(), script.to_string_lossy().into_owned()];

    let scheduler = Scheduler::start(stage.setup(), &["--overcommit-cpu", "64"])?;
    let address = scheduler.address();
    let options = ["--scheduler", &address, "--max-vms", "2", "--warm", "0"];
    let without = || Host::start_in(&setup, &wrapper, &options);
    let hosts = [Host::start_apart(&setup, &options)?, without()?, without()?];
    let hosts = Hosts { scheduler, hosts };
    let told = fetched_once(&hosts);
    let logs: Vec<_> = hosts.hosts.iter().map(Host::vmmd_log).collect();
    hosts.stop()?;
    told.map_err(|failed| format!("{}\n{}", failed.message().unwrap_or("failed"), logs.join("\n==\n")).into())
}

fn fetched_once(hosts: &Hosts) -> Outcome {
    let own = hosts.hosts[1].vmctl(&["run", "--name", "eve"])?;
    require(own.code != 0, "a host that cannot start a VM itself", format!("{own:?}"))?;
    let parent = hosts.hosts[0].run("adam", &[])?;
    let clone = || {
        let ticket = ticket_over_all(&hosts.hosts[0], &parent)?;
        require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")
    };
    clone()?;
    let vms = Hosts::clones_of(&hosts.hosts, "adam")?;
    require(vms.len() == 3, "three clones", format!("{vms:?}"))?;
    for vm in &vms {
        vm.wait_ready()?;
        // A program that the parent has not run is read from the root file system.
        require_eq("a program in a clone", vm.sh("echo in-a-clone | md5sum | cut -c -8")?, "750a0337")?;
    }
    let first = fetched_files(hosts)?;
    require(first[0].is_empty(), "no file that the parent's host fetched", format!("{first:?}"))?;
    for files in &first[1..] {
        require(files.len() == 2, "a kernel and a root file system", format!("{first:?}"))?;
    }
    // The next clones find them there, and so do those of a clone.
    clone()?;
    let vms = Hosts::clones_of(&hosts.hosts, "adam")?;
    require(vms.len() == 6, "six clones", format!("{vms:?}"))?;
    for vm in &vms {
        vm.wait_ready()?;
    }
    require(fetched_files(hosts)? == first, "the same files", format!("{first:?}"))
}

/// The files that hosts have fetched: another file under the same name has another number.
fn fetched_files(hosts: &Hosts) -> Result<Vec<BTreeMap<String, u64>>, Failed> {
    let of = |host: &Host| {
        let entries = fs::read_dir(host.state_dir().join("fetched"))?;
        let number = |entry: std::io::Result<fs::DirEntry>| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.ino()))
        };
        entries.map(number).collect::<std::io::Result<_>>().map_err(Failed::from)
    };
    hosts.hosts.iter().map(of).collect()
}

fn the_map_reduce_example_runs_over_three_hosts_unchanged(stage: &Stage) -> Outcome {
    let hosts = Hosts::start(stage)?;
    let told = map_reduce(&hosts);
    hosts.stop()?;
    told
}

fn map_reduce(hosts: &Hosts) -> Outcome {
    let parent = hosts.hosts[0].run("adam", &[])?;
    parent.put("/tmp/example.sh", EXAMPLE.as_bytes())?;
    // A host has room for two.
    let told = parent.call(&["sh", "/tmp/example.sh", "5", "5"])?;
    require_eq("the number of primes", told, "2262")?;
    let mut all = 0;
    for host in &hosts.hosts {
        let clones = Hosts::clones_of(std::slice::from_ref(host), "adam")?;
        require(!clones.is_empty(), "clones on each host", format!("{clones:?}"))?;
        for vm in &clones {
            let (kind, reason) = vm.wait_ended()?;
            require(kind == "joined", format!("{} has joined", vm.name()), format!("{kind}, {reason}"))?;
        }
        all += clones.len();
    }
    require_eq("the clones", all, 5)
}

/// A ticket for one clone on each host.
pub fn ticket_over_all(host: &Host, parent: &Vm<'_>) -> Result<String, Failed> {
    let family = parent.field("family")?;
    let request = ["ticket", "request", "--max-cpus", "3", "--min-vms", "3", "--family", &family];
    let size = ["--vcpus", "1", "--memory", "256M", "--anywhere", "--policy", "spread"];
    let granted = host.json(&[&request[..], &size[..]].concat())?;
    let places = granted["placements"].as_array().map_or(0, Vec::len);
    require(places == 3, "a ticket on three hosts", &granted)?;
    Ok(granted["id"].as_str().unwrap_or_default().to_owned())
}
