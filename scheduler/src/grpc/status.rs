//! Errors as `google.rpc.Status`: the code and `ErrorInfo` for programs, details about fields,
//! preconditions and quotas, and the message for people.

use crate::{core::api::CoreError, engine::Refusal};
use patina_daemon::chain;
use std::{collections::HashMap, time::Duration};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The domain of every `ErrorInfo`.
pub(super) const DOMAIN: &str = "patina";
/// When to ask again for what others have, or for what was broken.
const RETRY: Duration = Duration::from_secs(1);

/// Most bytes of a status's message, in the form in which it is sent, where most signs take three.
/// A client with its library's usual limit for headers (16 KiB) must get it together with the
/// details, in which the message stands again.
const MESSAGE_MAX_BYTES: usize = 2 * 1024;
/// Most bytes of the whole message, which stands in the details when the message itself is too
/// long.
const WHOLE_MAX_BYTES: usize = 5 * 1024;

/// A status whose message is cut where it is too long for a client's headers. The whole stands in
/// the details then, as `DebugInfo.detail`.
#[must_use]
pub fn with_details(code: Code, message: &str, mut details: ErrorDetails) -> Status {
    let short = fitting(message);
    if short.len() < message.len() {
        let whole = &message[..message.floor_char_boundary(WHOLE_MAX_BYTES)];
        details.set_debug_info(Vec::new(), whole);
    }
    Status::with_error_details(code, short, details)
}

/// As much of a text as fits `MESSAGE_MAX_BYTES`.
#[must_use]
pub fn fitting(text: &str) -> &str {
    let mut sent_bytes = 0;
    let too_long = text.char_indices().find(|(_, sign)| {
        sent_bytes += if sign.is_ascii_alphanumeric() { 1 } else { 3 * sign.len_utf8() };
        sent_bytes > MESSAGE_MAX_BYTES
    });
    too_long.map_or(text, |(at, _)| &text[..at])
}

/// Fields that cannot be as they are.
pub(super) fn invalid(violations: Vec<(String, String)>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info("INVALID_FIELD", DOMAIN, HashMap::new());
    let message = violations.iter().map(|(field, description)| format!("{field}: {description}"));
    let message = message.collect::<Vec<_>>().join("; ");
    for (field, description) in violations {
        details.add_bad_request_violation(field, description);
    }
    with_details(Code::InvalidArgument, &message, details)
}

/// More watchers than there may be.
pub(super) fn too_many_watchers(most: usize) -> Status {
    let message = format!("watch tickets: {most} watch already, the most; end one of them");
    let mut details = ErrorDetails::new();
    details.set_error_info("TOO_MANY_WATCHERS", DOMAIN, HashMap::new());
    details.add_quota_failure_violation("watchers", &message);
    with_details(Code::ResourceExhausted, &message, details)
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let message = chain(&refusal);
        let (reason, code) = (refusal.reason(), code(&refusal));
        let mut details = ErrorDetails::new();
        let operation = message.split_once(": ").map_or(message.as_str(), |(operation, _)| operation);
        let mut metadata = HashMap::from([("operation".to_owned(), operation.to_owned())]);
        if let Refusal::Core(CoreError::NoCapacity { misfits, .. } | CoreError::NoFit { misfits, .. }) =
            &refusal
        {
            metadata.insert("differing_hosts".to_owned(), misfits.hosts.to_string());
        }
        if let Refusal::Core(CoreError::NoCapacity { free, closed, .. }) = &refusal {
            let hosts = [("suspect", closed.suspect), ("cordoned", closed.cordoned), ("lost", closed.lost)];
            for (what, count) in hosts {
                metadata.insert(format!("{what}_hosts"), count.to_string());
            }
            let free = [("cpus", free.cpus), ("memory_mib", free.memory_mib), ("vms", free.vms)];
            for (what, amount) in free {
                metadata.insert(format!("free_{what}"), amount.to_string());
                details.add_quota_failure_violation(what, format!("{amount} are free"));
            }
        }
        details.set_error_info(reason, DOMAIN, metadata);
        match code {
            Code::Unavailable => {
                details.set_retry_info(Some(RETRY));
            }
            Code::ResourceExhausted => {
                if !details.has_quota_failure_violations() {
                    details.add_quota_failure_violation(quota(reason), &message);
                }
                details.set_retry_info(waits(&refusal).then_some(RETRY));
            }
            Code::FailedPrecondition => {
                details.add_precondition_failure_violation(reason, subject(&refusal), &message);
            }
            Code::InvalidArgument => {
                details.add_bad_request_violation(field(&refusal), &message);
            }
            Code::NotFound | Code::AlreadyExists => {
                details.set_resource_info(resource(reason), subject(&refusal), "", &message);
            }
            _ => {}
        }
        // Messages say what to do after a semicolon; a client that shows one line to a person takes
        // this.
        if let Some((_, advice)) = message.split_once("; ") {
            details.set_localized_message("en", advice);
        }
        with_details(code, &message, details)
    }
}

fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Store(_) | Refusal::Stopped => Code::Unavailable,
        Refusal::Busy { .. } | Refusal::Crowded { .. } | Refusal::TooManyHosts { .. } => {
            Code::ResourceExhausted
        }
        Refusal::Confused => Code::Internal,
        Refusal::Core(error) => match error {
            CoreError::Unknown(_)
            | CoreError::UnknownHost(_)
            | CoreError::UnknownVm { .. }
            | CoreError::NoClone(_)
            | CoreError::DataDropped { .. } => Code::NotFound,
            CoreError::Foreign(_) => Code::PermissionDenied,
            CoreError::StaleEpoch { .. } | CoreError::StaleHost { .. } => Code::Aborted,
            CoreError::BadVmid(_)
            | CoreError::BadVmids { .. }
            | CoreError::FewCpus { .. }
            | CoreError::SmallVms { .. } => Code::InvalidArgument,
            CoreError::NoCapacity { .. }
            | CoreError::TooManyTickets
            | CoreError::NoVmids { .. }
            | CoreError::TooManyFamilies
            | CoreError::TooManyWaiting { .. }
            | CoreError::TooMuchData { .. } => Code::ResourceExhausted,
            CoreError::BarrierTimeout { .. } | CoreError::JoinTimeout { .. } => Code::DeadlineExceeded,
            CoreError::Used(_)
            | CoreError::Released(_)
            | CoreError::Expired(_)
            | CoreError::Fenced(_)
            | CoreError::NotUsed(_)
            | CoreError::OtherHost { .. }
            | CoreError::OtherParent { .. }
            | CoreError::SmallTicket { .. }
            | CoreError::NotParent { .. }
            | CoreError::NotClone { .. }
            | CoreError::HostCordoned { .. }
            | CoreError::HostIsUp(_)
            | CoreError::NoFit { .. }
            | CoreError::Impossible { .. } => Code::FailedPrecondition,
            CoreError::HostSilent { .. } => Code::Unavailable,
            CoreError::HostIdInUse { .. } => Code::AlreadyExists,
        },
    }
}

/// Whether waiting helps.
fn waits(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Busy { .. }
            | Refusal::Crowded { .. }
            | Refusal::Core(CoreError::NoCapacity { .. } | CoreError::TooManyWaiting { .. })
    )
}

/// What an error is about.
fn subject(refusal: &Refusal) -> String {
    let Refusal::Core(error) = refusal else { return String::new() };
    match error {
        CoreError::Unknown(ticket)
        | CoreError::Used(ticket)
        | CoreError::Released(ticket)
        | CoreError::Expired(ticket)
        | CoreError::Fenced(ticket)
        | CoreError::NotUsed(ticket)
        | CoreError::OtherHost { ticket, .. }
        | CoreError::OtherParent { ticket, .. }
        | CoreError::SmallTicket { ticket, .. }
        | CoreError::NotParent { ticket, .. }
        | CoreError::NotClone { ticket, .. } => ticket.to_string(),
        CoreError::UnknownHost(host)
        | CoreError::HostIsUp(host)
        | CoreError::HostCordoned { host, .. }
        | CoreError::HostSilent { host, .. }
        | CoreError::HostIdInUse { host, .. } => host.to_string(),
        CoreError::UnknownVm { vmid, .. }
        | CoreError::DataDropped { vmid, .. }
        | CoreError::NoClone(vmid) => vmid.to_string(),
        _ => String::new(),
    }
}

fn quota(reason: &str) -> &'static str {
    match reason {
        "TOO_MANY_TICKETS" => "tickets",
        "NO_FREE_VMID" => "vmids",
        "TOO_MANY_FAMILIES" => "families",
        "TOO_MANY_WAITING" => "waiting",
        "TOO_MUCH_DATA" => "data_bytes",
        "TOO_MANY_HOSTS" => "hosts",
        _ => "calls",
    }
}

fn resource(reason: &str) -> &'static str {
    match reason {
        "UNKNOWN_HOST" | "HOST_ID_IN_USE" => "host",
        "UNKNOWN_VM" | "DATA_DROPPED" => "vm",
        _ => "ticket",
    }
}

fn field(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Core(CoreError::FewCpus { .. }) => "max_cpus",
        Refusal::Core(CoreError::SmallVms { .. }) => "min_cpus_per_vm",
        _ => "vmids",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::{
            api::{Closed, Free},
            facts::{Misfit, Misfits},
        },
        store::StoreError,
    };
    use std::sync::Arc;
    use uuid::Uuid;

    #[test]
    fn no_capacity_says_what_is_free_and_when_to_ask_again() {
        let free = Free { cpus: 3, memory_mib: 100, vms: 1 };
        let closed = Closed::default();
        let status = Status::from(Refusal::Core(CoreError::NoCapacity {
            min_vms: 4,
            free,
            closed,
            misfits: Misfits::default(),
        }));
        assert_eq!(status.code(), Code::ResourceExhausted);
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["free_vms"].as_str()), ("NO_CAPACITY", "1"));
        let quotas = status.get_details_quota_failure().unwrap().violations;
        assert_eq!(
            quotas.iter().map(|q| q.subject.as_str()).collect::<Vec<_>>(),
            ["cpus", "memory_mib", "vms"]
        );
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(RETRY));
        assert!(status.get_details_localized_message().unwrap().message.contains("ask for fewer"));
        assert!(!status.message().contains("hosts"), "{status}");
    }

    #[test]
    fn no_capacity_says_which_hosts_are_granted_nothing_and_what_to_do() {
        let of = |suspect, cordoned, lost| {
            let closed = Closed { suspect, cordoned, lost };
            let free = Free::default();
            Status::from(Refusal::Core(CoreError::NoCapacity {
                min_vms: 1,
                free,
                closed,
                misfits: Misfits::default(),
            }))
        };
        let all = of(1, 2, 3);
        for text in [
            "; hosts that are granted nothing: 1 suspect (they do not answer), 2 cordoned or draining, 3 lost; ",
            "`vmctl host uncordon`",
            "`vmctl host ls` shows which do not answer",
        ] {
            assert!(all.message().contains(text), "{all}");
        }
        let metadata = all.get_details_error_info().unwrap().metadata;
        let hosts = ["suspect_hosts", "cordoned_hosts", "lost_hosts"].map(|name| metadata[name].as_str());
        assert_eq!(hosts, ["1", "2", "3"]);
        assert!(!of(1, 0, 0).message().contains("cordon"));
        assert!(!of(0, 1, 0).message().contains("answer"));
    }

    #[test]
    fn hosts_that_do_not_fit_are_counted_and_one_is_named_with_the_reason() {
        let first = Some(("b".to_owned(), Misfit::KvmKind));
        let misfits = Misfits { hosts: 2, first };
        let closed = Closed { cordoned: 1, ..Closed::default() };
        let none = CoreError::NoFit { min_vms: 1, misfits: misfits.clone(), closed };
        let none = Status::from(Refusal::Core(none));
        assert_eq!(none.code(), Code::FailedPrecondition);
        let info = none.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.metadata["differing_hosts"].as_str()), ("HOSTS_DIFFER", "2"));
        let said = "2 hosts do not fit the VM that is cloned, the first: b: it has another kind of KVM";
        assert!(none.message().contains(said) && none.message().contains("1 cordoned"), "{none}");
        assert!(none.message().contains("vmctl host inspect"), "{none}");
        let full = CoreError::NoCapacity { min_vms: 1, free: Free::default(), closed, misfits };
        let full = Status::from(Refusal::Core(full));
        assert_eq!(full.get_details_error_info().unwrap().metadata["differing_hosts"], "2");
        assert!(full.message().contains(said), "{full}");
    }

    #[test]
    fn what_was_used_is_a_precondition_of_that_ticket() {
        let id = Uuid::new_v4();
        let status = Status::from(Refusal::Core(CoreError::Used(id)));
        assert_eq!(status.code(), Code::FailedPrecondition);
        let violation = &status.get_details_precondition_failure().unwrap().violations[0];
        assert_eq!((violation.r#type.as_str(), violation.subject.clone()), ("USED", id.to_string()));
    }

    #[test]
    fn a_host_that_is_granted_nothing_is_named_with_what_to_do() {
        let host = Uuid::new_v4();
        let cordoned = Status::from(Refusal::Core(CoreError::HostCordoned { host, name: "a".into() }));
        let violation = &cordoned.get_details_precondition_failure().unwrap().violations[0];
        assert_eq!(
            (violation.r#type.as_str(), violation.subject.clone()),
            ("HOST_CORDONED", host.to_string())
        );
        assert!(cordoned.message().contains("vmctl host uncordon"));
        let silent = CoreError::HostSilent { host, name: "a".into(), is: "suspect" };
        let silent = Status::from(Refusal::Core(silent));
        assert_eq!(silent.code(), Code::Unavailable);
        assert!(silent.message().contains("is suspect") && silent.get_details_retry_info().is_some());
    }

    #[test]
    fn a_store_that_fails_is_worth_another_try() {
        let status = Status::from(Refusal::Store(Arc::new(StoreError::Test)));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.get_details_error_info().unwrap().reason, "STORE");
        assert!(status.get_details_retry_info().is_some());
    }
}
