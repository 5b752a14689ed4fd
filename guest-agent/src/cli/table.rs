//! All verbs of the command. The help texts and the man page are made from this table.

use super::verb::Verb;
use super::words::Words;
use super::{Output, clone, family, help, join, tickets, verbs};
use patina_abi::link::CallError;

const NO_TICKET: (&str, &str) = ("2", "there is no such ticket");
const FOREIGN_TICKET: (&str, &str) = ("13", "the ticket belongs to another family");
const TOO_MANY_TICKETS: (&str, &str) = ("122", "the family has as many tickets as it may have, 1,024");
const NO_CLONES: &str = "the ticket was released, expired or fenced before anything was cloned with it";

const JOIN_USES: &[&str] =
    &["[noreport] [--status N] [--data FILE]", "TICKET [TIMEOUT_MS] [--data-dir DIR] [--json]"];

pub(super) const VERBS: &[Verb] = &[
    Verb {
        name: "vmid",
        long: "",
        uses: &[""],
        summary: "print this VM's number; 0 is the master",
        details: "A clone's number is 1 or greater, and is never given twice in a family.",
        exits: &[],
        example: "echo I am $(gc vmid)",
        run: verbs::vmid,
    },
    Verb {
        name: "my-ip",
        long: "",
        uses: &[""],
        summary: "print this VM's address",
        details: "It is the address on the family's own network, where all VMs of the family reach each other.",
        exits: &[],
        example: "python3 -m http.server --bind $(gc my-ip)",
        run: verbs::my_ip,
    },
    Verb {
        name: "ismaster",
        long: "",
        uses: &[""],
        summary: "exit 0 on the master, 1 on a clone",
        details: "It prints nothing.",
        exits: &[("1", "this is a clone")],
        example: "gc ismaster; IS_MASTER=$?",
        run: verbs::ismaster,
    },
    Verb {
        name: "list",
        long: "",
        uses: &["[--ticket TICKET] [--json]"],
        summary: "print a line for each VM of the family, or each clone of a ticket: vmid, ip, state, host",
        details: "They are in the order of their vmids, on all hosts. The state is booting, ready or ended, or unreachable on\n\
            another host that does not answer. --json has more: of each clone the ticket that it was made under, and\n\
            the VM that it was cloned from (parent_vmid).",
        exits: &[],
        example: "gc list | awk '$3 == \"ready\" {print $2}'",
        run: verbs::list,
    },
    Verb {
        name: "rt",
        long: "request-ticket",
        uses: &["MAXCPUS MINVMS MINCPUSPERVM TIMEOUT_MS [--request-id ID] [--json]"],
        summary: "reserve VMs and print `ticket: UUID`; exit 16 when they are not to be had in time",
        details: "The ticket is for as many VMs as there is room for, at least MINVMS, with MAXCPUS CPUs in all at most.\n\
            Each is as large as this VM, which must have MINCPUSPERVM CPUs.\n\
            It waits TIMEOUT_MS milliseconds at most, 0: not at all. Whoever ends it gives its place in the queue up.\n\n\
            The same ID (1 to 64 characters) gives the same ticket: so a request can be made again by who has not\n\
            heard the answer. A ticket that is not used in time is taken back.",
        exits: &[
            ("16", "the resources are not to be had in time; nothing is printed, nothing is reserved"),
            ("22", "wrong use, or so much that there is no waiting for it: more than all hosts have"),
            TOO_MANY_TICKETS,
        ],
        example: "TICKET=$(gc rt 8 2 1 10000 | awk '{print $2}'); [ -n \"$TICKET\" ] || exit 1",
        run: tickets::request,
    },
    Verb {
        name: "lt",
        long: "list-tickets",
        uses: &["[--json]"],
        summary: "print a line for each ticket of the family: `ticket: UUID STATUS CPUS VMS MINCPUSPERVM`",
        details: "The status is granted, used, released (given back, or all its clones have ended), expired (not used in\n\
            time) or fenced (its host went away).",
        exits: &[],
        example: "TICKET=$(gc lt | grep ticket | awk '{print $2}' | head -n 1)",
        run: tickets::list,
    },
    Verb {
        name: "ticket",
        long: "get-ticket",
        uses: &["[UUID] [--json]"],
        summary: "print that line for one ticket",
        details: "Without a UUID it is the one that this clone was made under; the master was made under none and names one.",
        exits: &[NO_TICKET, FOREIGN_TICKET],
        example: "gc ticket \"$TICKET\" | awk '{print $3}'",
        run: tickets::one,
    },
    Verb {
        name: "clone",
        long: "",
        uses: &["N|TICKET [--no-hold] [--json]"],
        summary: "clone this VM, N times or as the ticket says, and print as fork does: 0 in the VM that was\n\
            cloned, its own number in each clone",
        details: "All of the machine is copied, this command included, so that it returns in each of the VMs. Other programs\n\
            are held until a clone knows who it is; --no-hold lets them run meanwhile, for a moment with the identity\n\
            of the VM that was cloned.\n\n\
            /etc/gridcentric/pre-clone is run before, and post-clone afterwards in every VM. A ticket is used once.\n\
            Clones that could not be started are told on standard error; that is no failure where others were.\n\n\
            --json prints vmid, and in the VM that was cloned the vmids of the clones and which of them failed, with the reason.\n\n\
            A program has in each clone what it had before: numbers that it drew, addresses that it knows, connections. What to do\n\
            about that is in the project's docs/clones.md.",
        exits: &[
            NO_TICKET,
            FOREIGN_TICKET,
            ("16", "there is no room now, or the host clones this VM just now; try again later"),
            ("18", "the ticket has no VMs for this host, or too few, or another VM has cloned with it"),
            ("22", "wrong use, or more clones than this host has room for when it is empty"),
            ("28", "the host keeps no more VMs, or the family has had all its vmids"),
            ("35", "the call comes from a pre-clone or post-clone hook, for whose end it would wait"),
            ("110", "a process could not be held; try again, or use --no-hold"),
            ("116", "the ticket was used, released, or expired, or its host went away; request another one"),
            ("121", "the other hosts of the ticket did not make the clones; the message says why"),
            TOO_MANY_TICKETS,
            ("125", "the pre-clone hook failed; its output is in the message"),
        ],
        example: "VMID=$(gc clone \"$TICKET\") || exit",
        run: clone::clone,
    },
    Verb {
        name: "sync",
        long: "",
        uses: &["[TICKET] [TIMEOUT_MS] [--json]"],
        summary: "wait until the VM that cloned and all clones of the ticket that live have come here too",
        details: "A UUID is a ticket, a number is a time. Without a ticket it is the one that this clone was made under; the\n\
            master was made under none and names it. Without a time it waits for ever.\n\n\
            Clones that end are not waited for. It can be used again and again, also after a time-out; then this VM\n\
            has not been here. After any other failure too it may be called again: a meeting that took place
            meanwhile with this VM ends the call at once. --json prints which meeting it was, and how many VMs met.",
        exits: &[
            NO_TICKET,
            ("3", "this VM is neither a clone of the ticket that lives nor the one that cloned with it"),
            ("10", "nothing was cloned with the ticket yet"),
            FOREIGN_TICKET,
            ("62", "not all came in time"),
            ("116", NO_CLONES),
        ],
        example: "if gc ismaster; then gc sync \"$TICKET\" 60000; else gc sync; fi",
        run: family::sync,
    },
    Verb {
        name: "join",
        long: "",
        uses: JOIN_USES,
        summary: "in a clone: leave a result and end. In the VM that cloned: wait for the clones, print a line for\n\
            each: vmid, how it ended, status",
        details: "In a clone it does not return: the VM ends. N is the status, 0 without it, and FILE (`-`: standard input) is\n\
            data of at most 1 MiB. With noreport nothing is left. Where the host refuses, the VM goes on.\n\n\
            With a TICKET it waits until all clones of it have ended, TIMEOUT_MS milliseconds at most. A clone has\n\
            joined, ended (powered off, crashed, not started), was killed, or is lost (its host went away). The status\n\
            is 0 for one that has not joined, and `-` for one that joined with noreport. With --data-dir the data of\n\
            clone VMID is in DIR/VMID; a clone that left none has no file.",
        exits: &[
            ("2", "there is no such ticket; there is no such FILE"),
            ("3", "in a clone: its ticket does not count it among its clones any more"),
            ("10", "nothing was cloned with the ticket yet, or another VM has cloned with it"),
            FOREIGN_TICKET,
            ("27", "FILE has more than 1 MiB, or all clones of the ticket leave more than 256 MiB"),
            ("62", "not all clones have ended in time"),
            ("116", NO_CLONES),
        ],
        example: "if gc ismaster; then gc join \"$TICKET\" --data-dir out; else ./work | gc join --data -; fi",
        run: join::join,
    },
    Verb {
        name: "kill",
        long: "",
        uses: &["VMID... [--json]", "--ticket TICKET [--json]"],
        summary: "end clones of this family, at most 1,024, or all clones of a ticket",
        details: "It returns when they have ended; those that had ended before are no failure. --json prints which have.",
        exits: &[NO_TICKET, ("3", "there is no such clone"), FOREIGN_TICKET],
        example: "gc kill --ticket \"$TICKET\"",
        run: family::kill,
    },
    Verb {
        name: "help",
        long: "",
        uses: &["[VERB]"],
        summary: "print this, or all about one verb; so does `gc VERB --help`",
        details: "",
        exits: &[],
        example: "gc help clone",
        run: help,
    },
    Verb {
        name: "version",
        long: "",
        uses: &[""],
        summary: "print the version of gc and of its ABI",
        details: "",
        exits: &[],
        example: "gc version",
        run: verbs::version,
    },
];

fn help(arguments: &[String]) -> Result<Output, CallError> {
    match Words::parse(arguments, &[], &[])?.at_most(1)? {
        [] => Ok(verbs::print(help::usage(VERBS))),
        [name, ..] => Ok(verbs::print(help::of(find(name)?))),
    }
}

/// A command without a verb.
pub(super) fn no_verb() -> CallError {
    super::misuse(help::usage(VERBS).trim_end())
}

/// The verb of that name.
pub(super) fn find(name: &str) -> Result<&'static Verb, CallError> {
    let verb = VERBS.iter().find(|verb| verb.name == name || (verb.long == name && !name.is_empty()));
    verb.ok_or_else(|| super::misuse(format!("unknown verb {name:?}; `gc help` lists them")))
}
