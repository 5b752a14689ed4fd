//! What can go wrong: in words for people, as an exit code for scripts.

use std::io;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The address of vmmd cannot be read.
    #[error("read the address \"{0}\": write unix:PATH or tcp:ADDRESS:PORT")]
    Address(String),
    /// vmmd does not answer.
    #[error("cannot reach vmmd at {host}: is it running? Start it with `vmmd --standalone`")]
    Unreachable {
        /// Where it was looked for.
        host: String,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// vmmd refused or failed.
    #[error("{}", .0.message())]
    Call(#[from] Status),
    /// vmmd ended a stream in the middle.
    #[error("{0}: vmmd ended the conversation; `vmctl ls` shows whether the VM still runs")]
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
        /// Which.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The terminal does not do what we ask.
    #[error("set up the terminal")]
    Terminal(#[source] rustix::io::Errno),
    /// Some of several VMs could not be handled: each was reported on its own.
    #[error("{failed} of {all} VMs failed")]
    Some {
        /// How many failed.
        failed: usize,
        /// Of how many.
        all: usize,
        /// The first failure's exit code.
        code: u8,
    },
    /// `doctor` found something that keeps guests from running.
    #[error("{0} of the checks failed: guests cannot run here until they pass")]
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
            Self::Address(_) => 2,
            Self::Unreachable { .. } | Self::CutShort(_) => 6,
            Self::EndedEarly { .. } => 5,
            Self::Call(status) => match status.code() {
                Code::InvalidArgument | Code::OutOfRange => 2,
                Code::NotFound => 3,
                Code::AlreadyExists => 4,
                Code::FailedPrecondition | Code::Aborted => 5,
                Code::Unavailable => 6,
                Code::DeadlineExceeded => 124,
                _ => 1,
            },
            Self::Stream { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => 141,
            Self::Some { code, .. } => *code,
            Self::Stream { .. } | Self::Terminal(_) | Self::Unhealthy(_) => 1,
        }
    }

    /// Tells people on standard error what happened and what to do. A closed standard output is no news.
    pub fn explain(&self) {
        if self.exit_code() == 141 {
            return;
        }
        eprintln!("error: {self}");
        if let Self::Call(status) = self {
            for line in advice(status) {
                eprintln!("  {line}");
            }
        }
        let mut source = match self {
            // The transport's own words repeat that it could not connect; only the last says why.
            Self::Unreachable { source, .. } => std::error::Error::source(source),
            // Its text is the message above.
            Self::Call(_) => None,
            _ => std::error::Error::source(self),
        };
        // Transports wrap one error several times: the same words once.
        let mut said = String::new();
        while let Some(cause) = source {
            let words = cause.to_string();
            if words != said {
                eprintln!("  because: {words}");
            }
            said = words;
            source = cause.source();
        }
    }
}

/// What a status says beyond its message: which fields are wrong, what state is needed, what to do.
fn advice(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let fields = details.bad_request().into_iter().flat_map(|bad| {
        bad.field_violations.iter().map(|field| format!("{}: {}", field.field, field.description))
    });
    let states = details
        .precondition_failure()
        .into_iter()
        .flat_map(|failure| failure.violations.iter().map(|violation| violation.description.clone()));
    let words = details.localized_message().map(|message| message.message.clone());
    let links = details.help().into_iter().flat_map(|help| {
        help.links.iter().map(|link| format!("{} {}", link.description, link.url).trim_end().to_owned())
    });
    let message = status.message();
    fields
        .chain(states)
        .chain(words)
        .chain(links)
        // vmmd's messages often hold their advice already.
        .filter(|line| !line.trim().is_empty() && !message.contains(line.as_str()))
        .collect()
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
    fn exit_codes_are_as_documented() {
        let of = |code| CtlError::from(Status::new(code, "")).exit_code();
        let codes = [Code::NotFound, Code::AlreadyExists, Code::FailedPrecondition, Code::Unavailable];
        assert_eq!(codes.map(of), [3, 4, 5, 6]);
        assert_eq!(of(Code::Aborted), 5);
        assert_eq!((of(Code::DeadlineExceeded), of(Code::Internal)), (124, 1));
    }
}
