//! The command line.

use crate::{
    commands::{clone, console, events, exec, inspect, join, kill, logs, rm, run, sync, ticket, top, wait},
    output::Format,
};
use clap::{Parser, Subcommand};
use clap_complete::Shell;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the call failed
  2    wrong usage, or a value that vmmd refuses
  3    no VM of that name, no such ticket
  4    the name or a published port is in use
  5    the VM or the ticket is not in the state that the command needs, or belongs to another family
  6    vmmd, the scheduler, the VM's process or its agent does not answer
  7    there is no room, or a limit is reached
  124  not within the time given with --timeout
  125  exec: vmctl itself failed; any other code is the guest program's own
  141  standard output was closed";

/// Above the options that every command takes.
const GLOBAL: &str = "Global options";

/// Runs, looks at and ends virtual machines of a Patina host.
#[derive(Debug, Parser)]
#[command(name = "vmctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Arguments {
    /// Where vmmd listens: unix:PATH or tcp:ADDRESS:PORT.
    #[arg(long, global = true, help_heading = GLOBAL, env = "PATINA_HOST", default_value = crate::client::DEFAULT_HOST, value_name = "ADDRESS")]
    pub host: String,
    /// Where the scheduler listens: unix:PATH, tcp:ADDRESS:PORT or http://ADDRESS:PORT [default: where vmmd says].
    #[arg(long, global = true, help_heading = GLOBAL, env = "PATINA_SCHEDULER", value_name = "ADDRESS")]
    pub scheduler: Option<String>,
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
    /// List the VMs of the host, clones under the VM that they were made of.
    #[command(visible_alias = "list")]
    Ls,
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
    /// Reserve clones before they are made: ask for tickets, look at them, give them back.
    #[command(subcommand)]
    Ticket(ticket::Command),
    /// List the hosts that the scheduler knows, and what of them is reserved.
    Hosts,
    /// Wait at a ticket's barrier, for the VM that cloned, until all its clones that live have come too (gc sync).
    Sync(sync::Arguments),
    /// Wait until all clones of a ticket have ended, and print how (gc join).
    Join(join::Arguments),
    /// Print what happened on the host, and what happens.
    Events(events::Arguments),
    /// Show what the running VMs take of the host, live.
    Top(top::Arguments),
    /// Forget ended VMs and delete their files.
    Rm(rm::Arguments),
    /// Wait until a VM is ready or has ended.
    Wait(wait::Arguments),
    /// Check what this machine has of what Patina needs, and say how to get the rest.
    Doctor,
    /// Print a completion script for a shell.
    Completion {
        /// Which shell.
        shell: Shell,
    },
    /// Print the versions of vmctl and of vmmd.
    Version,
}

impl Command {
    /// The exit code for errors of vmctl's own, where that is not the error's: under `exec` every other
    /// code is the guest program's.
    pub fn own_error_code(&self) -> Option<u8> {
        matches!(self, Self::Exec(_)).then_some(125)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

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

    #[test]
    fn what_follows_the_dashes_belongs_to_the_guest() {
        let arguments = Arguments::parse_from(["vmctl", "exec", "a", "--", "ls", "-o", "json"]);
        let Command::Exec(exec) = arguments.command else { panic!("not exec") };
        assert_eq!(
            (exec.name.as_str(), exec.argv.as_slice()),
            ("a", ["ls", "-o", "json"].map(str::to_owned).as_slice())
        );
    }
}
