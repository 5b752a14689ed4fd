//! The last round of each ticket's barrier (`sync`) that this VM has an answer for. The agent sends
//! it to the host with each call. So a call whose answer was lost can be retried: if its round is
//! over, the host answers at once.
//!
//! The number belongs to the VM's memory: it lives as long as the VM, whatever is restarted on its
//! host. A clone inherits it, but takes part in none of its parent's barriers. A file beside the
//! identity keeps it for an agent that is restarted.

use patina_abi::link::{Answer, Identity};
use patina_abi::local::Request;
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::sys::input::append;

/// Most tickets; of more, the one that was asked for longest ago is forgotten.
pub const TICKETS_MAX: usize = 1024;
/// The file's name, beside the identity's.
const FILE: &str = "rounds";
/// Length of a ticket's number.
const TICKET_BYTES: usize = 36;
/// A line of the file: ticket, space, round with leading zeros, newline.
const LINE_BYTES: usize = TICKET_BYTES + 1 + 20 + 1;

/// A ticket whose VMs have met.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    ticket: String,
    round: u64,
    /// When it was looked for last.
    used: u64,
}

/// The last meetings of this VM.
#[derive(Debug)]
pub struct Rounds {
    path: PathBuf,
    file: Option<OwnedFd>,
    /// By their lines in the file.
    known: Vec<Known>,
    so_far: u64,
    /// The tickets at whose barriers programs wait.
    waiting: BTreeMap<u64, String>,
}

impl Rounds {
    /// Those that an agent before this one has left, if there was one.
    pub fn beside(identity: &Path) -> Self {
        let path = identity.with_file_name(FILE);
        let known = read(&path);
        Self { path, file: None, known, so_far: 0, waiting: BTreeMap::new() }
    }

    /// A program's call goes to the host: a `sync` says which meeting was the last, unless its
    /// program says so itself.
    pub fn ask(&mut self, client: u64, call: &mut Request, identity: Option<&Identity>) {
        if call.verb != "sync" {
            return;
        }
        let named = call.args.get("ticket").map(serde_json::Value::as_str);
        let own = || identity.map(|identity| identity.ticket.as_str());
        // What is no ticket the host refuses.
        let Some(ticket) = named.unwrap_or_else(own).filter(|ticket| is_ticket(ticket)) else { return };
        let ticket = ticket.to_ascii_lowercase();
        if call.args.is_null() {
            call.args = serde_json::Value::Object(serde_json::Map::new());
        }
        let Some(args) = call.args.as_object_mut() else { return };
        args.entry("after_round").or_insert_with(|| self.round(&ticket).into());
        self.waiting.insert(client, ticket);
    }

    /// A program that waited has its answer.
    pub fn answered(&mut self, client: u64, answer: &Answer) {
        let Some(ticket) = self.waiting.remove(&client) else { return };
        if let Answer::Ok(met) = answer
            && let Some(round) = met.get("round").and_then(serde_json::Value::as_u64)
        {
            self.note(&ticket, round);
        }
    }

    /// A program has gone: what it is answered nobody has heard.
    pub fn forget(&mut self, client: u64) {
        self.waiting.remove(&client);
    }

    fn round(&mut self, ticket: &str) -> u64 {
        self.so_far += 1;
        let Some(known) = self.known.iter_mut().find(|known| known.ticket == ticket) else { return 0 };
        known.used = self.so_far;
        known.round
    }

    fn note(&mut self, ticket: &str, round: u64) {
        self.so_far += 1;
        let line = self.line_of(ticket);
        let Some(known) = self.known.get_mut(line) else { return };
        if known.ticket != ticket {
            *known = Known { ticket: ticket.to_owned(), round: 0, used: 0 };
        }
        (known.round, known.used) = (known.round.max(round), self.so_far);
        let text = format!("{ticket} {:020}\n", known.round);
        self.write(line, &text);
    }

    /// A ticket's line, which may be another one's so far.
    fn line_of(&mut self, ticket: &str) -> usize {
        if let Some(line) = self.known.iter().position(|known| known.ticket == ticket) {
            return line;
        }
        if self.known.len() < TICKETS_MAX {
            self.known.push(Known { ticket: ticket.to_owned(), round: 0, used: 0 });
            return self.known.len() - 1;
        }
        let oldest = self.known.iter().enumerate().min_by_key(|(_, known)| known.used);
        oldest.map_or(0, |(line, _)| line)
    }

    /// Where there is no room for the file this agent knows it all the same.
    fn write(&mut self, line: usize, text: &str) {
        if self.file.is_none() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            self.file = rustix::fs::open(&self.path, flags, Mode::from_raw_mode(0o644)).ok();
        }
        if let Some(file) = &self.file
            && rustix::io::pwrite(file, text.as_bytes(), (line * LINE_BYTES) as u64).is_err()
        {
            self.file = None;
        }
    }
}

fn is_ticket(text: &str) -> bool {
    text.len() == TICKET_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn read(path: &Path) -> Vec<Known> {
    let Ok(file) = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
        // As a rule: this machine has just begun.
        return Vec::new();
    };
    let mut text = Vec::new();
    if append(&file, &mut text, TICKETS_MAX * LINE_BYTES).is_err() {
        return Vec::new();
    }
    let known = |line: &[u8]| {
        let (ticket, round) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
        let round = round.parse().ok().filter(|_| is_ticket(ticket))?;
        Some(Known { ticket: ticket.to_owned(), round, used: 0 })
    };
    // A line that is not whole was its last one.
    text.chunks(LINE_BYTES).map_while(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const TICKET: &str = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";

    fn asked(rounds: &mut Rounds, client: u64, args: Value) -> Value {
        let mut call = Request { verb: "sync".into(), args };
        rounds.ask(client, &mut call, None);
        call.args
    }

    fn met(round: u64) -> Answer {
        Answer::Ok(json!({"round": round, "arrived": 3}))
    }

    #[test]
    fn each_call_says_which_meeting_was_the_last_that_a_program_heard_of() {
        let folder = tempfile::tempdir().unwrap();
        let identity = folder.path().join("identity");
        let mut rounds = Rounds::beside(&identity);
        let args = json!({"ticket": TICKET});
        let after = |round: u64| json!({"ticket": TICKET, "after_round": round});
        assert_eq!(asked(&mut rounds, 1, args.clone()), after(0));
        // Its program has gone before the answer; the next one's was an error.
        rounds.forget(1);
        rounds.answered(1, &met(1));
        assert_eq!(asked(&mut rounds, 2, args.clone()), after(0));
        rounds.answered(2, &super::super::local::refuse(11, "try again"));
        assert_eq!(asked(&mut rounds, 3, args.clone()), after(0));
        rounds.answered(3, &met(1));
        let upper = json!({"ticket": TICKET.to_uppercase()});
        assert_eq!(asked(&mut rounds, 4, upper)["after_round"], 1);
        // A program that keeps count itself is let.
        assert_eq!(asked(&mut rounds, 5, after(7)), after(7));
        rounds.answered(5, &met(8));
        rounds.answered(4, &met(2));
        assert_eq!(asked(&mut rounds, 6, args.clone()), after(8));
        // An agent that is started again.
        assert_eq!(asked(&mut Rounds::beside(&identity), 1, args), after(8));
        for wrong in [json!({"ticket": 7}), json!({"ticket": "x"}), json!([1]), json!({})] {
            assert_eq!(asked(&mut rounds, 7, wrong.clone()), wrong, "the host refuses it");
        }
    }

    #[test]
    fn of_many_tickets_the_one_that_was_asked_for_longest_ago_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let identity = folder.path().join("identity");
        let mut rounds = Rounds::beside(&identity);
        let ticket = |n: usize| format!("00000000-0000-0000-0000-{n:012}");
        for n in 0..=TICKETS_MAX {
            asked(&mut rounds, 1, json!({"ticket": ticket(n)}));
            rounds.answered(1, &met(n as u64 + 1));
            asked(&mut rounds, 2, json!({"ticket": ticket(0)}));
        }
        let mut again = Rounds::beside(&identity);
        for rounds in [&mut rounds, &mut again] {
            assert_eq!(rounds.known.len(), TICKETS_MAX);
            let mut round = |n| rounds.round(&ticket(n));
            assert_eq!([round(0), round(1), round(2), round(TICKETS_MAX)], [1, 0, 3, TICKETS_MAX as u64 + 1]);
        }
    }
}
