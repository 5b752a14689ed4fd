//! What there is to know about a verb of the command.

use super::Output;
use patina_abi::link::CallError;

/// A verb of the command.
pub(super) struct Verb {
    pub name: &'static str,
    /// Its other name, or nothing.
    pub long: &'static str,
    /// What may follow its name, a line a way.
    pub uses: &'static [&'static str],
    /// For the list of verbs.
    pub summary: &'static str,
    /// All else that there is to know, in paragraphs.
    pub details: &'static str,
    /// Exit codes of its own, beside [`COMMON_EXITS`] and instead of the same ones there. A test
    /// holds them against [`patina_abi::codes`].
    pub exits: &'static [(&'static str, &'static str)],
    /// A line of shell.
    pub example: &'static str,
    pub run: fn(&[String]) -> Result<Output, CallError>,
}

/// Exit codes that every verb may have.
pub(super) const COMMON_EXITS: &[(&str, &str)] = &[
    ("0", "done"),
    ("5", "the host failed"),
    ("11", "not now: too much is under way, or the host's scheduler does not answer; try again later"),
    ("22", "wrong use: an argument is missing, unknown or no number that makes sense"),
    ("71", "the host's answer is not understood: image and host are of different versions"),
    ("107", "gc-agent or the host does not answer, or the link to the host broke before it answered"),
    ("111", "the host's vmmd does not run; try again when it does"),
    ("141", "standard output was closed; what the verb does is done"),
];

impl Verb {
    /// Its exit codes, in order: its own, and those that every verb may have.
    pub(super) fn all_exits(&self) -> Vec<(&'static str, &'static str)> {
        let is_own = |code| self.exits.iter().any(|(own, _)| *own == code);
        let common = COMMON_EXITS.iter().filter(|(code, _)| !is_own(*code));
        let mut exits: Vec<_> = self.exits.iter().chain(common).copied().collect();
        exits.sort_by_key(|(code, _)| code.parse::<u8>().unwrap_or(u8::MAX));
        exits
    }

    /// Its name, or both.
    pub(super) fn names(&self) -> String {
        if self.long.is_empty() { self.name.to_owned() } else { format!("{}, {}", self.name, self.long) }
    }
}
