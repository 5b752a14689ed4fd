//! Calls that must come to an end.

use crate::facts::Shared;
use std::{future::Future, time::Duration};
use tokio::time::timeout;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

/// How long a call may take beyond what it was asked to wait: connections that stand still are given up after 10 s.
const PATIENCE: Duration = Duration::from_secs(15);

/// What has become of a call.
pub enum Outcome<T> {
    Done(T),
    /// The scheduler says no, for this reason.
    Refused(String),
    /// Nobody knows whether it was carried out.
    Unknown,
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
