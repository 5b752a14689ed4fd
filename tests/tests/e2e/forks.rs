//! A guest clones itself: `gc clone`, and programs that call the agent as `gc` does.

use crate::{
    Outcome, Story,
    family::{Family, require, require_eq, with_family},
    network::{end_servers, serve},
};
use libtest_mimic::Failed;
use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
};

pub const STORIES: &[Story] = stories![
    with_family(a_python_program_forks_machines_that_know_who_they_are),
    with_family(gc_clone_prints_0_in_the_parent_and_the_vmid_in_each_clone),
    with_family(a_ticket_is_for_as_many_clones_as_were_granted),
    with_family(a_ticket_for_more_than_is_free_is_refused_in_time),
    with_family(a_clone_of_a_clone_of_a_clone_goes_on),
    with_family(clones_talk_tcp_to_the_master_and_to_each_other),
    with_family(a_connection_to_the_outside_stays_with_the_parent),
    with_family(invalid_arguments_of_gc_clone),
];

/// The most VMs of a ticket.
const TICKET_VMS_MAX: u64 = 256;
/// Whoever forks machines holds this lock until it has told who it is, in every one of them.
const LOCK: &str = "/tmp/lock";
/// Where [`Family::parent`] has the tests' program.
const CHECK: &str = "/tmp/guest-check";

/// Calls the agent as any language can, forks machines, and tells each of them who it is.
const PYTHON: &str = include_str!("../../../examples/guest/fork.py");

fn a_python_program_forks_machines_that_know_who_they_are(family: &Family<'_>) -> Outcome {
    family.parent.install("guest-check")?;
    let parent = &family.parent;
    parent.put("/tmp/fork.py", PYTHON.as_bytes())?;
    parent.call(&[CHECK, "lock", LOCK, "python3", "/tmp/fork.py", "3", "/tmp/told"])?;
    let told = parent.call(&["cat", "/tmp/told"])?;
    let who = format!("0 {} from before ", parent.field("ip")?);
    let vmids = told.strip_prefix(&who).ok_or_else(|| format!("the parent told {told:?}"))?;
    require(vmids.split(' ').count() == 3, "three vmids", vmids)?;
    for vmid in vmids.split(' ') {
        let clone = family.ready(vmid.parse()?)?;
        let told = clone.call(&[CHECK, "lock", LOCK, "cat", "/tmp/told"])?;
        require_eq(
            format!("what clone {vmid} told"),
            told,
            format!("{vmid} {} from before", clone.field("ip")?),
        )?;
    }
    Ok(())
}

/// The vmids of the family's clones that still run, as the guest sees them.
fn clones_in(list: &str) -> Vec<u32> {
    let vmid = |line: &str| line.split_whitespace().next().and_then(|word| word.parse().ok());
    list.lines().filter(|line| !line.contains("ended")).filter_map(vmid).filter(|vmid| *vmid != 0).collect()
}

fn gc_clone_prints_0_in_the_parent_and_the_vmid_in_each_clone(family: &Family<'_>) -> Outcome {
    family.parent.install("guest-check")?;
    let parent = &family.parent;
    let script = "vmid=$(gc clone 2); echo $vmid $? | tee /tmp/who";
    require_eq("gc clone in the parent", parent.call(&[CHECK, "lock", LOCK, "sh", "-c", script])?, "0 0")?;
    let clones = clones_in(&parent.call(&["gc", "list"])?);
    require(clones.len() == 2, "two clones", format!("{clones:?}"))?;
    for vmid in clones {
        let clone = family.ready(vmid)?;
        let who = clone.call(&[CHECK, "lock", LOCK, "cat", "/tmp/who"])?;
        require_eq(format!("gc clone in clone {vmid}"), who, format!("{vmid} 0"))?;
        require_eq("the exit code of gc ismaster in a clone", clone.exec(&["gc", "ismaster"])?.code, 1)?;
    }
    require_eq("the exit code of gc ismaster in the parent", parent.exec(&["gc", "ismaster"])?.code, 0)?;
    let quick = parent.sh("gc clone 1 --no-hold")?;
    require_eq("gc clone --no-hold in the parent", quick, "0")
}

fn a_ticket_is_for_as_many_clones_as_were_granted(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    let ticket = parent.sh("gc rt 2 2 1 10000 | awk '{print $2}'")?;
    require(ticket.len() == 36, "a ticket, which is 36 characters long", &ticket)?;
    let listed = parent.sh("gc lt | grep ticket | awk '{print $2, $4, $5}'")?;
    require(listed.contains(&format!("{ticket} 2 2")), format!("gc lt lists {ticket} 2 2"), &listed)?;
    require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;
    let clones = clones_in(&parent.call(&["gc", "list"])?);
    require(clones.len() == 2, "two clones", format!("{clones:?}"))?;
    let again = parent.exec(&["gc", "clone", &ticket])?;
    require(
        again.code != 0 && again.errors().contains("used"),
        "a refusal of a ticket that is used",
        format!("{again:?}"),
    )
}

/// As much as the host has in all can be waited for, and is not to be had while something of it is
/// held, whatever the host's size.
fn a_ticket_for_more_than_is_free_is_refused_in_time(family: &Family<'_>) -> Outcome {
    let hosts = family.host.json(&["hosts"])?;
    let of = |name: &str| hosts[0][name].as_u64().ok_or_else(|| format!("no {name}: {hosts}"));
    let memory_mib = family.parent.field_number("memory_mib")?;
    let vms = of("cpus")?.min(of("memory_mib")? / memory_mib).min(TICKET_VMS_MAX).to_string();
    let mut held = Vec::new();
    let told = loop {
        let asked = family.parent.exec(&["gc", "rt", &vms, &vms, "1", "100"])?;
        match asked.text().strip_prefix("ticket: ") {
            Some(ticket) => held.push(ticket.to_owned()),
            None => {
                break require(
                    asked.code == 16 && asked.text().is_empty(),
                    "exit code 16 and no ticket",
                    format!("{asked:?}"),
                );
            }
        }
    };
    for ticket in &held {
        family.host.call(&["ticket", "release", ticket])?;
    }
    told?;
    require(!held.is_empty(), "some tickets are granted before one is refused", "none")
}

fn a_clone_of_a_clone_of_a_clone_goes_on(family: &Family<'_>) -> Outcome {
    family.parent.install("guest-check")?;
    let mut vm = family.parent.clone();
    vm.sh("echo 0 > /tmp/path")?;
    for _ in 0..3 {
        let known = clones_in(&vm.call(&["gc", "list"])?);
        let script = "vmid=$(gc clone 1); if [ \"$vmid\" != 0 ]; then echo $vmid >> /tmp/path; fi";
        vm.call(&[CHECK, "lock", LOCK, "sh", "-c", script])?;
        let all = clones_in(&vm.call(&["gc", "list"])?);
        let new = all.iter().find(|vmid| !known.contains(vmid)).ok_or("no new clone")?;
        vm = family.ready(*new)?;
        vm.call(&[CHECK, "lock", LOCK, "true"])?;
    }
    let path = vm.sh("tr '\\n' ' ' < /tmp/path")?;
    require(path.split_whitespace().count() == 4, "four vmids", &path)?;
    let parents: Result<Vec<u64>, Failed> = path
        .split_whitespace()
        .skip(1)
        .map(|vmid| Ok(family.member(vmid.parse()?).field_number("parent_vmid")?))
        .collect();
    let expected: Vec<u64> = path.split_whitespace().take(3).filter_map(|vmid| vmid.parse().ok()).collect();
    require_eq(format!("the parents of {path}"), parents?, expected.as_slice())?;
    // The one in the middle ends, and its clone goes on.
    let middle = expected[1];
    family.member(u32::try_from(middle)?).kill()?;
    require(vm.call(&["gc", "vmid"])? != "0", "the last clone goes on with a vmid of its own", "vmid 0")
}

fn clones_talk_tcp_to_the_master_and_to_each_other(family: &Family<'_>) -> Outcome {
    let clones = family.clone(2)?;
    let all = [&family.parent, &clones[0], &clones[1]];
    for vm in all {
        serve(vm, 7000, "gc vmid")?;
    }
    for (from, to) in [(1, 0), (1, 2), (2, 1), (0, 2)] {
        let heard = all[from].call(&["nc", &all[to].field("ip")?, "7000"])?;
        require_eq(
            format!("the answer of {}", all[to].name()),
            heard,
            all[to].field_number("vmid")?.to_string(),
        )?;
    }
    end_servers(&family.parent)
}

/// Connects to the host, says hello; is cloned; then tells what comes of the connection.
const OUTSIDE: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
s.sendall(b'hello')
s.recv(5)
open('/tmp/connected', 'w').write('yes')
open('/tmp/go').read()
try:
    s.sendall(b'again')
    told = s.recv(5).decode() or 'closed'
except OSError as error:
    told = type(error).__name__
open('/tmp/outcome', 'w').write(told)";

fn a_connection_to_the_outside_stays_with_the_parent(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    let gateway = parent.field("gateway")?;
    let listener = TcpListener::bind((gateway.as_str(), 0))?;
    let port = listener.local_addr()?.port();
    parent.sh("cd /tmp; rm -f connected go outcome; mkfifo connected go outcome")?;
    parent.put("/tmp/outside.py", OUTSIDE.as_bytes())?;
    parent.sh(&format!("setsid python3 /tmp/outside.py {gateway} {port} < /dev/null > /dev/null 2>&1 &"))?;
    let (mut stream, _) = listener.accept()?;
    let mut heard = [0; 5];
    stream.read_exact(&mut heard)?;
    stream.write_all(b"hello")?;
    require_eq("/tmp/connected, which the program writes", parent.sh("cat /tmp/connected")?, "yes")?;
    let clones = family.clone(1)?;
    let told = clones[0].sh("echo > /tmp/go; cat /tmp/outcome")?;
    let is_ended = told == "ConnectionAbortedError" || told == "ConnectionResetError";
    require(is_ended, "the clone's connection is aborted or reset", told)?;
    parent.sh("echo > /tmp/go")?;
    stream.read_exact(&mut heard)?;
    stream.write_all(b"still")?;
    let told = parent.sh("cat /tmp/outcome")?;
    require(
        told == "still" && &heard == b"again",
        "the parent's connection goes on: again from it, and still to it",
        format!("{:?} and {told:?}", heard.escape_ascii().to_string()),
    )
}

fn invalid_arguments_of_gc_clone(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    let unknown = "00000000-0000-4000-8000-000000000000";
    for argument in ["0", "-1", "100000", "x", "", unknown] {
        let output = parent.exec(&["gc", "clone", argument])?;
        require(
            output.code != 0 && !output.errors().is_empty() && output.text().is_empty(),
            format!("gc clone {argument:?} is refused with an error alone"),
            format!("{output:?}"),
        )?;
    }
    require_eq("the clones", family.clone_names()?, [""; 0])
}
