//! Progress on standard error: the current step, and how long it took.

use std::{
    error::Error,
    iter,
    time::{Duration, Instant},
};

/// Counts time from the beginning and names each step.
#[derive(Debug)]
pub struct Steps {
    started: Instant,
}

impl Steps {
    /// Time starts now.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }

    /// Does `work` under a heading, and says how long it took and how it ended.
    pub fn step<T, E>(&self, what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let began = Instant::now();
        patina_daemon::say!("[{:>7}] {what} …", clock(self.started.elapsed()));
        let result = work();
        let outcome = if result.is_ok() { "done" } else { "FAILED" };
        patina_daemon::say!(
            "[{:>7}] {what}: {outcome} in {}",
            clock(self.started.elapsed()),
            clock(began.elapsed())
        );
        result
    }

    /// A line of its own.
    pub fn note(&self, text: &str) {
        patina_daemon::say!("[{:>7}] {text}", clock(self.started.elapsed()));
    }
}

/// An error and what caused it, a line each.
pub fn with_causes(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}\n  because: {cause}"))
}

/// `4.2s`, `3m07s`.
fn clock(time: Duration) -> String {
    if time < Duration::from_mins(1) {
        format!("{:.1}s", time.as_secs_f64())
    } else {
        format!("{}m{:02}s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_a_line_each() {
        let cause = std::io::Error::other(std::fmt::Error);
        let error = crate::check::TestError::Look(cause);
        let expected = "look for processes and interfaces that the tests left behind\n  because: an error occurred when formatting an argument";
        assert!(with_causes(&error).starts_with(expected), "{}", with_causes(&error));
    }

    #[test]
    fn times_read_well() {
        assert_eq!(clock(Duration::from_millis(4210)), "4.2s");
        assert_eq!(clock(Duration::from_secs(187)), "3m07s");
    }
}
