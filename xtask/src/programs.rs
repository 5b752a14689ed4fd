//! Builds tests, and finds the programs that cargo makes of them.

use crate::run::{RunError, cargo, output};
use std::path::PathBuf;

/// Why there is no program of some tests.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// cargo failed.
    #[error("build tests")]
    Build(#[from] RunError),
    /// cargo did not say where it put the program.
    #[error("build tests: cargo names no program of {0}")]
    Missing(&'static str),
}

/// What cargo says of the tests that it has built, a JSON document a line.
#[derive(Debug)]
pub struct Built(String);

impl Built {
    /// Builds the tests that `chosen` names. They are built as those of the whole workspace:
    /// chosen by `-p`, a crate would be built again, with fewer features.
    ///
    /// # Errors
    /// They cannot be built.
    pub fn new(chosen: &[&str]) -> Result<Self, ProgramError> {
        let arguments = ["test", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"];
        Ok(Self(output(cargo(&arguments).args(chosen))?))
    }

    /// The program of tests of the target `name` of a kind.
    ///
    /// # Errors
    /// There is none.
    pub fn program(&self, kind: &str, name: &'static str) -> Result<PathBuf, ProgramError> {
        let found = self.0.lines().find_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            let target = &message["target"];
            let is_wanted = message["reason"] == "compiler-artifact"
                && target["name"] == name
                && target["kind"][0] == kind
                && message["profile"]["test"] == true;
            if !is_wanted { None } else { message["executable"].as_str().map(PathBuf::from) }
        });
        found.ok_or(ProgramError::Missing(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"vmm","kind":["bin"]},"profile":{"test":false},"executable":"/t/vmm"}
not json
{"reason":"compiler-artifact","target":{"name":"vmm","kind":["lib"]},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"name":"vmm","kind":["lib"]},"profile":{"test":true},"executable":"/t/vmm-1"}
{"reason":"compiler-artifact","target":{"name":"e2e","kind":["test"]},"profile":{"test":true},"executable":"/t/e2e-2"}"#;
        let built = Built(messages.to_owned());
        assert_eq!(built.program("lib", "vmm").expect("it is there"), PathBuf::from("/t/vmm-1"));
        assert_eq!(built.program("test", "e2e").expect("it is there"), PathBuf::from("/t/e2e-2"));
        assert!(matches!(built.program("test", "walk"), Err(ProgramError::Missing("walk"))));
    }
}
