//! Names of VMs: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`. A name is also the name of a folder and the
//! guest's host name, so it never starts with a dot and never contains a slash.

use std::fmt;

/// Longest name, bytes.
pub const NAME_MAX_BYTES: usize = 63;

/// A name that keeps the rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmName(String);

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("a name has at least one character")]
    Empty,
    /// It is too long.
    #[error("a name has at most {NAME_MAX_BYTES} characters, this one has {0}")]
    Long(usize),
    /// It begins with something else than a letter or a digit.
    #[error("a name begins with a letter or a digit, not with {0:?}")]
    First(char),
    /// A character is not allowed.
    #[error("a name has only letters, digits, '_', '.' and '-', not {0:?}")]
    Character(char),
}

impl VmName {
    /// Checks a name.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let first = text.chars().next().ok_or(NameError::Empty)?;
        if !first.is_ascii_alphanumeric() {
            return Err(NameError::First(first));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if let Some(wrong) = text.chars().find(|c| !allowed(*c)) {
            return Err(NameError::Character(wrong));
        }
        if text.len() > NAME_MAX_BYTES {
            return Err(NameError::Long(text.len()));
        }
        Ok(Self(text.to_owned()))
    }

    /// A name out of `random`, for a VM whose maker gave none: `calm-heron-3f`.
    #[must_use]
    pub fn generate(random: u64) -> Self {
        let [a, b, c, ..] = random.to_le_bytes();
        let adjective = ADJECTIVES[usize::from(a) % ADJECTIVES.len()];
        let noun = NOUNS[usize::from(b) % NOUNS.len()];
        Self(format!("{adjective}-{noun}-{c:02x}"))
    }

    /// The name of a clone: its family's master's, and its vmid: `web.3`. A long master's name is
    /// cut to leave room.
    #[must_use]
    pub fn of_clone(master: &str, vmid: u32) -> String {
        let suffix = format!(".{vmid}");
        let room = NAME_MAX_BYTES.saturating_sub(suffix.len());
        let stem: String = master.chars().take(room).collect();
        stem + &suffix
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const ADJECTIVES: [&str; 16] = [
    "amber", "bold", "brisk", "calm", "clear", "deep", "eager", "fair", "keen", "light", "quick", "quiet",
    "rapid", "steady", "warm", "wise",
];
const NOUNS: [&str; 16] = [
    "alder", "birch", "brook", "cedar", "cliff", "delta", "ember", "fjord", "grove", "heron", "lark",
    "maple", "otter", "reef", "swift", "willow",
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_by_the_rules_are_taken() {
        for good in ["a", "7", "web-1", "A.b_c-d", &"x".repeat(63)] {
            assert_eq!(VmName::parse(good).map(|n| n.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        assert_eq!(VmName::parse(""), Err(NameError::Empty));
        assert_eq!(VmName::parse(".."), Err(NameError::First('.')));
        assert_eq!(VmName::parse("-rf"), Err(NameError::First('-')));
        assert_eq!(VmName::parse("a/b"), Err(NameError::Character('/')));
        assert_eq!(VmName::parse("a\0"), Err(NameError::Character('\0')));
        assert_eq!(VmName::parse("né"), Err(NameError::Character('é')));
        assert_eq!(VmName::parse(&"x".repeat(64)), Err(NameError::Long(64)));
    }

    proptest! {
        #[test]
        fn names_of_clones_keep_the_rules_and_differ(master in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}", vmid in 1u32..4093) {
            let name = VmName::of_clone(&master, vmid);
            prop_assert!(VmName::parse(&name).is_ok(), "{}", name);
            let suffix = format!(".{vmid}");
            prop_assert!(name.ends_with(&suffix));
            prop_assert_ne!(name, VmName::of_clone(&master, vmid + 1));
        }

        #[test]
        fn generated_names_keep_the_rules(random: u64) {
            let name = VmName::generate(random);
            prop_assert_eq!(VmName::parse(name.as_str()), Ok(name));
        }
    }
}
