//! A verb's arguments: words and options, in any order.

use super::misuse;
use patina_abi::link::CallError;
use std::fmt::Display;
use std::str::FromStr;

/// A UUID's length in text.
const UUID_BYTES: usize = 36;
/// Where its dashes are.
const UUID_DASHES: [usize; 4] = [8, 13, 18, 23];
/// Longest time that is waited for, milliseconds: a day.
pub(super) const TIMEOUT_MAX_MS: u64 = 24 * 3600 * 1000;

/// What was given to a verb.
#[derive(Debug)]
pub(super) struct Words<'a> {
    words: Vec<&'a str>,
    options: Vec<(&'static str, &'a str)>,
}

impl<'a> Words<'a> {
    /// Takes options without a value (`flags`) and with one (`--data FILE` or `--data=FILE`) out of
    /// the arguments.
    pub(super) fn parse(
        arguments: &'a [String],
        flags: &[&'static str],
        valued: &[&'static str],
    ) -> Result<Self, CallError> {
        let mut parsed = Self { words: Vec::new(), options: Vec::new() };
        let mut rest = arguments.iter().map(String::as_str);
        while let Some(argument) = rest.next() {
            if !is_option(argument) {
                parsed.words.push(argument);
                continue;
            }
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (argument, None),
            };
            let find = |names: &[&'static str]| names.iter().copied().find(|known| *known == name);
            let option = match (find(flags), find(valued)) {
                (Some(flag), _) if inline.is_none() => (flag, ""),
                (_, Some(option)) => {
                    let value = inline.or_else(|| rest.next());
                    (option, value.ok_or_else(|| misuse(format!("{option} wants a value")))?)
                }
                _ => return Err(misuse(format!("unknown option {argument:?}"))),
            };
            if parsed.value(option.0).is_some() {
                return Err(misuse(format!("{} is given twice", option.0)));
            }
            parsed.options.push(option);
        }
        Ok(parsed)
    }

    /// Takes nothing but words, none at all.
    pub(super) fn none(arguments: &'a [String]) -> Result<(), CallError> {
        Self::parse(arguments, &[], &[])?.at_most(0).map(drop)
    }

    /// Takes `--json` only: whether it is there.
    pub(super) fn json_only(arguments: &'a [String]) -> Result<bool, CallError> {
        let words = Self::parse(arguments, &["--json"], &[])?;
        words.at_most(0)?;
        Ok(words.has("--json"))
    }

    /// The words, if they are not more than that.
    pub(super) fn at_most(&self, count: usize) -> Result<&[&'a str], CallError> {
        match self.words.get(count) {
            None => Ok(&self.words),
            Some(extra) => Err(misuse(format!("unexpected argument {extra:?}"))),
        }
    }

    pub(super) fn has(&self, flag: &str) -> bool {
        self.value(flag).is_some()
    }

    pub(super) fn value(&self, option: &str) -> Option<&'a str> {
        self.options.iter().find(|(name, _)| *name == option).map(|(_, value)| *value)
    }
}

/// A lone dash is a file's name, and what looks like a negative number is a wrong number.
fn is_option(argument: &str) -> bool {
    argument.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && !looks_like_a_number(rest))
}

/// Whether a word was meant as a number, right or wrong.
pub(super) fn looks_like_a_number(word: &str) -> bool {
    word.trim_start_matches(['-', '+']).starts_with(|first: char| first.is_ascii_digit()) && !is_uuid(word)
}

fn is_uuid(word: &str) -> bool {
    let fits = |(at, byte): (usize, u8)| {
        if UUID_DASHES.contains(&at) { byte == b'-' } else { byte.is_ascii_hexdigit() }
    };
    word.len() == UUID_BYTES && word.bytes().enumerate().all(fits)
}

/// A number within limits.
pub(super) fn number<T>(name: &str, word: &str, least: T, most: T) -> Result<T, CallError>
where
    T: FromStr + PartialOrd + Display,
{
    let parsed = word.parse().ok().filter(|number| (&least..=&most).contains(&number));
    parsed.ok_or_else(|| misuse(format!("{name} is a number from {least} to {most}, not {word:?}")))
}

/// A time to wait. None at all is said by leaving it out.
pub(super) fn timeout_ms(word: &str) -> Result<u64, CallError> {
    number("TIMEOUT_MS", word, 1, TIMEOUT_MAX_MS)
}

/// A ticket's UUID, as the host writes it.
pub(super) fn ticket(word: &str) -> Result<String, CallError> {
    if is_uuid(word) {
        return Ok(word.to_ascii_lowercase());
    }
    let example = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";
    Err(misuse(format!("{word:?} is no ticket: a ticket is a UUID like {example}, `gc lt` lists them")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_anywhere_with_their_values() {
        for line in ["a --json --data - b", "--data=- a b --json", "a b --data - --json"] {
            let arguments = owned(line);
            let words = Words::parse(&arguments, &["--json"], &["--data"]).unwrap();
            assert_eq!(words.at_most(2).unwrap(), ["a", "b"], "{line}");
            assert_eq!((words.has("--json"), words.value("--data")), (true, Some("-")), "{line}");
            assert_eq!(words.at_most(1).unwrap_err().message, "unexpected argument \"b\"");
        }
        let wrong = [
            ("--jsom", "unknown option \"--jsom\""),
            ("-j", "unknown option \"-j\""),
            ("--json=yes", "unknown option \"--json=yes\""),
            ("--data", "--data wants a value"),
            ("--data a --data=b", "--data is given twice"),
            ("--json --json", "--json is given twice"),
        ];
        for (line, message) in wrong {
            let error = Words::parse(&owned(line), &["--json"], &["--data"]).unwrap_err();
            assert_eq!((error.code, error.message.as_str()), (22, message));
        }
    }

    #[test]
    fn numbers_have_limits_and_a_wrong_one_is_shown() {
        assert_eq!(number("N", "7", 1, 9), Ok(7));
        for word in ["0", "-1", "10", "99999999999999999999", "x", "", "1.5", " 1"] {
            let error = number::<u32>("N", word, 1, 9).unwrap_err();
            assert_eq!(error.message, format!("N is a number from 1 to 9, not {word:?}"));
        }
        let arguments = owned("-1 -x");
        let error = Words::parse(&arguments, &[], &[]).unwrap_err();
        assert_eq!(error.message, "unknown option \"-x\"", "-1 is a wrong number, not an option");
    }

    #[test]
    fn a_uuid_is_a_ticket_and_all_else_is_not() {
        let uuid = "0F6D8F3E-6f0b-4b8e-9a53-2d1f3a3c1b11";
        assert_eq!(ticket(uuid).unwrap(), uuid.to_lowercase());
        assert!(!looks_like_a_number(uuid), "although it begins with a digit");
        let close = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b1";
        for word in
            ["", "7", close, "0f6d8f3e_6f0b-4b8e-9a53-2d1f3a3c1b11", "gf6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11"]
        {
            assert_eq!(ticket(word).unwrap_err().code, 22, "{word}");
        }
    }
}
