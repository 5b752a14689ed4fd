use super::*;
use crate::devices::event_loop::LoopError;
use crate::vcpu::gate::{PauseError, VcpuEnded};
use rustix::io::Errno;

/// Notes what is done to it, and fails where it is told to.
#[derive(Default)]
struct Parts {
    done: Vec<&'static str>,
    devices: Option<LoopError>,
    vcpu_ended: bool,
}

impl Stoppable for Parts {
    type Vcpus = ();

    fn stop_devices(&mut self) -> Result<(), FreezeError> {
        self.done.push("stop devices");
        self.devices.take().map_or(Ok(()), |error| Err(error.into()))
    }

    fn stop_vcpus(&mut self) -> Result<(), FreezeError> {
        self.done.push("stop vCPUs");
        if self.vcpu_ended { Err(PauseError::from(VcpuEnded(0)).into()) } else { Ok(()) }
    }

    fn start_devices(&mut self) -> Result<(), FreezeError> {
        self.done.push("start devices");
        Ok(())
    }

    fn resume_vcpus(&mut self) {
        self.done.push("resume vCPUs");
    }
}

fn stand(parts: &mut Parts, result: Result<(), FreezeError>) -> Result<(), FreezeError> {
    let work = |parts: &mut Parts, ()| {
        parts.done.push("work");
        result
    };
    stand_still(parts, work).map(|((), _)| ())
}

#[test]
fn devices_stop_before_the_vcpus_do_and_all_go_on() {
    let mut parts = Parts::default();
    stand(&mut parts, Ok(())).expect("it stood still");
    assert_eq!(parts.done, ["stop devices", "stop vCPUs", "work", "start devices", "resume vCPUs"]);
}

#[test]
fn after_an_error_that_is_fatal_nothing_runs_again() {
    let errors = [FreezeError::Memory(Errno::NOMEM), LoopError::Panicked.into()];
    for error in errors {
        assert!(error.is_fatal());
        let mut parts = Parts::default();
        stand(&mut parts, Err(error)).expect_err("it has failed");
        assert_eq!(parts.done, ["stop devices", "stop vCPUs", "work"]);
    }
    let mut parts = Parts { devices: Some(LoopError::Panicked), ..Parts::default() };
    stand(&mut parts, Ok(())).expect_err("it has no devices");
    assert_eq!(parts.done, ["stop devices"]);
}

#[test]
fn after_any_other_error_the_vm_goes_on() {
    let mut parts = Parts::default();
    let error = stand(&mut parts, Err(FreezeError::Pages(Errno::NOMEM))).expect_err("it has failed");
    assert!(!error.is_fatal());
    assert_eq!(parts.done, ["stop devices", "stop vCPUs", "work", "start devices", "resume vCPUs"]);
    let mut parts = Parts { vcpu_ended: true, ..Parts::default() };
    stand(&mut parts, Ok(())).expect_err("a vCPU has ended");
    assert_eq!(parts.done, ["stop devices", "stop vCPUs", "start devices", "resume vCPUs"]);
}

#[test]
fn a_device_that_does_not_stop_in_time_leaves_the_vm_running() {
    let busy = || LoopError::Busy(Duration::from_secs(2));
    let mut parts = Parts { devices: Some(busy()), ..Parts::default() };
    let error = stand(&mut parts, Ok(())).expect_err("a device is at work");
    assert!(!error.is_fatal());
    let words = patina_daemon::chain(&error);
    assert!(words.contains("at work for 2s") && words.contains("has not arrived"), "{words}");
    // The vCPUs were never stopped, and the devices go on by themselves.
    assert_eq!(parts.done, ["stop devices"]);
}
