//! Progress messages of a long build.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Receives the steps of a build, in order. A step ends where the next begins.
pub trait Progress {
    /// A step begins, for instance "kernel: unpack the source".
    fn step(&mut self, name: &str);
    /// The running step has done this much; `expected` is an estimate and may be passed.
    fn advance(&mut self, done: u64, expected: Option<u64>, unit: &str);
    /// Something worth a line, for instance which packages are about to be installed and why.
    fn note(&mut self, text: &str);
    /// The last step has ended.
    fn finish(&mut self);
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&mut self, _name: &str) {}
    fn advance(&mut self, _done: u64, _expected: Option<u64>, _unit: &str) {}
    fn note(&mut self, _text: &str) {}
    fn finish(&mut self) {}
}

/// Writes steps and their times to standard error: one line a step, and while a long one runs a
/// line that is rewritten in place on a terminal and repeated now and then elsewhere, so that a CI
/// log shows life.
#[derive(Debug)]
pub struct Stderr {
    terminal: bool,
    running: Option<(String, Instant)>,
    shown_at: Instant,
    line_open: bool,
}

const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
const LOG_INTERVAL: Duration = Duration::from_secs(20);

impl Default for Stderr {
    fn default() -> Self {
        Self::new()
    }
}

impl Stderr {
    /// Progress on this process's standard error.
    pub fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            running: None,
            shown_at: Instant::now(),
            line_open: false,
        }
    }

    /// Progress is a courtesy: a closed standard error must not fail a build, so its error goes
    /// nowhere.
    fn write(&mut self, text: &str) {
        if std::io::stderr().write_all(text.as_bytes()).is_err() {
            self.terminal = false;
        }
    }

    fn close_line(&mut self) {
        if self.line_open {
            self.write("\r\x1b[K");
            self.line_open = false;
        }
    }
}

impl Progress for Stderr {
    fn step(&mut self, name: &str) {
        self.finish();
        self.running = Some((name.to_owned(), Instant::now()));
        self.shown_at = Instant::now();
        if self.terminal {
            self.write(&format!("  ...    {name}"));
            self.line_open = true;
        }
    }

    fn advance(&mut self, done: u64, expected: Option<u64>, unit: &str) {
        let interval = if self.terminal { TERMINAL_INTERVAL } else { LOG_INTERVAL };
        if self.shown_at.elapsed() < interval {
            return;
        }
        self.shown_at = Instant::now();
        let Some((name, since)) = &self.running else { return };
        let amount = describe(done, expected, unit);
        let line = format!("{:>7.1} s  {name}: {amount}", since.elapsed().as_secs_f64());
        if self.terminal {
            self.write(&format!("\r\x1b[K{line}"));
            self.line_open = true;
        } else {
            self.write(&format!("{line}\n"));
        }
    }

    fn note(&mut self, text: &str) {
        self.close_line();
        self.write(&format!("  note:    {text}\n"));
    }

    fn finish(&mut self) {
        self.close_line();
        if let Some((name, since)) = self.running.take() {
            self.write(&format!("{:>7.1} s  {name}\n", since.elapsed().as_secs_f64()));
        }
    }
}

/// "640 of about 1400 objects"; once the estimate is passed it is no longer shown.
fn describe(done: u64, expected: Option<u64>, unit: &str) -> String {
    match expected {
        Some(expected) if done <= expected => format!("{done} of about {expected} {unit}"),
        _ => format!("{done} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn an_estimate_is_dropped_once_passed() {
        assert_eq!(describe(640, Some(1400), "objects"), "640 of about 1400 objects");
        assert_eq!(describe(1401, Some(1400), "objects"), "1401 objects");
        assert_eq!(describe(7, None, "packages"), "7 packages");
    }
}
