//! Errors: a message for people, and an exit code for scripts.

use patina_daemon::{chain, tls::TlsError};
use patina_pki::PkiError;
use std::{io, process::ExitCode, time::Duration};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Exit code of one who writes to a pipe that nobody reads: 128 + SIGPIPE.
const CLOSED: u8 = 141;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The address of vmmd or of the scheduler cannot be read.
    #[error("read the address \"{0}\": write unix:/PATH, tcp:ADDRESS:PORT or https://ADDRESS:PORT")]
    Address(String),
    /// vmmd does not answer.
    #[error("cannot reach vmmd at {host}: is it running? Start it with `vmmd --standalone`")]
    Unreachable {
        /// Where it was looked for.
        host: String,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// The scheduler does not answer.
    #[error("cannot reach the scheduler at {address}: is it running? Name its address with --scheduler")]
    NoScheduler {
        /// Where it was looked for.
        address: String,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// TCP, and no certificate.
    #[error(
        "connect to {0}: TCP needs a certificate; name its folder with --tls-dir or PATINA_TLS_DIR (`vmctl pki operator` makes one), or go without TLS with --insecure"
    )]
    NoCertificate(String),
    /// HTTP in plain text, while there is a certificate.
    #[error(
        "connect to {0}: it is without TLS; write tcp: or https://, or allow it with --insecure instead of --tls-dir"
    )]
    Plain(String),
    /// The operator's certificates cannot be used.
    #[error("{}", chain(.0))]
    Certificates(TlsError),
    /// One side does not take the other's certificate.
    #[error("{}", tls(.0))]
    Tls(tonic::transport::Error),
    /// No certificate was made.
    #[error("{}", chain(.0))]
    Pki(#[from] PkiError),
    /// The host has no VM of this family, and the command line does not give the size of the VMs.
    #[error("no VM of family {0} is on this host: give the size of its VMs with --vcpus and --memory")]
    Unsized(String),
    /// The ticket has not been used for clones yet.
    #[error("ticket {0} has not been used yet: clone with it first, `vmctl clone NAME --ticket {0}`")]
    Unused(String),
    /// A file could not be written.
    #[error("write {path}")]
    File {
        /// The path of the file that could not be written.
        path: std::path::PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// vmmd or the scheduler refused or failed.
    #[error("{}", words(.0))]
    Call(#[from] Status),
    /// vmmd ended a stream in the middle.
    #[error("{0}: vmmd closed the connection; `vmctl ls` shows whether the VM still runs")]
    CutShort(&'static str),
    /// The VM ended instead of getting ready.
    #[error("run {name}: the VM ended before its agent was ready: {reason}")]
    EndedEarly {
        /// The VM.
        name: String,
        /// What vmmd says of its end.
        reason: String,
    },
    /// Standard input or output failed.
    #[error("{what}")]
    Stream {
        /// What was done with the stream: `write to standard output`, for example.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The terminal does not do what we ask.
    #[error("set up the terminal")]
    Terminal(#[source] rustix::io::Errno),
    /// Some of several could not be handled: each was reported on its own.
    #[error("{failed} of {all} {what} failed")]
    Some {
        /// What was to be handled: `VMs`, for example.
        what: &'static str,
        /// How many failed.
        failed: usize,
        /// How many were to be handled.
        all: usize,
        /// The first failure's exit code.
        code: u8,
    },
    /// `doctor` found something that keeps guests from running.
    #[error("{0} checks failed: guests cannot run here until they pass")]
    Unhealthy(usize),
}

impl CtlError {
    /// A failure of standard output.
    pub fn stdout(source: io::Error) -> Self {
        Self::Stream { what: "write to standard output", source }
    }

    /// The exit code, as `vmctl --help` documents it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Address(_) | Self::Unsized(_) | Self::NoCertificate(_) | Self::Plain(_) => 2,
            Self::Pki(PkiError::Exists(_)) => 4,
            Self::Unreachable { .. } | Self::NoScheduler { .. } | Self::CutShort(_) | Self::Tls(_) => 6,
            Self::EndedEarly { .. } | Self::Unused(_) => 5,
            Self::Call(status) => match status.code() {
                Code::InvalidArgument | Code::OutOfRange => 2,
                Code::NotFound => 3,
                Code::AlreadyExists => 4,
                Code::FailedPrecondition | Code::Aborted | Code::PermissionDenied => 5,
                Code::Unavailable => 6,
                Code::ResourceExhausted => 7,
                Code::DataLoss => 8,
                Code::DeadlineExceeded => 124,
                _ => 1,
            },
            Self::Stream { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => CLOSED,
            Self::Some { code, .. } => *code,
            Self::Stream { .. }
            | Self::File { .. }
            | Self::Terminal(_)
            | Self::Unhealthy(_)
            | Self::Certificates(_)
            | Self::Pki(_) => 1,
        }
    }

    /// Tells people what happened: the exit code of the process, which under some commands is
    /// `own`.
    pub fn report(&self, own: Option<u8>) -> ExitCode {
        // A pipe whose reader has enough, as `head` has, is no news, except where the code would
        // not tell.
        if own.is_some() || self.exit_code() != CLOSED {
            self.explain();
        }
        ExitCode::from(own.unwrap_or(self.exit_code()))
    }

    /// Tells people on standard error what happened and what to do.
    pub fn explain(&self) {
        patina_daemon::say!("error: {self}");
        if let Self::Call(status) = self {
            for line in advice(status) {
                patina_daemon::say!("  {line}");
            }
        }
        let mut source = match self {
            // The transport's own words repeat that it could not connect; only the last says why.
            Self::Unreachable { source, .. } | Self::NoScheduler { source, .. } => {
                std::error::Error::source(source)
            }
            // Its text is the message above.
            Self::Call(_) | Self::Tls(_) => None,
            _ => std::error::Error::source(self),
        };
        // Transports wrap one error several times: the same words once.
        let mut said = String::new();
        while let Some(cause) = source {
            let words = cause.to_string();
            if words != said {
                patina_daemon::say!("  because: {words}");
            }
            said = words;
            source = cause.source();
        }
    }
}

/// What TLS says of a connection that failed.
fn tls(error: &tonic::transport::Error) -> String {
    TlsError::among(error).map_or_else(|| chain(error), |error| chain(error))
}

/// A status's message, where it has one: a server says nothing of a call that it does not know.
fn words(status: &Status) -> String {
    match (status.message(), status.code()) {
        ("", Code::Unimplemented) => {
            "there is no such call at this address: --host names a vmmd, --scheduler a scheduler, of vmctl's own version".to_owned()
        }
        ("", code) => format!("{code}"),
        // One that is too long for a status stands whole in its details.
        (message, _) => match status.get_details_debug_info() {
            Some(info) if info.detail.starts_with(message) => info.detail,
            _ => message.to_owned(),
        },
    }
}

/// What a status says beyond its message: which fields are wrong, what state is needed, what is
/// free, what to do.
fn advice(status: &Status) -> Vec<String> {
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
        let head = include_str!("../../proto/patina/v1/scheduler.proto");
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

    #[test]
    fn a_call_that_is_not_known_is_still_an_error_in_words() {
        let error = CtlError::from(Status::new(Code::Unimplemented, ""));
        assert!(error.to_string().contains("--host names a vmmd"), "{error}");
        assert_eq!(CtlError::from(Status::internal("why")).to_string(), "why");
        assert!(!CtlError::from(Status::internal("")).to_string().is_empty());
    }

    #[test]
    fn exit_codes_are_as_documented() {
        let of = |code| CtlError::from(Status::new(code, "")).exit_code();
        let codes = [Code::NotFound, Code::AlreadyExists, Code::FailedPrecondition, Code::Unavailable];
        assert_eq!(codes.map(of), [3, 4, 5, 6]);
        assert_eq!((of(Code::Aborted), of(Code::PermissionDenied)), (5, 5));
        assert_eq!((of(Code::DeadlineExceeded), of(Code::Internal)), (124, 1));
    }
}
