//! What people are told to do about a status.

use super::words;
use std::time::Duration;
use tonic::Status;
use tonic_types::StatusExt as _;

/// What a status says beyond its message: which fields are wrong, what state is needed, what is
/// free, what to do.
pub(super) fn advice(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let fields = details.bad_request().into_iter().flat_map(|bad| {
        bad.field_violations.iter().map(|field| format!("{}: {}", field.field, field.description))
    });
    let states = details
        .precondition_failure()
        .into_iter()
        .flat_map(|failure| failure.violations.iter().map(|violation| violation.description.clone()));
    let quotas = details
        .quota_failure()
        .into_iter()
        .flat_map(|failure| failure.violations.iter())
        .map(|quota| format!("{}: {}", quota.subject, quota.description));
    let said = details.localized_message().map(|message| message.message.clone());
    let links = details.help().into_iter().flat_map(|help| {
        help.links.iter().map(|link| format!("{} {}", link.description, link.url).trim_end().to_owned())
    });
    let retry = details.retry_info().and_then(|info| info.retry_delay);
    let retry =
        retry.filter(|delay| !delay.is_zero()).map(|delay| format!("try again in {}", seconds(delay)));
    let reason = details.error_info().and_then(|info| what_to_do(&info.reason)).map(str::to_owned);
    let message = words(status);
    fields
        .chain(states)
        .chain(quotas)
        .chain(said)
        .chain(links)
        .chain(retry)
        .chain(reason)
        // The messages often hold their advice already.
        .filter(|line| !line.trim().is_empty() && !message.contains(line.as_str()))
        .collect()
}

fn seconds(delay: Duration) -> String {
    format!("{}.{} s", delay.as_secs(), delay.subsec_millis() / 100)
}

/// The scheduler's reasons, as commands for people. Every reason of `scheduler.proto` has a line.
fn what_to_do(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "UNKNOWN_TICKET" | "FOREIGN_TICKET" => "`vmctl ticket ls` lists the tickets",
        "ROLE" => {
            "`vmctl pki operator NAME --role` makes a certificate with another role; on a Unix socket, be root or in the group patina"
        }
        "FOREIGN_HOST" => "make the host a certificate for its id: `vmctl pki host NAME --id UUID`",
        "FOREIGN_FAMILY" => "call with an operator's certificate: `vmctl pki operator NAME --role use`",
        "UNKNOWN_VM" => "`vmctl ls` lists the VMs",
        "UNKNOWN_HOST" | "IMPOSSIBLE" => "`vmctl host ls` shows which hosts there are, and how large",
        "USED" | "RELEASED" | "EXPIRED" | "FENCED" | "STALE_EPOCH" | "SMALL_TICKET" | "OTHER_PARENT" => {
            "ask for another ticket: `vmctl ticket request`"
        }
        "OTHER_HOST" => {
            "clones start on the host of the VM that they are made of: `vmctl ticket request` there asks for that host"
        }
        "NOT_USED" => "clone with the ticket first: `vmctl clone NAME --ticket UUID`",
        "NOT_PARENT" | "NOT_CLONE" => {
            "`vmctl ticket inspect UUID` shows who cloned with it, and which clones it has"
        }
        "NO_CAPACITY" => {
            "wait for room with --timeout, ask for less, or make room: `vmctl kill`, `vmctl ticket release`"
        }
        "HOST_CORDONED" | "HOST_SILENT" => "`vmctl host ls` shows the state of each host",
        "HOSTS_DIFFER" => "`vmctl host inspect HOST` shows what a host has",
        "HOST_ID_IN_USE" => "`vmctl host ls` shows which host has the id",
        "HOST_UP" => "`vmctl host drain` makes a host that answers empty",
        "TOO_MANY_TICKETS" => "give tickets back that are not needed: `vmctl ticket release UUID`",
        "TOO_MANY_WAITING" | "TOO_MANY_CALLS" => "try again when some of them are answered",
        "TOO_MANY_WATCHERS" => "end a `vmctl ticket watch`",
        "NO_FREE_VMID" => "clone a VM of another family, or start one: `vmctl run`",
        "TOO_MANY_FAMILIES" => "try again when families that have ended are forgotten, after a day",
        "TOO_MANY_HOSTS" => "start another scheduler for more hosts",
        "DATA_DROPPED" => {
            "read what clones leave soon, while their master lives: `vmctl join UUID --data-dir DIR`"
        }
        "TOO_MUCH_DATA" => "leave less with `gc join --data`, or write it elsewhere and leave its name",
        "BARRIER_TIMEOUT" | "JOIN_TIMEOUT" => {
            "`vmctl ticket inspect UUID` shows how many live; it can be tried again"
        }
        "STORE" => "nothing has changed; look at the scheduler's disk and log, and try again",
        "STOPPING" => "try again when the scheduler is back",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::CtlError;
    use tonic::Code;
    use tonic_types::ErrorDetails;

    #[test]
    fn details_become_lines() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("memory_mib", "32 is not in 64..=65536");
        details.set_localized_message("en", "give the VM at least 64 MiB");
        let status = Status::with_error_details(Code::InvalidArgument, "create VM: memory_mib", details);
        let expected = ["memory_mib: 32 is not in 64..=65536", "give the VM at least 64 MiB"];
        assert_eq!(advice(&status), expected);
        assert_eq!(CtlError::from(status).exit_code(), 2);
    }

    #[test]
    fn a_full_cluster_says_what_is_free_and_when_to_come_again() {
        let mut details = ErrorDetails::new();
        details.set_error_info("NO_CAPACITY", "patina", std::collections::HashMap::new());
        details.add_quota_failure_violation("cpus", "3 of 8 are free");
        details.set_retry_info(Some(Duration::from_millis(1500)));
        let status =
            Status::with_error_details(Code::ResourceExhausted, "request a ticket: no room", details);
        let lines = advice(&status);
        assert_eq!(lines[..2], ["cpus: 3 of 8 are free", "try again in 1.5 s"]);
        assert!(lines[2].contains("--timeout"), "{lines:?}");
        assert_eq!(CtlError::from(status).exit_code(), 7);
        let mut details = ErrorDetails::new();
        details.set_error_info("SOMETHING_NEW", "patina", std::collections::HashMap::new());
        assert!(advice(&Status::with_error_details(Code::Internal, "no", details)).is_empty());
    }

    #[test]
    fn every_reason_of_the_scheduler_has_advice() {
        let head = include_str!("../../../proto/patina/v1/scheduler.proto");
        let head = head.split("syntax =").next().unwrap();
        let head = head.split_once("Codes and reasons:").unwrap().1;
        let is_reason =
            |word: &&str| word.len() > 3 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let words = head.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(is_reason);
        let codes = [
            "INVALID_ARGUMENT",
            "NOT_FOUND",
            "ALREADY_EXISTS",
            "PERMISSION_DENIED",
            "FAILED_PRECONDITION",
            "RESOURCE_EXHAUSTED",
            "ABORTED",
            "DEADLINE_EXCEEDED",
            "UNAVAILABLE",
        ];
        let reasons: Vec<&str> = words.filter(|word| !codes.contains(word)).collect();
        assert!(reasons.contains(&"OTHER_HOST") && reasons.len() > 20, "{reasons:?}");
        let without: Vec<_> = reasons.iter().filter(|reason| what_to_do(reason).is_none()).collect();
        assert!(without.is_empty(), "{without:?}");
    }
}
