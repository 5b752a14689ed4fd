//! Errors as `google.rpc.Status`. Programs get the code, `ErrorInfo` (domain `patina`) with a
//! reason, and details about fields or preconditions. People get the message.

use crate::{
    plan::spec::Violation,
    process::control_client::ControlError,
    vms::{
        error::{Error, Unprepared},
        fetched_data::error::FetchFault,
        members_data::error::TellError,
        remote_data::error::{MISSING_IMAGE, ReceiveError},
        snapshot_data::error::Fault,
    },
};
use patina_daemon::chain;
use scheduler::grpc::status::{fitting, with_details};
use std::{collections::HashMap, io};
use tonic::{Code, Status};
use tonic_types::ErrorDetails;

/// Most of what was tried, characters.
const OPERATION_CHARS: usize = 200;
/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "patina";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        // The scheduler's words have all details that there are.
        if let Error::Scheduler(status) = error {
            return *status;
        }
        let whole = chain(&error);
        // The details say again what the message says: each as much of it as fits.
        let message = fitting(&whole);
        let (code, reason) = classify(&error);
        let mut details = details_of(&error, code, reason, message);
        // Our messages say what to do after a semicolon; a client that shows one line to a person
        // takes this.
        if let Some((_, advice)) = message.split_once("; ") {
            details.set_localized_message("en", advice);
        }
        with_details(code, &whole, details)
    }
}

/// What programs want to know beyond the code.
fn details_of(error: &Error, code: Code, reason: &str, message: &str) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, metadata(error));
    match error {
        Error::Invalid(violations) => {
            for violation in violations {
                details.add_bad_request_violation(&violation.field, &violation.description);
            }
        }
        Error::Image(image) => {
            details.add_bad_request_violation(image.field(), message);
        }
        Error::Running(name) => {
            details.add_precondition_failure_violation("VM_STATE", name, "the VM runs; it must have ended");
        }
        Error::NotReady { name, state } => {
            let text = format!("the VM is {state}; it must be ready");
            details.add_precondition_failure_violation("VM_STATE", name, text);
        }
        Error::NewerVmm { name, problem } | Error::OlderVmm { name, problem } => {
            details.add_precondition_failure_violation("VMM_VERSION", name, problem);
        }
        Error::EndedFirst { name, .. } => {
            details.add_precondition_failure_violation("VM_STATE", name, "the VM has ended");
        }
        Error::NotFound(name) | Error::NameTaken(name) => {
            details.set_resource_info("vm", name, "", message);
        }
        Error::Port(port) if code == Code::InvalidArgument => {
            details.add_bad_request_violation("ports", chain(port));
        }
        Error::Port(port) => {
            details.set_resource_info("port", port.port.host.to_string(), "", message);
        }
        Error::TooManyPorts { .. } => {
            details.add_quota_failure_violation("ports", message);
        }
        Error::NoSuchPort { place, .. } => {
            details.set_resource_info("port", place.to_string(), "", message);
        }
        Error::TooMany => {
            details.add_quota_failure_violation("vms", message);
        }
        Error::TooManyStreams => {
            details.add_quota_failure_violation("streams", message);
        }
        Error::NotFrozen { name, reason } => {
            details.add_precondition_failure_violation("VM_STATE", name, fitting(reason));
        }
        Error::NotPrepared { name, source } if code == Code::FailedPrecondition => {
            details.add_precondition_failure_violation(
                "GUEST_PREPARED",
                name,
                "the guest's agent must prepare",
            );
        }
        Error::TicketCount { .. } => {
            details.add_bad_request_violation("count", message);
        }
        Error::CloneRootfs { name, source } => {
            details.add_precondition_failure_violation("ROOTFS", name, chain(source));
        }
        Error::NoVmid { .. } => {
            details.add_quota_failure_violation("vmids", message);
        }
        Error::NoFamily(_) => {
            details.add_quota_failure_violation("families", message);
        }
        _ => {}
    }
    details
}

/// A field that cannot be as it is.
#[must_use]
pub fn invalid(field: &str, description: &str) -> Status {
    Error::Invalid(vec![Violation::new(field, description)]).into()
}

fn classify(error: &Error) -> (Code, &'static str) {
    match error {
        Error::Invalid(_) => (Code::InvalidArgument, "INVALID_FIELD"),
        Error::Image(_) => (Code::InvalidArgument, "BAD_IMAGE"),
        Error::Snapshot(error) => classify_fault(error.fault()),
        // Neither reaches a caller: one is of the start of vmmd, the other only logged.
        Error::ImageCache(_) | Error::TypedOn(_) => (Code::Internal, "IMAGE_FAILED"),
        Error::NotFound(_) => (Code::NotFound, "NO_SUCH_VM"),
        Error::Adopting(_) | Error::Starting => (Code::Unavailable, "VMMD_STARTS"),
        Error::Broken { .. } => (Code::FailedPrecondition, "VM_BROKEN"),
        Error::NotBroken(_) => (Code::FailedPrecondition, "VM_NOT_BROKEN"),
        Error::NameTaken(_) => (Code::AlreadyExists, "NAME_IN_USE"),
        Error::Port(port) => match port.source.kind() {
            io::ErrorKind::AddrInUse => (Code::AlreadyExists, "PORT_IN_USE"),
            io::ErrorKind::AddrNotAvailable => (Code::InvalidArgument, "NO_SUCH_ADDRESS"),
            _ => (Code::Internal, "PORT_FAILED"),
        },
        Error::TooManyPorts { .. } => (Code::ResourceExhausted, "TOO_MANY_PORTS"),
        Error::NoSuchPort { .. } => (Code::NotFound, "NO_SUCH_PORT"),
        Error::Running(_) => (Code::FailedPrecondition, "VM_RUNS"),
        Error::NotReady { .. } => (Code::FailedPrecondition, "VM_NOT_READY"),
        Error::NewerVmm { .. } => (Code::FailedPrecondition, "VMM_NEWER"),
        Error::OlderVmm { .. } => (Code::FailedPrecondition, "VMM_OLDER"),
        Error::EndedFirst { is_data_loss: true, .. } | Error::Start { source: ControlError::Lost(_), .. } => {
            (Code::DataLoss, "MEMORY_LOST")
        }
        Error::EndedFirst { .. } => (Code::FailedPrecondition, "VM_ENDED"),
        Error::WaitTimeout { .. } => (Code::DeadlineExceeded, "WAIT_TIMED_OUT"),
        Error::TooMany => (Code::ResourceExhausted, "TOO_MANY_VMS"),
        Error::TooManyStreams => (Code::ResourceExhausted, "TOO_MANY_STREAMS"),
        Error::NoVmid { .. } => (Code::ResourceExhausted, "NO_FREE_VMID"),
        Error::NotFrozen { .. } => (Code::FailedPrecondition, "VM_NOT_FROZEN"),
        Error::CloneRootfs { .. } => (Code::FailedPrecondition, "ROOTFS_CHANGED"),
        Error::Baseline(_) => (Code::FailedPrecondition, "NO_CPU_BASELINE"),
        Error::NotPrepared { source, .. } => match Unprepared::of(source) {
            Unprepared::Busy => (Code::Aborted, "CLONE_UNDER_WAY"),
            Unprepared::Silent => (Code::Unavailable, "AGENT_DOES_NOT_ANSWER"),
            Unprepared::Late => (Code::Unavailable, "GUEST_NOT_PREPARED_IN_TIME"),
            Unprepared::Hook => (Code::FailedPrecondition, "PRE_CLONE_HOOK_FAILED"),
            Unprepared::Unable => (Code::FailedPrecondition, "GUEST_NOT_PREPARED"),
        },
        Error::CloneUnderWay(_) => (Code::Aborted, "CLONE_UNDER_WAY"),
        Error::Abandoned(_) => (Code::Cancelled, "ABANDONED"),
        // Handed on as it is: see above.
        Error::Scheduler(status) => (status.code(), "SCHEDULER"),
        Error::NoScheduler { .. } => (Code::Unavailable, "NO_SCHEDULER"),
        Error::Registering => (Code::Aborted, "REGISTERING"),
        // In the outcomes of clones only.
        Error::Remote(_) => (Code::Unavailable, "OTHER_HOST"),
        Error::Receive(error) => classify_receive(error),
        Error::Fetch(error) => classify_fetch(&error.why),
        // Of the start of vmmd.
        Error::Shelf(_) => (Code::Internal, "STATE_FAILED"),
        Error::Tell(TellError::Field { .. } | TellError::Own(_)) => (Code::InvalidArgument, "BAD_FAMILY"),
        Error::Tell(TellError::Unknown(_)) => (Code::PermissionDenied, "NOT_A_MEMBER"),
        Error::Tell(TellError::TooMany(_)) => (Code::ResourceExhausted, "TOO_MANY_HOSTS"),
        Error::Tell(_) => (Code::FailedPrecondition, "HOST_UNFIT"),
        Error::Unwanted { .. } => (Code::Aborted, "KILLED"),
        Error::TicketCount { .. } => (Code::InvalidArgument, "TICKET_COUNT"),
        Error::Warm { .. } | Error::Start { .. } => (Code::Internal, "CLONE_FAILED"),
        Error::PrefaultList(_) => (Code::Internal, "NO_MEMORY"),
        Error::NoFamily(_) => (Code::ResourceExhausted, "NO_FREE_NETWORK"),
        Error::Unavailable { .. } | Error::MuteVmm { .. } => (Code::Unavailable, "VM_DOES_NOT_ANSWER"),
        Error::Silent { .. } => (Code::Unavailable, "AGENT_DOES_NOT_ANSWER"),
        Error::Stopping => (Code::Unavailable, "VMMD_STOPS"),
        Error::DisksBusy => (Code::Unavailable, "DISKS_DO_NOT_ANSWER"),
        Error::Unkillable(_) => (Code::Internal, "VM_DOES_NOT_END"),
        Error::Store(_) => (Code::Internal, "STATE_FAILED"),
        Error::Net(_) => (Code::Internal, "NETWORK_FAILED"),
        Error::Spawn(crate::process::spawn::SpawnError::Kvm { .. }) => (Code::Internal, "NO_KVM"),
        Error::Spawn(_) => (Code::Internal, "SPAWN_FAILED"),
        Error::Log { .. } => (Code::Internal, "LOG_FAILED"),
    }
}

fn classify_receive(error: &ReceiveError) -> (Code, &'static str) {
    match error {
        ReceiveError::Field { .. } | ReceiveError::Manifest(_) | ReceiveError::State => {
            (Code::InvalidArgument, "BAD_GENERATION")
        }
        ReceiveError::NoImage { .. } => (Code::FailedPrecondition, MISSING_IMAGE),
        ReceiveError::NotOffered(_) => (Code::NotFound, "NO_SUCH_IMAGE"),
        ReceiveError::NotHeld => (Code::NotFound, "NO_SUCH_LAYER"),
        ReceiveError::Stranger { .. } => (Code::PermissionDenied, "FOREIGN_FAMILY"),
        ReceiveError::NotLent(_) => (Code::ResourceExhausted, "TOO_MANY_LEASES"),
        ReceiveError::Reading => (Code::ResourceExhausted, "TOO_MANY_READERS"),
        _ => (Code::FailedPrecondition, "HOST_UNFIT"),
    }
}

fn classify_fetch(why: &FetchFault) -> (Code, &'static str) {
    match why {
        FetchFault::Busy => (Code::ResourceExhausted, "TOO_MANY_FETCHES"),
        FetchFault::Shelf(error) if error.is_full() => (Code::ResourceExhausted, "DISK_FULL"),
        FetchFault::Shelf(error) if error.is_false() => (Code::DataLoss, "OTHER_IMAGE"),
        FetchFault::Shelf(_) => (Code::Internal, "FETCH_FAILED"),
        FetchFault::Address(_)
        | FetchFault::Refused(_)
        | FetchFault::Silent
        | FetchFault::Late
        | FetchFault::Stopping => (Code::Unavailable, "IMAGE_NOT_SENT"),
    }
}

fn classify_fault(fault: Fault) -> (Code, &'static str) {
    match fault {
        Fault::Missing => (Code::NotFound, "NO_SUCH_SNAPSHOT"),
        Fault::Exists => (Code::AlreadyExists, "PLACE_IN_USE"),
        Fault::Place => (Code::InvalidArgument, "BAD_PLACE"),
        Fault::InUse => (Code::Aborted, "SNAPSHOT_IN_USE"),
        Fault::NoSpace => (Code::ResourceExhausted, "DISK_FULL"),
        Fault::NoMemory => (Code::ResourceExhausted, "NO_MEMORY"),
        Fault::Damaged => (Code::DataLoss, "SNAPSHOT_DAMAGED"),
        Fault::Unfit => (Code::FailedPrecondition, "SNAPSHOT_UNFIT"),
        Fault::OtherImage => (Code::FailedPrecondition, "OTHER_IMAGE"),
        Fault::Cancelled => (Code::Cancelled, "ABANDONED"),
        Fault::Host => (Code::Internal, "SNAPSHOT_FAILED"),
    }
}

/// Every message starts with its operation: that part goes to programs too.
fn metadata(error: &Error) -> HashMap<String, String> {
    let message = chain(error);
    let operation = message.split_once(": ").map_or(message.as_str(), |(operation, _)| operation);
    let mut metadata =
        HashMap::from([("operation".to_owned(), operation.chars().take(OPERATION_CHARS).collect())]);
    if let Error::Snapshot(error) = error
        && let Some((layer, run)) = error.run()
    {
        metadata.extend([("layer".to_owned(), layer), ("run".to_owned(), run.to_string())]);
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{net::ports::PortError, plan::spec::Port};
    use tonic_types::StatusExt as _;

    fn port(kind: io::ErrorKind) -> Error {
        let port = Port { host: "127.0.0.1:80".parse().unwrap(), guest_port: 8 };
        Error::Port(PortError { port, source: kind.into() })
    }

    #[test]
    fn every_wrong_field_stands_in_bad_request() {
        let status: Status =
            Error::Invalid(vec![Violation::new("vcpus", "17"), Violation::new("name", "x")]).into();
        assert_eq!(status.code(), Code::InvalidArgument);
        let fields = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(fields.iter().map(|f| f.field.as_str()).collect::<Vec<_>>(), ["vcpus", "name"]);
    }

    #[test]
    fn a_port_in_use_is_named() {
        let status: Status = port(io::ErrorKind::AddrInUse).into();
        assert_eq!(status.code(), Code::AlreadyExists);
        assert!(status.message().contains("127.0.0.1:80"), "{}", status.message());
        assert_eq!(status.get_details_error_info().unwrap().reason, "PORT_IN_USE");
        let status: Status = port(io::ErrorKind::AddrNotAvailable).into();
        assert_eq!(status.code(), Code::InvalidArgument);
    }

    #[test]
    fn the_longest_error_fits_the_headers_that_a_client_takes_and_arrives_whole() {
        // What a pre-clone hook said, in signs that are sent as three.
        for output in [" \n".repeat(2048), "ü".repeat(2048), "x".repeat(4096)] {
            let source = patina_abi::link::CallError { code: libc::ECANCELED, message: output.clone() };
            let error = Error::NotPrepared { name: "web".into(), source };
            let text = chain(&error);
            let status: Status = error.into();
            let headers = status.clone().into_http::<()>();
            let bytes: usize =
                headers.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(bytes < 15 * 1024, "{bytes}");
            let whole = status.get_details_debug_info().unwrap().detail;
            assert!(whole.contains(&output) && whole == text, "{whole}");
            assert!(text.starts_with(status.message()));
        }
    }

    /// A snapshot is made by a freeze, too.
    #[test]
    fn a_refused_freeze_says_freeze_whatever_it_was_for() {
        let name = || "web".to_owned();
        let source = patina_abi::link::CallError { code: libc::ETIMEDOUT, message: "late".into() };
        let errors = [
            Error::NotFrozen { name: name(), reason: "no".into() },
            Error::NotPrepared { name: name(), source },
            Error::Silent { name: name(), patience: std::time::Duration::from_secs(1) },
        ];
        for error in errors {
            let text = chain(&error);
            assert!(text.contains("freeze") && !text.starts_with("clone"), "{text}");
        }
    }

    #[test]
    fn a_late_freeze_is_no_silent_agent() {
        let of = |code, message: &str| {
            let source = patina_abi::link::CallError { code, message: message.into() };
            Status::from(Error::NotPrepared { name: "web".into(), source })
        };
        let late = of(libc::ETIMEDOUT, "it took too long; try again");
        assert_eq!(late.code(), Code::Unavailable);
        assert_eq!(late.get_details_error_info().unwrap().reason, "GUEST_NOT_PREPARED_IN_TIME");
        let text = late.message();
        assert!(text.contains("the VM goes on") && text.contains("try again"), "{text}");
        assert!(!text.contains("console") && of(libc::ENOTCONN, "no").message().contains("console"));
    }

    #[test]
    fn states_are_preconditions_with_advice() {
        let status: Status = Error::Running("a".into()).into();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.get_details_precondition_failure().unwrap().violations[0].subject, "a");
        assert!(status.get_details_localized_message().unwrap().message.contains("vmctl kill"));
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.metadata["operation"].as_str()), (DOMAIN, "remove VM \"a\""));
    }
}
