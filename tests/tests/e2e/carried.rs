//! Running programs continue in a guest and in its clones, with timers, connections within the
//! guest, pipes, files, vector registers and all vCPUs.

use crate::{
    Outcome, Story,
    family::{Family, PARENT, require, require_eq, with_family},
    stage::Stage,
};
use patina_tests::vm::Vm;

pub const STORIES: &[Story] = stories![
    with_family(timers_connections_pipes_and_files_go_on),
    with_family(vector_registers_are_kept_across_a_clone),
    a_guest_of_four_vcpus_is_cloned_with_all_of_them,
];

/// Has a TCP connection with itself, a child behind pipes, a file without a name and a timer; is
/// cloned; then tells what comes of each.
const PROGRAM: &str = "import os, signal, socket, subprocess, sys, tempfile
ticks = 0
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
server = socket.create_server(('127.0.0.1', 0))
near = socket.create_connection(server.getsockname())
far, _ = server.accept()
near.sendall(b'sent before')
child = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
file = tempfile.TemporaryFile()
file.write(b'written before')
open('/tmp/runs', 'w').write('yes')
who = open('/tmp/go').read().strip()
before = ticks
while ticks < before + 2:
    signal.pause()
far.sendall(b'to ' + who.encode())
child.stdin.write(b'through ' + who.encode() + b'\\n')
child.stdin.flush()
file.seek(0)
told = [far.recv(99), near.recv(99), child.stdout.readline().strip(), file.read()]
open('/tmp/outcome', 'w').write(', '.join(text.decode() for text in told))";

fn timers_connections_pipes_and_files_go_on(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    parent.sh("cd /tmp; rm -f runs go outcome; mkfifo runs go outcome")?;
    parent.put("/tmp/carried.py", PROGRAM.as_bytes())?;
    parent.sh("setsid python3 /tmp/carried.py < /dev/null > /dev/null 2>&1 &")?;
    require_eq("/tmp/runs, which the program writes", parent.sh("cat /tmp/runs")?, "yes")?;
    let clones = family.clone(2)?;
    for vm in clones.iter().chain([parent]) {
        let who = vm.name();
        let told = vm.sh(&format!("echo {who} > /tmp/go; cat /tmp/outcome"))?;
        require_eq(
            format!("what {who} told"),
            told,
            format!("sent before, to {who}, through {who}, written before"),
        )?;
    }
    Ok(())
}

/// Ends when it is told to, in each machine for itself, and says what has become of its registers.
fn vector_registers_are_kept_across_a_clone(family: &Family<'_>) -> Outcome {
    let parent = &family.parent;
    let check = parent.install("guest-check")?;
    parent.sh("cd /tmp; rm -f go outcome started; mkfifo go outcome started")?;
    let script = format!("told=$({check} avx-until /tmp/started /tmp/go 2>&1); echo $told > /tmp/outcome");
    parent.sh(&format!("setsid sh -c '{script}' < /dev/null > /dev/null 2>&1 & cat /tmp/started"))?;
    // Held, its registers are in its kernel's memory; not held, they are in the vCPU.
    let held = family.clone(1)?;
    let unheld = family.made(&["clone", PARENT, "--no-prepare", "--timeout", "300"])?;
    for vm in held.iter().chain(&unheld).chain([parent]) {
        let told = vm.sh("echo > /tmp/go; cat /tmp/outcome")?;
        require(told.ends_with("registers kept"), format!("the registers of {} are kept", vm.name()), told)?;
    }
    Ok(())
}

/// Runs a program on one CPU after the other, which tells on which it found itself.
const ON_EACH: &str = "for cpus in 1 2 4 8; do taskset $cpus cut -d ' ' -f 39 /proc/self/stat; done";

fn a_guest_of_four_vcpus_is_cloned_with_all_of_them(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    let parent = host.run("four", &["--vcpus", "4"])?;
    let told = with_four(&parent);
    host.call(&["rm", "-f", "--family", parent.name()])?;
    told
}

fn with_four(parent: &Vm<'_>) -> Outcome {
    let check = parent.install("guest-check")?;
    require_eq("gc clone in the parent", parent.call(&["gc", "clone", "1"])?, "0")?;
    let clone = parent.sibling(&format!("{}.1", parent.name()));
    clone.wait_ready()?;
    for vm in [parent, &clone] {
        let cpus = vm.sh(ON_EACH)?;
        require(
            cpus.split_whitespace().eq(["0", "1", "2", "3"]),
            format!("{} runs on CPUs 0 to 3", vm.name()),
            cpus,
        )?;
        let report = vm.call(&[&check, "avx", "20"])?;
        require(report.matches("registers kept").count() == 2, "two threads kept their registers", report)?;
    }
    Ok(())
}
