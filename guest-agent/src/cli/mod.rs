//! `gc`, the guest's command. Exit codes are errno numbers: 22 (EINVAL) for wrong usage, 107
//! (ENOTCONN) without agent, host or identity, and the codes that the host returns. Exceptions:
//! `ismaster` on a clone is 1, and a standard output that nobody reads is 141.
//!
//! - `table`: all verbs; `help` and the man page are made from it. `verb`: the description of one.
//! - `verbs`, `tickets`, `clone`, `family`, `join`: the verbs.
//! - `words`: a verb's arguments; `call`: calls to the agent.

mod call;
mod clone;
mod family;
mod help;
mod join;
mod table;
mod tickets;
mod verb;
mod verbs;
mod words;

#[cfg(test)]
mod man;

use crate::sys::signals;
use patina_abi::link::CallError;
use std::io::{self, Write as _};

/// Exit code of one who writes to a pipe that nobody reads, as `head` leaves one: 128 + SIGPIPE. No
/// errno number is as large.
const CLOSED: i32 = 141;

/// What a verb prints, and the command's exit code.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// For standard output.
    pub text: String,
    /// For standard error: what did not work although the verb did.
    pub warnings: String,
    /// 0 unless the verb says otherwise.
    pub code: i32,
}

/// A wrong use of the command.
fn misuse(message: impl Into<String>) -> CallError {
    CallError { code: libc::EINVAL, message: message.into() }
}

fn dispatch(arguments: &[String]) -> Result<Output, CallError> {
    let Some((name, rest)) = arguments.split_first() else { return Err(table::no_verb()) };
    let name = match name.as_str() {
        "-h" | "--help" => "help",
        "-V" | "--version" => "version",
        other => other,
    };
    let verb = table::find(name)?;
    if rest.iter().any(|argument| argument == "--help" || argument == "-h") {
        return Ok(verbs::print(help::of(verb)));
    }
    (verb.run)(rest).map_err(|e| CallError { message: with_verb(name, e.message), ..e })
}

/// Hosts often begin with what they were asked for.
fn with_verb(name: &str, message: String) -> String {
    let says_so = message.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
    if says_so { message } else { format!("{name}: {message}") }
}

/// Runs the command; returns its exit code.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
    // A pipe or agent that has gone is then an error, with a code of its own, and the answer is
    // printed even where a warning cannot be.
    if signals::block(&[libc::SIGPIPE]).is_err() {
        // Then the signal ends us, as it does most programs.
    }
    let arguments: Vec<String> = arguments.collect();
    let Output { text, warnings, code } = match dispatch(&arguments) {
        Ok(output) => output,
        Err(error) => {
            complain(&error.message);
            return exit_code(error.code);
        }
    };
    warnings.lines().for_each(complain);
    if text.is_empty() {
        return code;
    }
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Ok(()) => code,
        // Its reader has had enough: no news.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => CLOSED,
        Err(error) => {
            complain(&format!("write the answer: {error}"));
            exit_code(error.raw_os_error().unwrap_or(libc::EIO))
        }
    }
}

fn complain(message: &str) {
    if io::stderr().write_all(format!("gc: {message}\n").as_bytes()).is_err() {
        // The exit code says it too.
    }
}

/// What comes from outside must not look like success, nor like `ismaster`'s 1: EPERM is told as
/// EACCES.
fn exit_code(code: i32) -> i32 {
    match code {
        libc::EPERM => libc::EACCES,
        2..=255 => code,
        _ => libc::EIO,
    }
}

#[cfg(test)]
#[path = "cli_test.rs"]
mod tests;
