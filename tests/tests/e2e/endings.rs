//! Every way in which a VM ends is recorded with its reason, and other VMs do not notice.

use crate::{Outcome, Story, stage::Stage};

pub const STORIES: &[Story] = stories![
    a_killed_vm_is_recorded_removed_and_its_name_free_again,
    a_guest_that_powers_off_has_powered_off,
    a_guest_that_reboots_has_ended,
    a_guest_that_panics_is_recorded_with_the_console_shown,
    a_triple_fault_is_recorded,
    a_killed_vmm_process_is_noticed,
];

fn a_killed_vm_is_recorded_removed_and_its_name_free_again(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    let vm = host.run("victim", &["--no-wait"])?;
    vm.kill()?;
    assert_eq!(vm.wait_ended()?.0, "killed");
    assert_eq!(host.vmctl(&["exec", "victim", "--", "true"])?.code, 125);
    assert_eq!(host.vmctl(&["run", "--name", "victim", "--no-wait"])?.code, 4, "the name is still taken");
    vm.remove()?;
    assert_eq!(host.vmctl(&["inspect", "victim"])?.code, 3);
    host.run("victim", &["--no-wait"])?.remove()?;
    Ok(())
}

fn a_guest_that_powers_off_has_powered_off(stage: &Stage) -> Outcome {
    let vm = stage.host()?.run("off", &[])?;
    // The VM may be gone before the exit code is out: only its end counts.
    vm.exec(&["poweroff", "-f"])?;
    assert_eq!(vm.wait_ended()?.0, "powered_off");
    stage.guest()?.call(&["true"])?;
    Ok(vm.remove()?)
}

fn a_guest_that_reboots_has_ended(stage: &Stage) -> Outcome {
    let vm = stage.host()?.run("again", &[])?;
    vm.exec(&["reboot", "-f"])?;
    assert_eq!(vm.wait_ended()?.0, "rebooted");
    Ok(vm.remove()?)
}

fn a_guest_that_panics_is_recorded_with_the_console_shown(stage: &Stage) -> Outcome {
    let host = stage.host()?;
    let output = host.vmctl(&["run", "--name", "bad", "--cmdline", "init=/no/such/init"])?;
    assert_eq!(output.code, 5, "{output:?}");
    assert!(output.errors().contains("ended before its agent was ready"), "{output:?}");
    let vm = host.vm("bad");
    let (kind, reason) = vm.wait_ended()?;
    assert_eq!(kind, "panicked", "{reason}");
    assert!(vm.console()?.contains("/no/such/init"), "the console says why");
    stage.guest()?.call(&["true"])?;
    Ok(vm.remove()?)
}

fn a_triple_fault_is_recorded(stage: &Stage) -> Outcome {
    let vm = stage.host()?.run("faulty", &["--cmdline", "reboot=t"])?;
    vm.exec(&["reboot", "-f"])?;
    let (kind, reason) = vm.wait_ended()?;
    assert_eq!(kind, "triple_faulted", "{reason}");
    Ok(vm.remove()?)
}

fn a_killed_vmm_process_is_noticed(stage: &Stage) -> Outcome {
    let vm = stage.host()?.run("shot", &["--no-wait"])?;
    let pid = vm.inspect()?["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(rustix::process::Pid::from_raw).ok_or("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    let (kind, reason) = vm.wait_ended()?;
    assert_eq!(kind, "vmm_died", "{reason}");
    Ok(vm.remove()?)
}
