//! Calls that must come to an end.

use crate::facts::Shared;
use scheduler::{client::calls::Failed, host::admission::NotAdmitted};
use std::{future::Future, time::Duration};
use tokio::time::timeout;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

/// How long a call may take beyond what it was asked to wait: connections that stand still are
/// given up after 10 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// What has become of a call.
pub enum Outcome<T> {
    Done(T),
    /// The scheduler says no, for this reason.
    Refused(String),
    /// Nobody knows whether it was carried out.
    Unknown,
}

/// What is wrong with something of several calls.
pub trait Wrong {
    /// In the scheduler's words, if it has some; and whether it is certain that nothing has
    /// changed.
    fn parts(self) -> (Option<Status>, bool);
}

impl Wrong for Failed {
    fn parts(self) -> (Option<Status>, bool) {
        let is_certain = matches!(self, Self::Refused(_));
        (Some(self.into_status()), is_certain)
    }
}

impl Wrong for NotAdmitted {
    fn parts(self) -> (Option<Status>, bool) {
        match self {
            Self::Registering { is_unused } => (None, is_unused),
            Self::Failed(failed) => failed.parts(),
        }
    }
}

/// What the client does by itself, with as many calls as it takes: it waits for `wait` at most, and
/// tries again for a while.
pub async fn finished<T, E: Wrong>(
    facts: &Shared,
    what: &str,
    wait: Duration,
    future: impl Future<Output = Result<T, E>>,
) -> Outcome<T> {
    let error = match timeout(wait + PATIENCE, future).await {
        Ok(Ok(done)) => return Outcome::Done(done),
        Ok(Err(error)) => error,
        Err(_) => {
            facts.wrong(format_args!("{what} has not come to its end in {:?}", wait + PATIENCE));
            return Outcome::Unknown;
        }
    };
    let (status, is_certain) = error.parts();
    let info = status.as_ref().and_then(Status::get_details_error_info);
    let reason = info.map_or_else(|| "none".to_owned(), |info| info.reason);
    let message = status.as_ref().map_or("not registered", Status::message);
    facts.log(format_args!("{what}: {reason}, certain: {is_certain}: {message}"));
    if status.is_some_and(|status| matches!(status.code(), Code::InvalidArgument)) {
        facts.wrong(format_args!("{what}: {reason}"));
    }
    if is_certain {
        facts.get().sums.refused += 1;
        return Outcome::Refused(reason);
    }
    if facts.get().sums.faults == 0 {
        facts.wrong(format_args!("{what} has failed though nothing is broken: {reason}"));
    }
    facts.get().sums.failed += 1;
    Outcome::Unknown
}

/// A call that waits for `wait` at most.
pub async fn call<T>(
    facts: &Shared,
    what: &str,
    wait: Duration,
    future: impl Future<Output = Result<Response<T>, Status>>,
) -> Outcome<T> {
    match timeout(wait + PATIENCE, future).await {
        Ok(Ok(response)) => Outcome::Done(response.into_inner()),
        Ok(Err(status)) => {
            let reason = status.get_details_error_info().map(|info| info.reason);
            facts.log(format_args!("{what}: {:?} {:?} {}", status.code(), reason, status.message()));
            if matches!(status.code(), Code::InvalidArgument | Code::Internal) {
                facts.wrong(format_args!("{what}: {status}"));
            }
            match reason {
                Some(reason) if reason != "STORE" && reason != "STOPPED" => {
                    facts.get().sums.refused += 1;
                    Outcome::Refused(reason)
                }
                _ => {
                    if facts.get().sums.faults == 0 {
                        facts.wrong(format_args!("{what} has failed though nothing is broken: {status}"));
                    }
                    facts.get().sums.failed += 1;
                    Outcome::Unknown
                }
            }
        }
        Err(_) => {
            facts.wrong(format_args!("{what} was not answered in {:?}", wait + PATIENCE));
            Outcome::Unknown
        }
    }
}
