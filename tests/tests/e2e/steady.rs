//! Guests that stay usable whatever their programs do: they fill file systems, set the clock, or
//! drop their calls.

use crate::{
    Outcome, Story,
    family::{Family, in_each, require, require_eq, with_family},
    stage::Stage,
};
use libtest_mimic::Failed;
use patina_tests::{host::Host, vm::Vm};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub const STORIES: &[Story] = stories![
    a_full_guest_still_answers_and_is_cloned,
    with_family(a_clock_that_is_set_is_right_again),
    with_family(a_killed_call_for_a_clone_makes_none),
    with_family(boot_ids_differ_in_a_procfs_of_ones_own),
    with_family(one_guests_requests_reach_no_other),
];

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// As `nc` prints them.
const ECONNREFUSED: &str = "Connection refused";
const EHOSTUNREACH: &str = "No route to host";

fn a_full_guest_still_answers_and_is_cloned(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    let small = host.run("small", &["--memory", "64M"])?;
    let told = full_guest(host, &small);
    let names = host.json(&["ls"])?;
    let names = names.as_array().into_iter().flatten().filter_map(|vm| vm["name"].as_str());
    for name in names.filter(|name| name.starts_with("small")) {
        host.call(&["rm", "-f", name])?;
    }
    told
}

fn full_guest(host: &Host, small: &Vm<'_>) -> Outcome {
    let agent = small.sh("pidof gc-agent")?;
    require_eq(
        "oom_score_adj of the agent, init and a program",
        small
            .sh(&format!("cat /proc/{agent}/oom_score_adj /proc/1/oom_score_adj /proc/self/oom_score_adj"))?,
        "-1000\n-1000\n0",
    )?;
    for place in ["/tmp/f", "/f", "/dev/shm/f", "/run/f"] {
        let written = small.sh(&format!("cat /dev/zero 2>&1 > {place} | cat"))?;
        require(
            written.contains("No space left on device"),
            format!("{place} is filled until no space is left"),
            &written,
        )?;
    }
    require_eq("free KiB", small.sh("df -k / | tail -n 1 | tr -s ' ' | cut -d ' ' -f 4")?, "0")?;
    let made = host.json(&["clone", "small", "--count", "1", "--timeout", "300"])?;
    let name = made["clones"][0]["name"].as_str().ok_or_else(|| Failed::from(made.to_string()))?;
    let clone = host.vm(name);
    require_eq("the clone's vmid", clone.sh("gc vmid; grep vmid /run/gridcentric/identity")?, "1\nvmid=1")?;
    // With the memory that is left for programs used up, a program goes and the agent stays.
    in_each(&[small, &clone], |vm| {
        let ended = vm.exec(&["awk", "BEGIN { s = \"0123456789\"; while (1) s = s s }"])?;
        require(ended.code != 0, "a program that takes all memory fails", format!("{ended:?}"))?;
        require_eq("the agent's process", vm.sh("pidof gc-agent")?, agent.as_str())
    })?;
    Ok(())
}

/// How far a VM's clock is behind its host's, seconds.
fn behind(vm: &Vm<'_>) -> Result<f64, Failed> {
    let theirs: f64 = vm.sh("date +%s")?.parse().map_err(|_| "date prints no number")?;
    let own = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
    Ok((own.as_secs_f64() - theirs).abs())
}

fn a_clock_that_is_set_is_right_again(family: &Family<'_>) -> Outcome {
    let clones = family.clone(1)?;
    for vm in [&family.parent, &clones[0]] {
        let seconds = behind(vm)?;
        require(seconds < 5.0, "a clock less than 5 s away from the host's", format!("{seconds} s"))?;
        vm.sh("date -s @$(($(date +%s) - 3600)) > /dev/null")?;
        let since = Instant::now();
        loop {
            let seconds = behind(vm)?;
            if seconds <= 5.0 {
                break;
            }
            require(
                since.elapsed() < Duration::from_secs(10),
                "a clock that is right again within 10 s",
                format!("it is {seconds} s away"),
            )?;
        }
    }
    Ok(())
}

fn a_killed_call_for_a_clone_makes_none(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    parent.sh("mkdir -p /etc/gridcentric; rm -f /tmp/go; cd /etc/gridcentric; \
        printf '#!/bin/sh\nwhile ! [ -e /tmp/go ]; do sleep 0.1; done\n' > pre-clone; chmod +x pre-clone")?;
    let told = (|| {
        parent.sh("(gc clone 1 > /tmp/first 2>&1 < /dev/null &); while ! pidof pre-clone > /dev/null; do sleep 0.1; done")?;
        require_eq(
            "the exit code of the second gc clone",
            parent.sh("timeout -s KILL 1 gc clone 1; echo $?")?,
            "137",
        )?;
        parent.sh("touch /tmp/go")?;
        let since = Instant::now();
        let clone = loop {
            let names = family.clone_names()?;
            if let [name] = &names[..] {
                break family.host.vm(name);
            }
            require(
                since.elapsed() < PATIENCE,
                format!("one clone within {PATIENCE:?}"),
                format!("{names:?}"),
            )?;
        };
        clone.wait_ready()?;
        for vm in [parent, &clone] {
            vm.sh("while ! [ -s /tmp/first ]; do sleep 0.1; done")?;
            // Whatever waited in line comes before this.
            require_eq(
                "lines that the next gc clone prints",
                vm.sh("timeout 60 gc clone 1")?.lines().count(),
                1,
            )?;
        }
        let made = family.clone_names()?;
        require(made.len() == 3, "three clones", format!("{made:?}"))
    })();
    parent.sh("rm -f /etc/gridcentric/pre-clone; touch /tmp/go")?;
    told
}

fn boot_ids_differ_in_a_procfs_of_ones_own(family: &Family<'_>) -> Outcome {
    let clones = family.clone(2)?;
    let read = |vm: &Vm<'_>| {
        vm.sh(
            "mkdir -p /tmp/p; mount -t proc proc /tmp/p; cat /tmp/p/sys/kernel/random/boot_id; umount /tmp/p",
        )
    };
    let ids = [read(&family.parent)?, read(&clones[0])?, read(&clones[1])?];
    let id = clones[0].sh("cat /proc/sys/kernel/random/boot_id")?;
    require(
        id == ids[1] && id.len() == 36,
        "a boot ID of 36 characters, the same in both places",
        format!("{id} {ids:?}"),
    )?;
    require(
        ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2],
        "three different boot IDs",
        format!("{ids:?}"),
    )
}

/// Frames that a guest has received: each costs it time.
fn received(vm: &Vm<'_>) -> Result<u64, Failed> {
    let count = vm.sh("grep eth0: /proc/net/dev | tr ':' ' ' | tr -s ' ' | cut -d ' ' -f 4")?;
    count.trim().parse().map_err(|_| format!("no number of frames: {count:?}").into())
}

/// What the other guests may have received meanwhile of what has nothing to do with it. Requests to
/// all would be four frames at least: one for the VM that runs, three for that which does not.
const NOISE_MAX_FRAMES: u64 = 2;

fn one_guests_requests_reach_no_other(family: &Family<'_>) -> Outcome {
    let clones = family.clone(3)?;
    let [one, other, third] = &clones[..] else { return Err("not three clones".into()) };
    let before = [received(third)?, received(&family.parent)?];
    let ask = |ip: &str, error: &str| {
        let said = one.exec(&["nc", "-w", "50", ip, "9"])?;
        require(said.code != 0 && said.errors().contains(error), error, format!("{said:?}"))
    };
    ask(&other.field("ip")?, ECONNREFUSED)?;
    let gone =
        third.field("ip")?.rsplit_once('.').map(|(net, _)| format!("{net}.200")).ok_or("no address")?;
    let since = Instant::now();
    ask(&gone, EHOSTUNREACH)?;
    require(
        since.elapsed() < PATIENCE,
        format!("an error within {PATIENCE:?}"),
        format!("{:?}", since.elapsed()),
    )?;
    let after = [received(third)?, received(&family.parent)?];
    require(
        (0..2).all(|at| after[at] - before[at] <= NOISE_MAX_FRAMES),
        format!("at most {NOISE_MAX_FRAMES} frames more"),
        format!("{before:?}, then {after:?}"),
    )
}
