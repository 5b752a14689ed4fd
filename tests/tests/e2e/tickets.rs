//! Tickets in real guests: requesting, cloning, barriers, joins and kills.

use crate::{
    Outcome, Story,
    family::{Family, require, require_eq, with_family},
    stage::Stage,
};
use libtest_mimic::Failed;
use patina_tests::{
    host::{CALL_DEADLINE, Host},
    process,
    vm::Vm,
};

pub const STORIES: &[Story] = stories![
    with_family(a_map_reduce_job_in_shell_asks_clones_meets_works_and_joins),
    with_family(the_example_of_the_man_page_counts_primes_and_ends_where_it_is_refused),
    with_family(a_barrier_works_again_after_deaths_and_late_calls),
    with_family(a_clone_leaves_a_status_and_a_mebibyte),
    with_family(what_is_killed_is_given_back),
    with_family(invalid_arguments_are_refused_with_a_message),
    with_family(an_operator_can_do_all_of_it_from_outside),
    with_family(a_python_program_drives_clones_over_grpc),
    a_scheduler_that_is_killed_keeps_its_ledger,
];

/// As the users of Copper wrote it: the master serves, each clone works on its part.
const MAP_REDUCE: &str = r#"#!/bin/sh
N=$1
MASTER=$(gc my-ip)
TICKET=$(gc rt $N $N 1 60000 | awk '{print $2}')
gc lt | grep ticket | awk '{print $2}' | grep -q "^$TICKET\$" || exit 3
VMID=$(gc clone $TICKET) || exit 4
gc ismaster; IS_MASTER=$?
if [ $IS_MASTER -eq 0 ]; then
    gc sync $TICKET 60000 || exit 5
    python3 /tmp/server.py $N || exit 6
    gc join $TICKET 60000 || exit 7
    gc ticket $TICKET | awk '{print $3}'
else
    gc sync || exit 5
    python3 /tmp/worker.py $MASTER $VMID
    gc join noreport
fi
"#;

const SERVER: &str = "import socket, sys
s = socket.create_server(('', 7100))
total = 0
for _ in range(int(sys.argv[1])):
    c, peer = s.accept()
    total += int(c.makefile().readline())
    c.close()
print('total', total)";

/// The server may come later than its workers.
const WORKER: &str = "import socket, sys
part = int(sys.argv[2]) % 3
answer = sum(i * i for i in range(part, 3000, 3))
while True:
    try:
        c = socket.create_connection((sys.argv[1], 7100), 30)
        break
    except ConnectionRefusedError:
        pass
c.sendall(b'%d\\n' % answer)
c.recv(1)";

fn a_map_reduce_job_in_shell_asks_clones_meets_works_and_joins(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    for (place, text) in [("/tmp/job.sh", MAP_REDUCE), ("/tmp/server.py", SERVER), ("/tmp/worker.py", WORKER)]
    {
        parent.put(place, text.as_bytes())?;
    }
    let told = parent.call(&["sh", "/tmp/job.sh", "3"])?;
    let lines: Vec<&str> = told.lines().collect();
    let sum: u64 = (0..3000_u64).map(|i| i * i).sum();
    let total = format!("total {sum}");
    require(lines.first() == Some(&total.as_str()), format!("the first line is {total:?}"), &told)?;
    require(
        lines.len() == 5 && lines[1..4].iter().all(|line| line.ends_with(" joined -")),
        "the job prints five lines, of which three are clones that joined",
        &told,
    )?;
    require(lines.last() == Some(&"released"), "the last line is \"released\"", &told)?;
    for name in family.clone_names()? {
        let vm = family.host.vm(&name);
        let (kind, reason) = vm.wait_ended()?;
        require(kind == "joined", format!("{name} has joined"), format!("{kind}, {reason}"))?;
    }
    Ok(())
}

/// The job that the man page shows.
pub const EXAMPLE: &str = include_str!("../../../examples/guest/map_reduce.sh");

fn the_example_of_the_man_page_counts_primes_and_ends_where_it_is_refused(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    parent.put("/tmp/example.sh", EXAMPLE.as_bytes())?;
    let told = parent.call(&["sh", "/tmp/example.sh", "3"])?;
    require_eq("the number of primes", told, "2262")?;
    for name in family.clone_names()? {
        let (kind, reason) = family.host.vm(&name).wait_ended()?;
        require(kind == "joined", format!("{name} has joined"), format!("{kind}, {reason}"))?;
    }
    let before = family.clone_names()?;
    let refused = parent.exec(&["sh", "/tmp/example.sh", "9", "4"])?;
    require(
        refused.code == 1 && refused.text().is_empty() && !refused.errors().is_empty(),
        "exit code 1 and an error alone",
        format!("{refused:?}"),
    )?;
    require_eq("the clones after a refusal", family.clone_names()?, before)
}

/// Clones a VM with a ticket for so many; the ticket, and the clones, ready.
fn with_ticket<'a>(host: &'a Host, parent: &Vm<'_>, count: u32) -> Result<(String, Vec<Vm<'a>>), Failed> {
    let ticket = parent.sh(&format!("gc rt {count} {count} 1 20000 | awk '{{print $2}}'"))?;
    require_eq("gc clone in the parent", parent.sh(&format!("gc clone {ticket}"))?, "0")?;
    let all = host.json(&["ls"])?;
    let of_ticket = all.as_array().ok_or("no list")?.iter().filter(|vm| vm["ticket"] == ticket.as_str());
    let clones: Vec<Vm<'a>> =
        of_ticket.filter_map(|vm| vm["name"].as_str()).map(|name| host.vm(name)).collect();
    for vm in &clones {
        vm.wait_ready()?;
    }
    require(
        clones.len() == usize::try_from(count)?,
        format!("{count} clones"),
        format!("{} in {all}", clones.len()),
    )?;
    Ok((ticket, clones))
}

fn a_barrier_works_again_after_deaths_and_late_calls(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    let (ticket, clones) = with_ticket(family.host, parent, 2)?;
    let late = parent.exec(&["gc", "sync", &ticket, "300"])?;
    require(
        late.code == 62 && late.errors().contains("1 of 3"),
        "exit code 62 and an error with 1 of 3",
        format!("{late:?}"),
    )?;
    // Who meets leaves a mark that nobody has before all have come.
    for round in 1..=3 {
        let meet =
            format!("setsid sh -c 'gc sync; echo $? > /tmp/met-{round}' < /dev/null > /dev/null 2>&1 &");
        clones[0].sh(&meet)?;
        require_eq(
            "the exit code of a test for what the first clone writes after the meeting",
            clones[1].sh(&format!("test -e /tmp/met-{round}; echo $?"))?,
            "1",
        )?;
        clones[1].sh(&meet)?;
        parent.call(&["gc", "sync", &ticket, "60000"])?;
        for clone in &clones {
            let met = format!("while ! grep . /tmp/met-{round} 2> /dev/null; do :; done");
            require_eq(format!("gc sync in {}, round {round}", clone.name()), clone.sh(&met)?, "0")?;
        }
    }
    // One dies while the others wait.
    clones[0].sh("setsid sh -c 'gc sync; echo $? > /tmp/met-last' < /dev/null > /dev/null 2>&1 &")?;
    let waits =
        family.host.vmctl_command(&["exec", parent.name(), "--", "gc", "sync", &ticket, "60000"]).spawn()?;
    clones[1].kill()?;
    let met = waits.wait_with_output()?;
    require(met.status.success(), "gc sync in the parent succeeds", format!("{met:?}"))?;
    require_eq(
        "gc sync in the clone that is left",
        clones[0].sh("while ! grep . /tmp/met-last 2> /dev/null; do :; done")?,
        "0",
    )?;
    let foreign = clones[0].exec(&["gc", "sync", "00000000-0000-4000-8000-000000000000"])?;
    require(foreign.code == 2, "exit code 2 for an unknown ticket", format!("{foreign:?}"))
}

fn a_clone_leaves_a_status_and_a_mebibyte(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    let (ticket, clones) = with_ticket(family.host, parent, 3)?;
    let leave =
        |vm: &Vm<'_>, what: &str| vm.sh(&format!("setsid sh -c '{what}' < /dev/null > /dev/null 2>&1 &"));
    leave(
        &clones[0],
        "head -c 1048576 /dev/zero | tr \"\\\\0\" x > /tmp/d; gc join --status 7 --data /tmp/d",
    )?;
    leave(&clones[1], "echo -n small | gc join --data -")?;
    clones[2].kill()?;
    let told = parent.call(&["gc", "join", &ticket, "120000", "--data-dir", "/tmp/results"])?;
    let vmids: Result<Vec<u64>, _> = clones.iter().map(|clone| clone.field_number("vmid")).collect();
    let [first, second, third] = vmids?[..] else { return Err("three clones".into()) };
    require_eq("the results", told, format!("{first} joined 7\n{second} joined 0\n{third} killed 0"))?;
    let sizes =
        parent.sh(&format!("cd /tmp/results; wc -c < {first}; tr -d x < {first} | wc -c; cat {second}"))?;
    require_eq("the data of the first two", sizes, "1048576\n0\nsmall")?;
    let (kind, reason) = clones[0].wait_ended()?;
    require(
        kind == "joined" && reason.contains("status 7"),
        "the clone joined with status 7",
        format!("{kind}, {reason}"),
    )?;
    let again = parent.exec(&["gc", "join", &ticket])?;
    require(again.code == 0, "exit code 0 for a second join", format!("{again:?}"))?;
    let wrong = parent.exec(&["gc", "join", "noreport"])?;
    require(
        wrong.code == 22 && wrong.errors().contains("master"),
        "exit code 22 and an error that names the master",
        format!("{wrong:?}"),
    )
}

fn what_is_killed_is_given_back(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    let (ticket, clones) = with_ticket(family.host, parent, 3)?;
    let vmid = clones[0].field_number("vmid")?.to_string();
    parent.call(&["gc", "kill", &vmid])?;
    require_eq("how the clone ended", clones[0].wait_ended()?.0, "killed")?;
    let status = || parent.sh(&format!("gc ticket {ticket} | awk '{{print $3}}'"));
    require_eq("the ticket's status while two clones run", status()?, "used")?;
    parent.call(&["gc", "kill", "--ticket", &ticket])?;
    require_eq("the ticket's status when none runs", status()?, "released")?;
    let unknown = parent.exec(&["gc", "kill", "4000"])?;
    require(
        unknown.code != 0 && unknown.errors().contains("4000"),
        "a refusal that names vmid 4000",
        format!("{unknown:?}"),
    )
}

fn invalid_arguments_are_refused_with_a_message(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    for arguments in [
        "rt 0 0 0 0",
        "rt -1 1 1 1",
        "rt 99999999999 1 1 1",
        "rt 1 2 1 1",
        "rt 1 1 9 1",
        "rt 1 1 1",
        "ticket x",
        "sync x",
        "sync",
        "kill",
        "kill x",
        "kill -1",
        "join",
        "clone",
    ] {
        let words: Vec<&str> = ["gc"].into_iter().chain(arguments.split(' ')).collect();
        let output = parent.exec(&words)?;
        let refused = output.code != 0 && !output.errors().is_empty() && output.text().is_empty();
        require(refused, format!("gc {arguments} is refused with an error alone"), format!("{output:?}"))?;
    }
    // A ticket is used once, by one of two that race for it.
    let ticket = parent.sh("gc rt 1 1 1 20000 | awk '{print $2}'")?;
    let race = format!(
        "gc clone {ticket} & one=$!; gc clone {ticket}; a=$?; wait $one; b=$?; echo $(( (a == 0) + (b == 0) ))"
    );
    let outcome = parent.sh(&race)?;
    require(outcome.ends_with('1'), "one of two calls with the same ticket succeeds", outcome)?;
    let listed = parent.call(&["gc", "lt"])?;
    require(
        listed.contains(&format!("ticket: {ticket} used 1 1 1")),
        format!("gc lt lists {ticket} as used 1 1 1"),
        listed,
    )
}

fn an_operator_can_do_all_of_it_from_outside(family: &Family<'_>) -> Outcome {
    let (host, parent) = (family.host, &family.parent);
    let ask = ["ticket", "request", "--family", parent.name(), "--max-cpus", "2", "--min-vms", "2"];
    let ticket = host.call(&ask)?;
    require(
        ticket.len() == 36 && parent.call(&["gc", "lt"])?.contains(&ticket),
        "gc lt lists the ticket, which is 36 characters long",
        &ticket,
    )?;
    let small = host.vmctl(&["clone", parent.name(), "--ticket", &ticket, "--count", "3"])?;
    require(small.code != 0, "a ticket for two is refused for three", format!("{small:?}"))?;
    let clones = family.made(&["clone", parent.name(), "--ticket", &ticket, "--timeout", "300"])?;
    require_eq("the number of clones", clones.len(), 2)?;
    for clone in &clones {
        clone.sh("setsid sh -c 'gc sync; echo -n of $(gc vmid) | gc join --status 4 --data -' < /dev/null > /dev/null 2>&1 &")?;
    }
    host.call(&["sync", &ticket, "--timeout", "120"])?;
    let results = host.dir().join("results");
    let joined =
        host.call(&["join", &ticket, "--timeout", "120", "--data-dir", &results.display().to_string()])?;
    require(joined.matches("joined").count() == 2, "two clones joined", joined)?;
    for clone in &clones {
        let vmid = clone.field_number("vmid")?.to_string();
        let left = std::fs::read_to_string(results.join(&vmid))?;
        require_eq(format!("the data of clone {vmid}"), left, format!("of {vmid}"))?;
    }
    let status = host.json(&["ticket", "inspect", &ticket])?;
    require(status["state"] == "released", "the state is released", &status)?;
    let kept = host.call(&ask)?;
    host.call(&["ticket", "release", &kept])?;
    let listed = host.call(&["ticket", "ls", "--family", parent.name()])?;
    let line = listed.lines().find(|line| line.contains(&kept)).unwrap_or_default();
    require(line.contains("released"), format!("{kept} is released"), &listed)?;
    let events = host.call(&["events"])?;
    require(
        ["created", "cloned", "ready", "ended"].iter().all(|kind| events.contains(kind)),
        "the events created, cloned, ready and ended",
        events,
    )?;
    let top = host.call(&["top", "--once"])?;
    require(top.contains(parent.name()), format!("vmctl top shows {}", parent.name()), top)?;
    let hosts = host.json(&["hosts"])?;
    require(hosts[0]["alive"] == true, "the host is alive", hosts)
}

/// With the stubs that protoc makes of the interfaces, and Debian's grpcio.
fn a_python_program_drives_clones_over_grpc(family: &Family<'_>) -> Outcome {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let stubs = family.host.dir().join("stubs");
    std::fs::create_dir_all(&stubs)?;
    let mut protoc = std::process::Command::new("protoc");
    protoc.arg("-I").arg(root.join("proto"));
    for option in ["--python_out", "--grpc_python_out"] {
        protoc.arg(format!("{option}={}", stubs.display()));
    }
    protoc.arg("--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin");
    let interfaces = ["scheduler", "host_facts", "vmmd"];
    protoc.args(interfaces.map(|name| format!("patina/v1/{name}.proto")));
    let made = process::run(&mut protoc, b"", CALL_DEADLINE)?;
    require(made.code == 0, "protoc succeeds", format!("{made:?}"))?;
    let mut program = std::process::Command::new("/usr/bin/python3");
    program.arg(root.join("examples/grpc/map_reduce.py")).env("PYTHONPATH", &stubs);
    program.args([family.parent.name(), "--workers", "2", "--host", &family.host.address()]);
    let told = process::run(&mut program, b"", CALL_DEADLINE)?;
    require(
        told.code == 0 && told.text().contains("3 VMs met"),
        "the program succeeds, and says that 3 VMs met",
        format!("{told:?}"),
    )?;
    require(told.text().ends_with("total 499999500000"), "the total is 499999500000", told.text())
}

fn a_scheduler_that_is_killed_keeps_its_ledger(stage: &Stage) -> Outcome {
    let mut host = Host::start(stage.setup())?;
    let told = restart(&mut host);
    host.stop()?;
    told
}

/// The built-in scheduler goes with its vmmd.
fn restart(host: &mut Host) -> Outcome {
    // What an image's VM has is not all its own.
    host.run("noah", &["--cold"])?;
    let (own, shared) = memory_kib(host, "noah")?;
    require(
        own > 10_000 && shared < 10_000,
        "a VM that was never cloned has RAM of its own",
        format!("{own} KiB of its own, {shared} KiB shared"),
    )?;
    let (ticket, name, kept) = {
        let parent = host.vm("noah");
        let (ticket, clones) = with_ticket(host, &parent, 2)?;
        let kept = parent.sh("gc rt 2 2 1 20000 | awk '{print $2}'")?;
        (ticket, clones[0].name().to_owned(), kept)
    };
    for vm in ["noah", name.as_str()] {
        let (now, shared_now) = memory_kib(host, vm)?;
        require(
            now < own && shared_now > shared,
            format!("{vm} has less than {own} KiB of its own, and shares more than {shared} KiB"),
            format!("{now} KiB of its own, {shared_now} KiB shared"),
        )?;
    }
    host.kill_vmmd()?;
    host.start_vmmd()?;
    let (again, _) = memory_kib(host, "noah")?;
    require(again < own, format!("less than {own} KiB of its own after a restart"), format!("{again} KiB"))?;
    let parent = host.vm("noah");
    let listed = parent.call(&["gc", "lt"])?;
    let has = |ticket: &str, status: &str| listed.contains(&format!("ticket: {ticket} {status} "));
    require(
        has(&ticket, "used") && has(&kept, "granted"),
        format!("{ticket} is used, and {kept} granted"),
        &listed,
    )?;
    parent.call(&["gc", "kill", &host.vm(&name).field_number("vmid")?.to_string()])?;
    require_eq("gc clone with a ticket from before", parent.sh(&format!("gc clone {kept}"))?, "0")?;
    parent.call(&["gc", "kill", "--ticket", &kept])?;
    parent.call(&["gc", "kill", "--ticket", &ticket])?;
    let listed = parent.call(&["gc", "lt"])?;
    require(!listed.contains("used") && !listed.contains("granted"), "no ticket is used or granted", listed)
}

/// What `vmctl top` says of a VM's own memory, and of what it has in common with others.
pub fn memory_kib(host: &Host, name: &str) -> Result<(u64, u64), Failed> {
    let top = host.json(&["top", "--once"])?;
    let vm = top["vms"].as_array().into_iter().flatten().find(|vm| vm["name"] == name);
    let field = |field| vm.and_then(|vm| vm[field].as_u64());
    field("private_kib").zip(field("shared_kib")).ok_or_else(|| format!("{name} is not there: {top}").into())
}
