//! Child processes: cargo above all.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

/// Why a child process did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not be started.
    #[error("run {command}")]
    Start {
        /// Its command line.
        command: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended with a code that is not 0, or by a signal.
    #[error("{command}: {status}")]
    Status {
        /// Its command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
}

/// A cargo command in the workspace's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(arguments);
    command
}

/// Runs `command` to its end. What it prints goes to standard error: standard output is for results.
pub fn run(command: &mut Command) -> Result<(), RunError> {
    let status = command.stdin(Stdio::null()).stdout(io::stderr()).status();
    let shown = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(RunError::Status { command: shown(), status }),
        Err(source) => Err(RunError::Start { command: shown(), source }),
    }
}

/// Whether `cargo NAME` is there.
pub fn has_subcommand(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| {
        env::split_paths(&path).any(|folder| folder.join(format!("cargo-{name}")).is_file())
    })
}

/// The root of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => env::current_dir().unwrap_or_default().join(folder),
        None => workspace().join("target"),
    }
}
