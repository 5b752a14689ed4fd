//! Two vCPUs, and vector registers that survive context switches.

use crate::{Outcome, Story, stage::Stage};

pub const STORIES: &[Story] = stories![
    a_guest_with_two_vcpus_runs_two_programs_at_once,
    vector_registers_survive_context_switches,
    the_register_check_sees_a_lost_register,
];

fn a_guest_with_two_vcpus_runs_two_programs_at_once(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    assert_eq!(guest.call(&["nproc"])?, "2");
    // Two cores, not two threads of one: its scheduler treats these differently.
    let cores = guest.sh("cat /sys/devices/system/cpu/cpu[0-9]/topology/thread_siblings_list")?;
    assert_eq!(cores, "0\n1");
    let check = guest.install("guest-check")?;
    let report = guest.call(&[&check, "cpus", "3000"])?;
    let words: Vec<&str> = report.split_whitespace().collect();
    let ["wall_ms", wall, "cpu_ms", cpu, "cpus", cpus] = words[..] else {
        return Err(format!("guest-check cpus printed {report:?}").into());
    };
    assert_eq!(cpus, "2", "{report}");
    let (wall, cpu): (f64, f64) = (wall.parse()?, cpu.parse()?);
    assert!(cpu > 1.5 * wall, "two busy threads got {cpu} ms of CPU in {wall} ms");
    Ok(())
}

fn vector_registers_survive_context_switches(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let check = guest.install("guest-check")?;
    let report = guest.call(&[&check, "avx", "100"])?;
    assert_eq!(report.matches("registers kept").count(), 2, "{report}");
    Ok(())
}

fn the_register_check_sees_a_lost_register(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let check = guest.install("guest-check")?;
    let output = guest.exec(&[&check, "avx", "5", "sabotage"])?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.errors().contains("mm7 changed"), "{output:?}");
    Ok(())
}
