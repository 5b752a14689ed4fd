//! The output of `gc help` about verbs.

use super::verb::{COMMON_EXITS, Verb};
use std::fmt::{self, Write as _};

/// Where the verbs' descriptions begin.
const COLUMN: usize = 20;

/// The command's own description, with all its verbs.
pub(super) fn usage(verbs: &[Verb]) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    if write_usage(&mut text, verbs).is_err() {
        text.push_str("gc help VERB\n");
    }
    text
}

fn write_usage(text: &mut String, verbs: &[Verb]) -> fmt::Result {
    writeln!(text, "usage: gc VERB [ARGUMENT...]\n")?;
    for verb in verbs {
        let names = verb.names();
        let mut gap = 0;
        for (index, arguments) in verb.uses.iter().enumerate() {
            let left = format!("{} {arguments}", if index == 0 { &names } else { verb.name });
            gap = COLUMN.saturating_sub(left.len());
            write!(text, "{}  {left}", if index == 0 { "" } else { "\n" })?;
        }
        if gap == 0 || verb.uses.len() > 1 {
            write!(text, "\n  {:COLUMN$}", "")?;
        }
        let summary = verb.summary.replace('\n', &format!("\n{:COLUMN$}   ", ""));
        writeln!(text, "{:gap$} {summary}", "")?;
    }
    writeln!(text, "\nexit:")?;
    write_exits(text, COMMON_EXITS)?;
    writeln!(text, "  otherwise an errno number; `gc help VERB` has those of a verb, and an example")
}

fn write_exits(text: &mut String, exits: &[(&str, &str)]) -> fmt::Result {
    exits.iter().try_for_each(|(code, meaning)| writeln!(text, "  {code:<4} {meaning}"))
}

/// All about a verb.
pub(super) fn of(verb: &Verb) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    if write_verb(&mut text, verb).is_err() {
        text.push_str(verb.summary);
    }
    text
}

fn write_verb(text: &mut String, verb: &Verb) -> fmt::Result {
    for (index, arguments) in verb.uses.iter().enumerate() {
        let head = if index == 0 { "usage:" } else { "      " };
        writeln!(text, "{}", format!("{head} gc {} {arguments}", verb.name).trim_end())?;
    }
    if !verb.long.is_empty() {
        writeln!(text, "   or: gc {} ...", verb.long)?;
    }
    writeln!(text, "\n{}", sentence(verb.summary))?;
    if !verb.details.is_empty() {
        writeln!(text, "\n{}", verb.details)?;
    }
    writeln!(text, "\nexit:")?;
    write_exits(text, &verb.all_exits())?;
    writeln!(text, "\nexample:\n  {}", verb.example)
}

/// With a capital and a full stop.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
}
