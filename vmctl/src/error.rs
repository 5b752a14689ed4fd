//! Errors: a message for people, and an exit code for scripts.

mod advice;
mod find;

pub use find::FindError;

use crate::ssh::SshError;
use patina_daemon::{chain, find_cause, tls::TlsError};
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
    #[error(
        "read the address \"{0}\": write unix:/PATH, tcp:ADDRESS:PORT, https://ADDRESS:PORT or ssh://[USER@]HOST[:PORT][/PATH]"
    )]
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
    #[error("{}", cause::<TlsError>(.0))]
    Tls(tonic::transport::Error),
    /// There is no connection by way of ssh.
    #[error("{}", cause::<SshError>(.0))]
    Ssh(tonic::transport::Error),
    /// An address that would start ssh, and that no operator has written.
    #[error(
        "connect to {0}: ssh is only started for an address of the command line; name it with --host or --scheduler"
    )]
    ToldSsh(String),
    /// `dial-stdio` connects to Unix sockets only.
    #[error("connect to {0}: dial-stdio connects to a Unix socket; name it with --host unix:/PATH")]
    NoSocket(String),
    /// `dial-stdio` cannot connect.
    #[error("connect to vmmd at unix:{path}; see whether it runs, and whether you may use its socket")]
    Socket {
        /// The socket's path.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No certificate was made.
    #[error("{}", chain(.0))]
    Pki(#[from] PkiError),
    /// The host has no VM of this family, and the command line does not give the size of the VMs.
    #[error("no VM of family {0} is on this host: give the size of its VMs with --vcpus and --memory")]
    Unsized(String),
    /// Only a scheduler answers at the address of the host that is to be preferred.
    #[error("prefer this host: only a scheduler answers there; name a vmmd with --host")]
    NoHost,
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
    /// Some hosts did not answer: each was reported on its own.
    #[error("the list is not complete: {failed} of {all} hosts did not answer")]
    Incomplete {
        /// How many did not answer.
        failed: usize,
        /// How many were to be asked.
        all: usize,
        /// The first failure's exit code.
        code: u8,
    },
    /// A host did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Slow(Duration),
    /// Another vmmd listens at a host's address.
    #[error(
        "host {is} answers there, not host {wanted}; give each vmmd an address of its own with --listen or --advertise"
    )]
    OtherHost {
        /// The id of the host that was to be asked.
        wanted: String,
        /// The id of the host that answers.
        is: String,
    },
    /// The VM was looked for on all hosts.
    #[error(transparent)]
    Find(#[from] FindError),
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
            Self::Address(_)
            | Self::Unsized(_)
            | Self::NoHost
            | Self::NoCertificate(_)
            | Self::Plain(_)
            | Self::ToldSsh(_)
            | Self::NoSocket(_) => 2,
            Self::Pki(PkiError::Exists(_)) => 4,
            Self::Unreachable { .. }
            | Self::NoScheduler { .. }
            | Self::CutShort(_)
            | Self::Tls(_)
            | Self::Ssh(_)
            | Self::Socket { .. } => 6,
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
            Self::Some { code, .. } | Self::Incomplete { code, .. } => *code,
            Self::Find(error) => error.exit_code(),
            Self::Slow(_) | Self::OtherHost { .. } => 6,
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
            for line in advice::advice(status) {
                patina_daemon::say!("  {line}");
            }
        }
        let mut source = match self {
            // The transport's own words repeat that it could not connect; only the last says why.
            Self::Unreachable { source, .. } | Self::NoScheduler { source, .. } => {
                std::error::Error::source(source)
            }
            // Its text is the message above.
            Self::Call(_) | Self::Tls(_) | Self::Ssh(_) => None,
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

/// The error of a type that a transport wraps, with its causes; all of it if there is none.
fn cause<T: std::error::Error + 'static>(error: &tonic::transport::Error) -> String {
    find_cause::<T>(error).map_or_else(|| chain(error), |error| chain(error))
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

#[cfg(test)]
mod tests {
    use super::*;

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
