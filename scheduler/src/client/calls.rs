//! Calls that are retried until they are answered.
//!
//! If a connection breaks, the answer is lost, and it is unknown whether the call was carried out.
//! Most calls of the scheduler are idempotent, so they are retried for a limited time.

use backon::{ConstantBuilder, Retryable as _};
use std::{future::Future, time::Duration};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// How long an answer may take beyond what the scheduler was asked to wait; a scheduler that is
/// away is waited for so long.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The delay between a try that was not answered and the next. It has no jitter, so that the
/// simulation can replay a seed; the tries of many callers are spread as their first calls were.
const RETRY: Duration = Duration::from_millis(200);

/// Why a call has failed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The scheduler says no: nothing has changed.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// It may have been carried out, or not.
    #[error("{}", .0.message())]
    Unknown(Box<Status>),
}

impl Failed {
    /// In the words of the scheduler, or of the connection.
    #[must_use]
    pub fn into_status(self) -> Status {
        match self {
            Self::Refused(status) | Self::Unknown(status) => *status,
        }
    }
}

/// Whether nobody has answered: the scheduler is away, is about to stop, or the connection broke.
/// What a scheduler says itself has a reason with it; gRPC's own words for a broken connection are
/// many.
#[must_use]
pub fn is_away(status: &Status) -> bool {
    match status.get_details_error_info() {
        Some(info) => info.reason == "STOPPING",
        None => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Internal
                | Code::ResourceExhausted
        ),
    }
}

/// Whether a scheduler that could not write its ledger says so: it does not know itself what the
/// disk has of it.
fn is_doubtful(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| info.reason == "STORE")
}

/// Makes a call that does the same when it is made twice, until it is answered: for as long as it
/// may `wait`, and [`PATIENCE`]. `call` is given what is left of `wait`.
///
/// # Errors
/// It was refused, or not answered in time.
pub async fn answered<T, F>(wait: Duration, mut call: impl FnMut(Duration) -> F) -> Result<T, Failed>
where
    F: Future<Output = Result<T, Status>>,
{
    let begun = Instant::now();
    let (until, deadline) = (begun + wait, begun + wait + PATIENCE);
    let mut tries = 0;
    let try_once = || {
        tries += 1;
        within(deadline, call(until.saturating_duration_since(Instant::now())))
    };
    let retries = ConstantBuilder::new().with_delay(RETRY).without_max_times();
    let may_retry = |status: &Status| is_away(status) && Instant::now() + RETRY < deadline;
    try_once.retry(retries).when(may_retry).await.map_err(|status| {
        // What was asked before, and not answered, may have been carried out.
        let is_certain = tries == 1 && !is_away(&status) && !is_doubtful(&status);
        let failed = if is_certain { Failed::Refused } else { Failed::Unknown };
        failed(Box::new(status))
    })
}

/// Makes a call once: it may `wait` so long, and [`PATIENCE`].
///
/// # Errors
/// It was refused, or not answered in time.
pub async fn once<T>(wait: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Failed> {
    within(Instant::now() + wait + PATIENCE, call).await.map_err(|status| {
        let failed = if is_away(&status) || is_doubtful(&status) { Failed::Unknown } else { Failed::Refused };
        failed(Box::new(status))
    })
}

async fn within<T>(deadline: Instant, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Err(Status::unavailable("no answer in time"));
    timeout_at(deadline, call).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tonic_types::ErrorDetails;

    fn refusal(code: Code, reason: &str) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "patina", std::collections::HashMap::new());
        Status::with_error_details(code, "no", details)
    }

    /// Answers with one after the other; how often it was asked.
    async fn asked(answers: Vec<Result<u8, Status>>) -> (Result<u8, Failed>, u32) {
        let count = AtomicU32::new(0);
        let answers = std::sync::Mutex::new(answers.into_iter());
        let answer = answered(Duration::ZERO, |_| {
            count.fetch_add(1, Ordering::Relaxed);
            let next = answers.lock().unwrap().next();
            async move { next.unwrap_or_else(|| Err(Status::unavailable("away"))) }
        });
        (answer.await, count.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_breaks_in_any_words_is_tried_again() {
        for code in
            [Code::Unavailable, Code::Unknown, Code::Cancelled, Code::DeadlineExceeded, Code::Internal]
        {
            let (answer, count) = asked(vec![Err(Status::new(code, "h2")), Ok(7)]).await;
            assert!(matches!(answer, Ok(7)) && count == 2, "{code:?}: {answer:?}");
        }
        let (answer, count) = asked(vec![Err(refusal(Code::Unavailable, "STOPPING")), Ok(7)]).await;
        assert!(matches!(answer, Ok(7)) && count == 2, "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_not_tried_again_and_certain_only_if_it_was_asked_once() {
        let no = || Err(refusal(Code::FailedPrecondition, "USED"));
        let (answer, count) = asked(vec![no(), Ok(7)]).await;
        assert!(matches!(answer, Err(Failed::Refused(_))) && count == 1, "{answer:?}");
        let (answer, count) = asked(vec![Err(Status::unknown("broken")), no()]).await;
        assert!(matches!(answer, Err(Failed::Unknown(status)) if status.message() == "no") && count == 2);
        let (answer, _) = asked(vec![Err(refusal(Code::Unavailable, "STORE"))]).await;
        assert!(matches!(answer, Err(Failed::Unknown(_))), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_scheduler_that_is_away_or_says_nothing_is_given_up() {
        let begun = Instant::now();
        let (answer, count) = asked(Vec::new()).await;
        assert!(matches!(answer, Err(Failed::Unknown(_))) && count > 10, "{count}");
        assert!(begun.elapsed() <= PATIENCE);
        let silent = |_| std::future::pending::<Result<u8, Status>>();
        let begun = Instant::now();
        let wait = Duration::from_secs(3);
        assert!(matches!(answered(wait, silent).await, Err(Failed::Unknown(_))));
        assert_eq!(begun.elapsed().as_secs(), 13);
        assert!(matches!(once(wait, silent(wait)).await, Err(Failed::Unknown(_))));
        assert_eq!(begun.elapsed().as_secs(), 26);
    }

    #[tokio::test(start_paused = true)]
    async fn each_try_waits_for_what_is_left() {
        let mut left = Vec::new();
        let answer = answered(Duration::from_secs(1), |rest| {
            left.push(rest);
            let is_enough = rest < Duration::from_millis(500);
            async move { if is_enough { Ok(()) } else { Err(Status::unavailable("away")) } }
        });
        assert!(answer.await.is_ok());
        assert!(left.is_sorted_by(|a, b| a > b) && left[0] == Duration::from_secs(1), "{left:?}");
    }
}
