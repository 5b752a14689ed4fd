//! The man page, made from the [table](super::table). A test compares `man/gc.1` with it. It is not
//! part of the program.

use super::help::sentence;
use super::table::VERBS;
use super::verb::COMMON_EXITS;
use std::fmt::Write as _;
use std::path::Path;

const HEAD: &str = r#".\" Made of the table of verbs in guest-agent/src/cli/table.rs: see man.rs beside it.
.TH GC 1 "" Patina "User Commands"
.SH NAME
gc \- clone this virtual machine while it runs, and work with its clones
.SH SYNOPSIS
.B gc
.I VERB
.RI [ ARGUMENT ...]
.SH DESCRIPTION
A program in a virtual machine of Patina calls
.B gc clone
and is copied with its whole machine, as
.BR fork (2)
copies a process: memory, disk, programs that run.
Each clone has a number (vmid) and an address of its own in the family's private network. The master has number 0.
.PP
Resources can be asked for before: a ticket is a reservation of virtual machines. Those of a ticket meet with
.BR "gc sync" ,
hand results to the one that cloned with
.BR "gc join" ,
and are ended with
.BR "gc kill" .
.SH VERBS
"#;

const TAIL: &str = r#".SH FILES
.TP
.I /run/gridcentric/agent.sock
where gc-agent takes calls, in JSON lines
.TP
.I /run/gridcentric/identity
who this virtual machine is, as KEY=VALUE lines
.TP
.I /etc/gridcentric/pre\-clone
run before a clone, if it may be executed; one that fails stops the clone
.TP
.I /etc/gridcentric/post\-clone
run afterwards in every virtual machine, with GC_VMID, GC_IP, GC_ROLE and GC_TICKET in its environment
"#;

/// The example, a file that tests run.
const MAP_REDUCE: &str = include_str!("../../../examples/guest/map_reduce.sh");

fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
    // A dot at a line's beginning would be a request.
    text.lines()
        .map(|line| if line.starts_with('.') { format!("\\&{line}") } else { line.to_owned() })
        .collect::<Vec<_>>()
        .join("\n")
}

fn exits(page: &mut String, codes: &[(&str, &str)]) {
    for (code, meaning) in codes {
        writeln!(page, ".TP\n.B {code}\n{}", escape(meaning)).unwrap();
    }
}

fn man_page() -> String {
    let mut page = HEAD.to_owned();
    for verb in VERBS {
        let names = [verb.name, verb.long].into_iter().filter(|name| !name.is_empty());
        let lines =
            names.flat_map(|name| verb.uses.iter().map(move |arguments| format!("gc {name} {arguments}")));
        for (index, line) in lines.enumerate() {
            let request = if index == 0 { ".TP" } else { ".TQ" };
            writeln!(page, "{request}\n.B {}", escape(line.trim_end())).unwrap();
        }
        writeln!(page, "{}", escape(&sentence(verb.summary))).unwrap();
        for paragraph in verb.details.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
            writeln!(page, ".IP\n{}", escape(paragraph)).unwrap();
        }
        if !verb.exits.is_empty() {
            page.push_str(".RS\n");
            exits(&mut page, verb.exits);
            page.push_str(".RE\n");
        }
        writeln!(page, ".IP\n.EX\n{}\n.EE", escape(verb.example)).unwrap();
    }
    page.push_str(".SH EXIT STATUS\n");
    exits(&mut page, COMMON_EXITS);
    page.push_str(".PP\nOtherwise a number of\n.BR errno (3);\nthose that a verb has for reasons of its own are with the verb.\n");
    page.push_str(TAIL);
    writeln!(page, ".SH EXAMPLE\nMap, then reduce:\n.PP\n.EX\n{}\n.EE", escape(MAP_REDUCE.trim_end()))
        .unwrap();
    page + ".SH SEE ALSO\n.BR fork (2)\n"
}

/// With PATINA_WRITE_MAN set the file is written instead.
#[test]
fn the_man_page_is_made_of_the_table() {
    let page = man_page();
    for verb in VERBS {
        for name in [verb.name, verb.long].into_iter().filter(|name| !name.is_empty()) {
            let line = format!(".B gc {}", escape(name));
            assert!(page.lines().any(|l| l == line || l.starts_with(&format!("{line} "))), "{name}");
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/gc.1");
    if std::env::var_os("PATINA_WRITE_MAN").is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page, "{} is out of date: run this test with PATINA_WRITE_MAN=1", file.display());
}
