//! `vmmd` is killed while VMs run: they continue, and the next `vmmd` takes them over.

use crate::{
    Outcome, Story,
    network::{ECHO, round_trip, serve},
    stage::{Stage, explain, free_port},
};
use patina_tests::host::Host;

pub const STORIES: &[Story] = stories![a_vm_outlives_a_killed_vmmd_and_is_taken_over,];

fn a_vm_outlives_a_killed_vmmd_and_is_taken_over(stage: &Stage) -> Outcome {
    let mut host = Host::start(stage.setup())?;
    let publish = format!("{}:7000", free_port()?);
    let port: u16 = publish.split(':').next().unwrap_or_default().parse()?;
    host.run("survivor", &["-p", &publish])
        .map_err(|error| format!("{error}\n{}", explain(&host, "survivor")))?;
    let (before, count_before) = {
        let vm = host.vm("survivor");
        // It counts on while nobody listens; `setsid` frees it from the session that exec ends.
        // Each second adds a line: a file written anew each second is empty for a moment.
        vm.sh("setsid sh -c 'while :; do echo >> /tmp/count; sleep 1; done' >/dev/null 2>&1 </dev/null &")?;
        serve(&vm, 7000, ECHO)?;
        vm.sh("until [ -s /tmp/count ]; do sleep 1; done")?;
        (vm.inspect()?, vm.sh("wc -l < /tmp/count")?.parse::<u64>()?)
    };

    host.kill_vmmd()?;
    assert_eq!(host.vmctl(&["ls"])?.code, 6, "nobody answers");
    host.start_vmmd()?;

    let vm = host.vm("survivor");
    let after = vm.inspect()?;
    for field in ["pid", "uuid", "ip", "state", "ready_after_us", "ports"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    vm.sh(&format!("until [ $(wc -l < /tmp/count) -gt {count_before} ]; do sleep 1; done"))?;
    assert!(vm.call(&["gc", "list"])?.starts_with("0 "), "the agent's calls reach the new vmmd");
    round_trip("127.0.0.1", port, 1000)?;
    vm.kill()?;
    assert_eq!(vm.wait_ended()?.0, "killed");
    Ok(host.stop()?)
}
