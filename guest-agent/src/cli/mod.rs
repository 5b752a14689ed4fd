//! `gc`, the guest's command: a table of verbs. Exit codes are errno numbers (22 EINVAL for a wrong use,
//! 107 ENOTCONN without agent, host or identity, and what the host answers), except that `ismaster`
//! on a clone is 1.

mod call;
mod verbs;

use patina_abi::link::CallError;
use std::fmt::Write as _;
use std::io::Write as _;

/// What a verb prints, and the command's exit code.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// For standard output.
    pub text: String,
    /// 0 unless the verb says otherwise.
    pub code: i32,
}

/// A verb of the command.
struct Verb {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<Output, CallError>,
}

const VERBS: &[Verb] = &[
    Verb { name: "vmid", arguments: "", help: "print this VM's number; 0 is the master", run: verbs::vmid },
    Verb { name: "my-ip", arguments: "", help: "print this VM's address", run: verbs::my_ip },
    Verb {
        name: "ismaster",
        arguments: "",
        help: "exit 0 on the master, 1 on a clone",
        run: verbs::ismaster,
    },
    Verb {
        name: "list",
        arguments: "[--json]",
        help: "print a line for each VM of the family: vmid, ip, state, host",
        run: verbs::list,
    },
    Verb { name: "help", arguments: "", help: "print this", run: verbs::help },
    Verb {
        name: "version",
        arguments: "",
        help: "print the version of gc and of its ABI",
        run: verbs::version,
    },
];

/// A wrong use of the command.
fn misuse(message: impl Into<String>) -> CallError {
    CallError { code: libc::EINVAL, message: message.into() }
}

/// The command's own description.
#[must_use]
pub fn usage() -> String {
    let mut text = String::from("usage: gc VERB [ARGUMENT...]\n\n");
    for Verb { name, arguments, help, .. } in VERBS {
        let left = format!("{name} {arguments}");
        // Writing to a String does not fail.
        if writeln!(text, "  {left:<20} {help}").is_err() {
            break;
        }
    }
    text.push_str("\nexit: 0; an errno number otherwise (22: wrong use, 107: no agent, host or identity)\n");
    text
}

fn dispatch(arguments: &[String]) -> Result<Output, CallError> {
    let Some((name, rest)) = arguments.split_first() else { return Err(misuse(usage().trim_end())) };
    let name = match name.as_str() {
        "-h" | "--help" => "help",
        "-V" | "--version" => "version",
        other => other,
    };
    let verb = VERBS.iter().find(|verb| verb.name == name);
    let verb = verb.ok_or_else(|| misuse(format!("unknown verb {name:?}; `gc help` lists them")))?;
    (verb.run)(rest).map_err(|e| CallError { message: format!("{name}: {}", e.message), ..e })
}

/// Runs the command; returns its exit code.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
    let arguments: Vec<String> = arguments.collect();
    let Output { text, code } = match dispatch(&arguments) {
        Ok(output) => output,
        Err(error) => {
            complain(&error.message);
            return exit_code(error.code);
        }
    };
    if text.is_empty() {
        return code;
    }
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Ok(()) => code,
        Err(error) => {
            complain(&format!("write the answer: {error}"));
            exit_code(error.raw_os_error().unwrap_or(libc::EIO))
        }
    }
}

fn complain(message: &str) {
    if std::io::stderr().write_all(format!("gc: {message}\n").as_bytes()).is_err() {
        // The exit code says it too.
    }
}

/// What comes from outside must not look like success, nor like `ismaster`'s 1.
fn exit_code(code: i32) -> i32 {
    if (2..=255).contains(&code) { code } else { libc::EIO }
}

#[cfg(test)]
#[path = "cli_test.rs"]
mod tests;
