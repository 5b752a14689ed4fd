//! The arguments of a call, as JSON text. A process that passes the call on neither parses nor
//! rewrites the text. So the arguments arrive unchanged, and their length is the same on every
//! line.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt};

/// A call's arguments. They are valid JSON and otherwise unchecked. The default is `null`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Args(Box<RawValue>);

impl Args {
    /// Writes a value as arguments.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn of(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self)
    }

    /// Reads them.
    ///
    /// # Errors
    /// They are not a `T`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.text())
    }

    /// The arguments' JSON text, as it was sent.
    #[must_use]
    pub fn text(&self) -> &str {
        self.0.get()
    }

    /// Whether there are no arguments.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.text() == "null"
    }
}

impl Default for Args {
    fn default() -> Self {
        Self(RawValue::NULL.to_owned())
    }
}

impl PartialEq for Args {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl fmt::Debug for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl From<serde_json::Value> for Args {
    fn from(value: serde_json::Value) -> Self {
        // A value can always be written.
        Self::of(&value).unwrap_or_default()
    }
}

/// A line whose kind determines how the rest is parsed. serde's own tagged enums parse everything
/// first to find the kind. They would refuse lines for data that need not be parsed yet, such as a
/// number that is too large or a hundred brackets in a call's arguments.
#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow)]
    t: Cow<'a, str>,
}

/// The kind, `t`, of a line.
///
/// # Errors
/// It is not JSON, or has no kind.
pub fn kind_of(line: &str) -> Result<Cow<'_, str>, serde_json::Error> {
    serde_json::from_str::<Kind<'_>>(line).map(|line| line.t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_passed_on_as_they_were_said() {
        for text in [
            "null",
            "{ \"a\" : 1e15 }",
            "[1e999,\"\\ud800\"]",
            &format!("{}1{}", "[".repeat(500), "]".repeat(500)),
        ] {
            let args: Args = serde_json::from_str(text).expect("JSON");
            assert_eq!(serde_json::to_string(&args).expect("JSON"), text);
        }
        assert!(Args::default().is_null());
        assert_eq!(Args::from(serde_json::json!([1])).read::<Vec<u32>>().ok(), Some(vec![1]));
        assert!(serde_json::from_str::<Args>("{").is_err());
    }
}
