//! The results of the tests on an emulated host, from the lines that it prints.
//!
//! ```text
//!  SUITE e2e                                         from /init, before each program
//!  {"type":"test","event":"started","name":"boot::…"}  from the program: libtest-mimic's JSON,
//!  {"type":"test","name":"boot::…","event":"ok"}
//!  test sys::pagemap::… ... ok                       or the output of Rust's own test programs
//!  END e2e 0                                         from /init, with the exit code
//!  RESULT ok                                         from /init, at the end
//! ```
//!
//! Any other line is output of a program.

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    time::Duration,
};

/// Lines of what programs said that are shown with a failure.
const SAID_LINES: usize = 40;
/// What the kernel says of a process that its system call filter killed.
const SECCOMP_KILL: &str = "type=1326";
/// What the kernel says when something is wrong with itself.
const KERNEL_FAULTS: [&str; 8] = [
    "Oops:",
    "kernel BUG at",
    "BUG: unable to handle",
    "BUG: kernel NULL pointer",
    "general protection fault",
    "double fault",
    "Kernel panic",
    "Out of memory: Killed",
];

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The test passed.
    Ok,
    /// The test failed.
    Failed,
    /// The test did not run.
    Ignored,
}

/// Something to show while the tests run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A program of tests began.
    Suite(String),
    /// A test ended.
    Test {
        /// The test's name.
        name: String,
        /// How it ended.
        verdict: Verdict,
        /// How long it took.
        took: Duration,
    },
}

/// Why a run on an emulated host has not passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A test failed: its suite, its name, its words.
    Failed(String, String, String),
    /// A test that must run was ignored.
    Ignored(String, String),
    /// A test that must run did not.
    Missing(String, String),
    /// A program ended with this code although none of its tests failed.
    Code(String, String),
    /// The last line did not come. With what was being done, how the host ended, and what was said
    /// last.
    NoResult(String, String, String),
    /// The last line is another.
    Result(String),
    /// The kernel's filter killed a process.
    SeccompKill(String),
    /// The kernel found a fault of its own.
    Kernel(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(suite, name, words) => write!(f, "{suite}: {name} FAILED: {words}"),
            Self::Ignored(suite, name) => write!(f, "{suite}: {name} was ignored, and must run"),
            Self::Missing(suite, name) => write!(f, "{suite}: {name} did not run"),
            Self::Code(suite, code) => write!(f, "{suite}: ended with code {code}, and no test of it failed"),
            Self::NoResult(doing, ended, said) => {
                write!(f, "no RESULT line ({ended}) during {doing}; said last:\n{said}")
            }
            Self::Result(text) => write!(f, "the host's /init says: RESULT {text}"),
            Self::SeccompKill(line) => write!(f, "a process was killed by its system call filter: {line}"),
            Self::Kernel(line) => write!(f, "the host's kernel has a fault: {line}"),
        }
    }
}

/// What is known of one program of tests.
#[derive(Debug, Default)]
struct Suite {
    verdicts: BTreeMap<String, Verdict>,
    words: BTreeMap<String, String>,
    code: Option<String>,
}

/// The tests that must run, by suite.
pub type Expected = BTreeMap<String, BTreeSet<String>>;

/// Follows the lines of a run.
#[derive(Debug)]
pub struct Report {
    expected: Expected,
    suites: BTreeMap<String, Suite>,
    suite: String,
    test: Option<(String, Duration)>,
    said: VecDeque<String>,
    result: Option<String>,
    faults: Vec<Fault>,
}

impl Report {
    /// Nothing has run yet of what is expected.
    #[must_use]
    pub fn new(expected: Expected) -> Self {
        Self {
            expected,
            suites: BTreeMap::new(),
            suite: String::new(),
            test: None,
            said: VecDeque::new(),
            result: None,
            faults: Vec::new(),
        }
    }

    /// Takes one line, which came `at` that time after the host's start.
    pub fn line(&mut self, line: &str, at: Duration) -> Option<Event> {
        let line = line.trim_end();
        if let Some(name) = line.strip_prefix("SUITE ") {
            name.clone_into(&mut self.suite);
            self.suites.entry(name.to_owned()).or_default();
            self.test = Some(("the start of the suite".to_owned(), at));
            return Some(Event::Suite(name.to_owned()));
        }
        if let Some((name, code)) = line.strip_prefix("END ").and_then(|rest| rest.split_once(' ')) {
            self.suites.entry(name.to_owned()).or_default().code = Some(code.to_owned());
            self.test = None;
            return None;
        }
        if let Some(result) = line.strip_prefix("RESULT ") {
            self.result = Some(result.to_owned());
            return None;
        }
        match parse(line) {
            Some(Said::Started(name)) => {
                self.test = Some((name, at));
                None
            }
            Some(Said::Ended(name, verdict, words)) => Some(self.test_ended(name, verdict, words, at)),
            Some(Said::Suite) => None,
            None => {
                if self.said.len() == SAID_LINES {
                    self.said.pop_front();
                }
                self.said.push_back(line.to_owned());
                None
            }
        }
    }

    fn test_ended(&mut self, name: String, verdict: Verdict, words: String, at: Duration) -> Event {
        let began = self.test.take().map_or(at, |(_, began)| began);
        let suite = self.suites.entry(self.suite.clone()).or_default();
        suite.verdicts.insert(name.clone(), verdict);
        if !words.is_empty() {
            suite.words.insert(name.clone(), words);
        }
        // The next one of a program that does not say when a test begins.
        self.test = Some((format!("what follows {name}"), at));
        Event::Test { name, verdict, took: at.saturating_sub(began) }
    }

    /// The host has ended, `ended` says how; `console` is what its kernel printed.
    pub fn end(&mut self, ended: &str, console: &str) {
        let mut faults = Vec::new();
        for (name, suite) in &self.suites {
            let failed: Vec<_> =
                suite.verdicts.iter().filter(|(_, verdict)| **verdict == Verdict::Failed).collect();
            faults.extend(failed.iter().map(|(test, _)| {
                let words = suite.words.get(*test).cloned().unwrap_or_default();
                Fault::Failed(name.clone(), (*test).clone(), words)
            }));
            match &suite.code {
                Some(code) if code != "0" && failed.is_empty() => {
                    faults.push(Fault::Code(name.clone(), code.clone()));
                }
                _ => {}
            }
        }
        for (name, tests) in &self.expected {
            for test in tests {
                match self.suites.get(name).and_then(|suite| suite.verdicts.get(test)) {
                    None => faults.push(Fault::Missing(name.clone(), test.clone())),
                    Some(Verdict::Ignored) => faults.push(Fault::Ignored(name.clone(), test.clone())),
                    Some(Verdict::Ok | Verdict::Failed) => {}
                }
            }
        }
        match self.result.as_deref() {
            Some("ok") => {}
            Some(text) => faults.push(Fault::Result(text.to_owned())),
            None => {
                let doing = self.test.as_ref().map_or("no test", |(name, _)| name);
                let doing = format!("{}: {doing}", self.suite);
                faults.push(Fault::NoResult(doing, ended.to_owned(), self.said()));
            }
        }
        faults.extend(console.lines().filter_map(kernel_fault));
        self.faults = faults;
    }

    /// Why the run has not passed: nothing when it has.
    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// How many tests hold.
    #[must_use]
    pub fn passed(&self) -> usize {
        let verdicts = self.suites.values().flat_map(|suite| suite.verdicts.values());
        verdicts.filter(|verdict| **verdict == Verdict::Ok).count()
    }

    /// What programs said last, beside their results.
    #[must_use]
    pub fn said(&self) -> String {
        self.said.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

/// What a program of tests says.
enum Said {
    Started(String),
    Ended(String, Verdict, String),
    Suite,
}

fn parse(line: &str) -> Option<Said> {
    if line.starts_with('{') {
        return parse_json(line);
    }
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let verdict = match outcome.split([',', ' ', '<']).next()? {
        "ok" => Verdict::Ok,
        "FAILED" => Verdict::Failed,
        "ignored" => Verdict::Ignored,
        _ => return None,
    };
    Some(Said::Ended(plain(name), verdict, String::new()))
}

fn parse_json(line: &str) -> Option<Said> {
    let value: Value = serde_json::from_str(line).ok()?;
    let (kind, event) = (value["type"].as_str()?, value["event"].as_str()?);
    if kind == "suite" {
        return Some(Said::Suite);
    }
    let name = plain(value["name"].as_str()?);
    let verdict = match event {
        "started" => return Some(Said::Started(name)),
        "ok" => Verdict::Ok,
        "ignored" => Verdict::Ignored,
        // What is not known has not passed.
        _ => Verdict::Failed,
    };
    Some(Said::Ended(name, verdict, value["stdout"].as_str().unwrap_or_default().to_owned()))
}

/// A test's name without the reason for which it is ignored: `name [no tap: …]`.
pub(crate) fn plain(name: &str) -> String {
    name.split_once(" [").map_or(name, |(name, _)| name).trim_end().to_owned()
}

fn kernel_fault(line: &str) -> Option<Fault> {
    if line.contains(SECCOMP_KILL) {
        return Some(Fault::SeccompKill(line.trim_end().to_owned()));
    }
    let is_fault = KERNEL_FAULTS.iter().any(|words| line.contains(words));
    is_fault.then(|| Fault::Kernel(line.trim_end().to_owned()))
}

#[cfg(test)]
#[path = "report_test.rs"]
mod tests;
