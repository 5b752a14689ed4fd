//! `gc`, the guest's command: a table of verbs. Exit codes are errno numbers (22 EINVAL for a wrong use,
//! 107 ENOTCONN without agent, host or identity, and what the host answers), except that `ismaster`
//! on a clone is 1.

mod call;
mod clone;
mod tickets;
mod verbs;

use patina_abi::link::CallError;
use std::fmt::Write as _;
use std::io::Write as _;

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

/// A verb of the command.
struct Verb {
    name: &'static str,
    /// Its other name, or nothing.
    long: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<Output, CallError>,
}

const VERBS: &[Verb] = &[
    Verb {
        name: "vmid",
        long: "",
        arguments: "",
        help: "print this VM's number; 0 is the master",
        run: verbs::vmid,
    },
    Verb { name: "my-ip", long: "", arguments: "", help: "print this VM's address", run: verbs::my_ip },
    Verb {
        name: "ismaster",
        long: "",
        arguments: "",
        help: "exit 0 on the master, 1 on a clone",
        run: verbs::ismaster,
    },
    Verb {
        name: "list",
        long: "",
        arguments: "[--json]",
        help: "print a line for each VM of the family: vmid, ip, state, host",
        run: verbs::list,
    },
    Verb {
        name: "clone",
        long: "",
        arguments: "N|TICKET [--no-hold]",
        help: "clone this VM, N times or as the ticket says, and print as fork does: 0 in the VM that was\n\
               cloned, its own number in each clone; other programs are held until a clone knows who it is",
        run: clone::clone,
    },
    Verb {
        name: "rt",
        long: "request-ticket",
        arguments: "MAXCPUS MINVMS MINCPUSPERVM TIMEOUT_MS",
        help: "reserve VMs and print `ticket: UUID`; exit 16 when they are not to be had in time",
        run: tickets::request,
    },
    Verb {
        name: "lt",
        long: "list-tickets",
        arguments: "[--json]",
        help: "print a line for each ticket of the family: `ticket: UUID STATUS CPUS VMS MINCPUSPERVM`",
        run: tickets::list,
    },
    Verb {
        name: "ticket",
        long: "",
        arguments: "UUID [--json]",
        help: "print that line for one ticket",
        run: tickets::one,
    },
    Verb { name: "help", long: "", arguments: "", help: "print this", run: verbs::help },
    Verb {
        name: "version",
        long: "",
        arguments: "",
        help: "print the version of gc and of its ABI",
        run: verbs::version,
    },
];

/// Where the verbs' descriptions begin.
const COLUMN: usize = 20;

/// A wrong use of the command.
fn misuse(message: impl Into<String>) -> CallError {
    CallError { code: libc::EINVAL, message: message.into() }
}

/// The command's own description.
#[must_use]
pub fn usage() -> String {
    let mut text = String::from("usage: gc VERB [ARGUMENT...]\n\n");
    for Verb { name, long, arguments, help, .. } in VERBS {
        let or = if long.is_empty() { "" } else { ", " };
        let left = format!("{name}{or}{long} {arguments}");
        let gap = if left.len() < COLUMN { COLUMN - left.len() } else { COLUMN + 2 };
        let line_end = if left.len() < COLUMN { "" } else { "\n" };
        let help = help.replace('\n', &format!("\n{:COLUMN$}   ", ""));
        // Writing to a String does not fail.
        if writeln!(text, "  {left}{line_end}{:gap$} {help}", "").is_err() {
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
    let verb = VERBS.iter().find(|verb| verb.name == name || (verb.long == name && !name.is_empty()));
    let verb = verb.ok_or_else(|| misuse(format!("unknown verb {name:?}; `gc help` lists them")))?;
    (verb.run)(rest).map_err(|e| CallError { message: format!("{name}: {}", e.message), ..e })
}

/// Runs the command; returns its exit code.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
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
