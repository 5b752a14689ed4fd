//! The command line.

use crate::{
    commands::{
        clone, console, events, exec, host, image, inspect, join, kill, logs, ls, pki, publish, rm, run,
        snapshot, sync, ticket, top, wait,
    },
    error::CtlError,
    output::Format,
    values,
};
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use std::{
    ffi::OsString,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the call failed
  2    wrong usage, or a value that vmmd refuses
  3    no VM of that name, no such ticket, no such snapshot
  4    the name, a published port or the place of a snapshot is in use
  5    the VM or the ticket is not in the state that the command needs, or belongs to another
       family; with --all-hosts, several hosts have a VM of that name
  6    vmmd, the scheduler, the VM's process or its agent does not answer; with --all-hosts, some
       of the hosts do not
  7    there is no room, or a limit is reached
  8    a snapshot is damaged
  124  not within the time given with --timeout
  125  exec: vmctl itself failed, or was used wrongly; any other code is the guest program's own
  141  standard output was closed";

/// Above the options that every command takes.
const GLOBAL: &str = "Global options";

/// Runs, looks at and ends virtual machines of a Patina host.
#[derive(Debug, Parser)]
#[command(name = "vmctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Arguments {
    /// Where vmmd listens: unix:PATH, tcp:ADDRESS:PORT with --tls-dir, or
    /// ssh://USER@HOST:PORT/PATH, of which only HOST is needed, for the socket on another machine
    /// that has vmctl, too.
    #[arg(long, global = true, help_heading = GLOBAL, env = "PATINA_HOST", default_value = crate::client::DEFAULT_HOST, value_name = "ADDRESS", value_parser = values::utf8())]
    pub host: String,
    /// Where the scheduler listens: unix:PATH, tcp:ADDRESS:PORT with --tls-dir, or an ssh://
    /// address [default: where vmmd says].
    #[arg(long, global = true, help_heading = GLOBAL, env = "PATINA_SCHEDULER", value_name = "ADDRESS", value_parser = values::utf8())]
    pub scheduler: Option<String>,
    /// The folder with your certificate, as `vmctl pki operator` makes it: ca.pem, cert.pem and
    /// key.pem.
    #[arg(long, global = true, help_heading = GLOBAL, env = "PATINA_TLS_DIR", value_name = "DIR", conflicts_with = "insecure")]
    pub tls_dir: Option<PathBuf>,
    /// Connect over TCP without TLS.
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub insecure: bool,
    /// How to print results.
    #[arg(short, long, global = true, help_heading = GLOBAL, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a VM and start it; wait until its agent is ready; print its name.
    Run(run::Arguments),
    /// Make clones of a VM that runs: copies of the whole machine at one instant.
    Clone(clone::Arguments),
    /// List the VMs of the host, or of all hosts, clones under the VM that they were made of.
    #[command(visible_alias = "list")]
    Ls(ls::Arguments),
    /// Show all about a VM.
    Inspect(inspect::Arguments),
    /// Run a program in a VM: its input, output, signals and exit code are passed on.
    Exec(exec::Arguments),
    /// Attach to a VM's serial console; Ctrl-] detaches.
    Console(console::Arguments),
    /// Print what a VM's console has said.
    Logs(logs::Arguments),
    /// End VMs at once.
    Kill(kill::Arguments),
    /// Publish ports of a VM that runs, on its host.
    Publish(publish::Publish),
    /// Stop publishing ports of a VM: their connections are cut.
    Unpublish(publish::Unpublish),
    /// Keep VMs in snapshots on the host's disk, and start VMs from them.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Look at the images of booted VMs, from which `run` starts VMs, and remove them.
    #[command(subcommand)]
    Image(image::Command),
    /// Reserve clones before they are made: ask for tickets, look at them, give them back.
    #[command(subcommand)]
    Ticket(ticket::Command),
    /// List the hosts that the scheduler knows, and what of them is reserved: `host ls` in short.
    Hosts,
    /// Look at the hosts of the scheduler, take them out of use, and bring them back.
    #[command(subcommand)]
    Host(host::Command),
    /// Wait at a ticket's barrier, for the VM that cloned, until all its clones that live have come
    /// too (gc sync).
    Sync(sync::Arguments),
    /// Wait until all clones of a ticket have ended, and print how (gc join).
    Join(join::Arguments),
    /// Print what happened on the host, and what happens.
    Events(events::Arguments),
    /// Show what the running VMs take of the host, live.
    ///
    /// PRIVATE is memory of a VM's own: what it wrote since it was cloned last, and all its RAM
    /// until the family's first clone. SHARED is memory of generations, which its family has in
    /// common, and of programs' files.
    Top(top::Arguments),
    /// Forget ended VMs and delete their files.
    Rm(rm::Arguments),
    /// Wait until a VM is ready or has ended.
    Wait(wait::Arguments),
    /// Make the certificates with which hosts, schedulers and operators know each other over TCP.
    #[command(subcommand)]
    Pki(pki::Command),
    /// Check what this machine has of what Patina needs, and say how to get the rest.
    Doctor,
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: Shell,
    },
    /// Print the versions of vmctl and of vmmd.
    Version,
    /// Connect standard input and output to vmmd's Unix socket.
    ///
    /// `vmctl --host ssh://HOST` runs it on HOST by way of ssh. It prints one line when it is
    /// connected; all else is the connection's.
    #[command(hide = true)]
    DialStdio,
}

/// Exit code of wrong usage.
const USAGE: u8 = 2;
/// Exit code of all that goes wrong with `exec` itself.
const EXEC_FAILED: u8 = 125;

/// What is to be printed instead of doing anything: help, a version, or what is wrong with the
/// command line.
#[derive(Debug)]
pub struct Said {
    error: clap::Error,
    code: u8,
}

impl Said {
    /// Prints it: the exit code of the process.
    pub fn print(&self) -> ExitCode {
        let text = self.error.render();
        let coloured = text.ansi().to_string();
        if self.error.use_stderr() {
            let shown = if io::stderr().is_terminal() { coloured } else { text.to_string() };
            patina_daemon::say!("{}", shown.trim_end());
            return ExitCode::from(self.code);
        }
        let shown = if io::stdout().is_terminal() { coloured } else { text.to_string() };
        let mut stdout = io::stdout().lock();
        match stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(source) => CtlError::stdout(source).report(None),
        }
    }
}

/// Reads the command line and the environment.
///
/// # Errors
/// Something is wrong with it, or help is asked for.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Arguments, Said> {
    let words: Vec<OsString> = words.into_iter().collect();
    Arguments::try_parse_from(&words).map_err(|error| {
        // What clap understands of it, whatever else is wrong, says which command it was to be.
        let command = Arguments::command().ignore_errors(true).try_get_matches_from(&words);
        let named = command.ok().and_then(|matches| matches.subcommand_name().map(str::to_owned));
        // Where it stops at an option in front of the command, the first word is that.
        let first = || words.iter().skip(1).find(|word| !word.as_encoded_bytes().starts_with(b"-"));
        let is_exec = named.map_or_else(|| first().is_some_and(|word| word == "exec"), |name| name == "exec");
        Said { error, code: if is_exec { EXEC_FAILED } else { USAGE } }
    })
}

impl Command {
    /// The exit code for errors of vmctl's own, where that is not the error's: under `exec` every
    /// other code is the guest program's.
    pub fn own_error_code(&self) -> Option<u8> {
        matches!(self, Self::Exec(_)).then_some(EXEC_FAILED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_of_every_command_have_a_heading_of_their_own() {
        let mut command = Arguments::command();
        command.build();
        for subcommand in command.get_subcommands() {
            for argument in subcommand.get_arguments() {
                let heading = argument.is_global_set().then_some(GLOBAL);
                assert_eq!(argument.get_help_heading(), heading, "{} {argument}", subcommand.get_name());
            }
        }
    }

    #[test]
    fn a_host_that_is_named_is_not_the_one_that_is_called() {
        for verb in ["cordon", "drain", "uncordon", "fence"] {
            let words = ["vmctl", "--host", "unix:/a", "host", verb, "b"];
            let arguments = Arguments::try_parse_from(words).unwrap();
            let Command::Host(command) = arguments.command else { panic!("not host") };
            assert_eq!(arguments.host, "unix:/a");
            assert!(format!("{command:?}").contains("host: \"b\""), "{command:?}");
        }
    }

    #[test]
    fn vms_are_killed_by_name_by_family_or_by_ticket() {
        let uuid = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";
        let is_taken = |words: &str| Arguments::try_parse_from(words.split_whitespace()).is_ok();
        assert!(is_taken("vmctl kill a b") && is_taken(&format!("vmctl kill --ticket {uuid}")));
        assert!(is_taken("vmctl kill --family a") && is_taken(&format!("vmctl kill --family {uuid}")));
        let wrong = [
            "vmctl kill",
            "vmctl kill --ticket a",
            "vmctl kill a --family b",
            &format!("vmctl kill a --ticket {uuid}"),
            &format!("vmctl kill --family a --ticket {uuid}"),
        ];
        assert!(!wrong.into_iter().any(is_taken));
        assert!(is_taken(&format!("vmctl join {uuid} --data-dir d")) && !is_taken("vmctl join"));
    }

    /// The VM, the program with its arguments, whether it gets a terminal, and whether it gets
    /// input.
    fn exec(words: &str) -> (String, String, bool, bool) {
        let arguments = Arguments::try_parse_from(words.split_whitespace()).unwrap();
        let Command::Exec(exec) = arguments.command else { panic!("not exec") };
        (exec.name.clone(), exec.argv.join(" "), exec.tty, !exec.no_stdin)
    }

    #[test]
    fn exec_takes_a_program_with_and_without_dashes() {
        let of = |name: &str, argv: &str, tty, input| (name.to_owned(), argv.to_owned(), tty, input);
        for (words, wanted) in [
            ("vmctl exec a -- ls -o json", of("a", "ls -o json", false, true)),
            ("vmctl exec a ls -o json", of("a", "ls -o json", false, true)),
            ("vmctl exec a true", of("a", "true", false, true)),
            ("vmctl exec -it web sh", of("web", "sh", true, true)),
            ("vmctl exec -ti web sh -c exit", of("web", "sh -c exit", true, true)),
            ("vmctl exec -i web -- cat", of("web", "cat", false, true)),
            ("vmctl exec -n web cat", of("web", "cat", false, false)),
            // The last of both counts, as with other pairs.
            ("vmctl exec -i -n web cat", of("web", "cat", false, false)),
            ("vmctl exec -n -i web cat", of("web", "cat", false, true)),
            // Options of vmctl's may stand behind the name; whatever follows the program is the
            // program's.
            ("vmctl exec web -t sh -i -t --host x", of("web", "sh -i -t --host x", true, true)),
            ("vmctl exec web sh -- -x", of("web", "sh -- -x", false, true)),
            ("vmctl exec web -- -x", of("web", "-x", false, true)),
            ("vmctl --host unix:/s exec web env --help", of("web", "env --help", false, true)),
        ] {
            assert_eq!(exec(words), wanted, "{words}");
        }
    }

    #[test]
    fn wrong_usage_of_exec_is_125_and_of_all_else_2() {
        use std::os::unix::ffi::OsStringExt as _;
        let code = |words: &[&[u8]]| {
            parse(words.iter().map(|word| OsString::from_vec(word.to_vec()))).unwrap_err().code
        };
        for words in [
            &[&b"vmctl"[..], b"exec", b"--bogus", b"web", b"--", b"true"][..],
            &[b"vmctl", b"exec"],
            &[b"vmctl", b"exec", b"web"],
            &[b"vmctl", b"exec", b"web", b"--"],
            &[b"vmctl", b"exec", b"-e", b"x", b"web", b"true"],
            &[b"vmctl", b"exec", b"web", b"echo", b"a\xffb"],
            &[b"vmctl", b"exec", b"w\xff", b"true"],
            &[b"vmctl", b"exec", b"-w", b"/\xff", b"web", b"true"],
            &[b"vmctl", b"--host", b"\xff", b"exec", b"web", b"true"],
            &[b"vmctl", b"-o", b"xml", b"exec", b"web", b"true"],
            &[b"vmctl", b"--host=a", b"--bogus", b"exec", b"web", b"true"],
        ] {
            assert_eq!(code(words), 125, "{words:?}");
        }
        for words in [
            &[&b"vmctl"[..], b"--bogus"][..],
            &[b"vmctl", b"inspect", b"exec", b"--bogus"],
            &[b"vmctl", b"--host", b"exec", b"ls", b"--bogus"],
            &[b"vmctl", b"ls", b"a\xff"],
            &[b"vmctl"],
        ] {
            assert_eq!(code(words), 2, "{words:?}");
        }
        // Help that was asked for is no error.
        let said = parse(["vmctl", "exec", "--help"].map(OsString::from)).unwrap_err();
        assert!(!said.error.use_stderr());
    }

    #[test]
    fn a_word_that_is_no_utf_8_is_named_with_what_to_do() {
        use std::os::unix::ffi::OsStringExt as _;
        let said = |words: &[&[u8]]| {
            let words = words.iter().map(|word| OsString::from_vec(word.to_vec()));
            parse(words).unwrap_err().error.to_string()
        };
        let guest =
            "Give such bytes to the program on its standard input, or have a shell in the guest make them";
        for (words, name, what_to_do) in [
            (&[&b"vmctl"[..], b"exec", b"web", b"echo", b"a\xffb"][..], "[ARG]", guest),
            (&[b"vmctl", b"exec", b"-e", b"A=\xff", b"web", b"true"], "--env", guest),
            (&[b"vmctl", b"exec", b"-w", b"/\xff", b"web", b"true"], "--workdir", guest),
            (&[b"vmctl", b"exec", b"w\xff", b"true"], "<NAME>", "write it in UTF-8"),
            (&[b"vmctl", b"--host", b"\xff", b"ls"], "--host", "write it in UTF-8"),
        ] {
            let said = said(words);
            assert!(said.contains(name) && said.contains("not UTF-8") && said.contains(what_to_do), "{said}");
        }
    }
}
