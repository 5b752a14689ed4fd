//! Miri, on the modules without system calls that it can run.
//!
//! It comes with nightly toolchains only, and not with all of them. Where none fits, it is skipped
//! with the reason.

use crate::{
    run::{RunError, output, run, run_within, succeeds, workspace},
    steps::{Steps, with_causes},
};
use std::{process::Command, time::Duration};

/// The modules: their crates, and the beginnings of their tests' names.
const PURE: [(&str, &str); 3] = [("scheduler", "core::"), ("vmmd", "plan::"), ("vmm", "memory::extents::")];
/// The oldest compiler that builds the workspace.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");
/// How long Miri may take to build its standard library. It does so once for each toolchain, and
/// may first have to download the sources.
const SET_UP: Duration = Duration::from_mins(10);

/// Runs the tests of the modules under Miri.
pub fn check(steps: &Steps) -> Result<(), RunError> {
    check_with(steps, &nightly)
}

/// The same, with a toolchain that tests may replace.
fn check_with(steps: &Steps, toolchain: &dyn Fn(&[&str]) -> Command) -> Result<(), RunError> {
    if let Some(reason) = unfit(steps, toolchain) {
        steps.note(&format!("skipped: Miri ({reason})"));
        return Ok(());
    }
    for (package, tests) in PURE {
        let what = format!("run {package}'s {tests} under Miri");
        let mut command = toolchain(&["cargo", "miri", "test", "-p", package, "--lib", "--", tests]);
        // Property tests read where they are, and a case takes seconds.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "2");
        steps.step(&what, || run(&mut command))?;
    }
    Ok(())
}

/// Why Miri cannot run here.
fn unfit(steps: &Steps, toolchain: &dyn Fn(&[&str]) -> Command) -> Option<String> {
    if !succeeds(&mut toolchain(&["cargo", "miri", "--version"])) {
        let install = "install it with `rustup component add --toolchain nightly miri`";
        return Some(format!("`rustup run nightly cargo miri --version` fails; {install}"));
    }
    let version = match output(&mut toolchain(&["rustc", "--version"])) {
        Ok(version) => version.trim().to_owned(),
        Err(error) => return Some(with_causes(&error)),
    };
    // `rustc 1.97.0-nightly (e50aa6fba 2026-05-19)`
    let number = version.split_ascii_whitespace().nth(1).and_then(release);
    if number.is_none_or(|number| Some(number) < release(OLDEST)) {
        return Some(format!(
            "the nightly toolchain is {version}, and Rust {OLDEST} is needed; `rustup update nightly`"
        ));
    }
    let set_up = || run_within(&mut toolchain(&["cargo", "miri", "setup"]), SET_UP);
    steps.step("set up Miri", set_up).err().map(|error| {
        let install = "it needs `rustup component add --toolchain nightly rust-src`";
        format!("{}; {install}", with_causes(&error))
    })
}

/// The first two numbers of a Rust release.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A program of the nightly toolchain, in the workspace's root.
fn nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.current_dir(workspace()).args(["run", "nightly"]).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Stands for a toolchain: `script` answers to the arguments `$*`. Returns the outcome, and
    /// what the toolchain was asked.
    fn asked(script: &str) -> (Result<(), RunError>, Vec<String>) {
        let folder = tempfile::tempdir().expect("a folder");
        let calls = folder.path().join("calls");
        let toolchain = |arguments: &[&str]| {
            let mut command = Command::new("sh");
            let script = format!("echo \"$*\" >>\"$0\"; case \"$*\" in {script} esac");
            command.arg("-c").arg(script).arg(&calls).args(arguments);
            command
        };
        let outcome = check_with(&Steps::new(), &toolchain);
        let calls = fs::read_to_string(&calls).expect("it was asked");
        (outcome, calls.lines().map(str::to_owned).collect())
    }

    const VERSION: &str = "rustc*) echo 'rustc 1.999.0-nightly (abc 2030-01-01)';;";

    #[test]
    fn miri_runs_each_module_where_it_can() {
        let (outcome, calls) = asked(VERSION);
        assert!(outcome.is_ok());
        let tests = |package: &str, tests: &str| format!("cargo miri test -p {package} --lib -- {tests}");
        let expected = PURE.map(|(package, name)| tests(package, name));
        assert_eq!(calls[..3], ["cargo miri --version", "rustc --version", "cargo miri setup"]);
        assert_eq!(calls[3..], expected);
    }

    #[test]
    fn a_toolchain_that_cannot_run_miri_is_skipped() {
        let old = "rustc*) echo 'rustc 1.94.0-nightly (abc 2026-01-01)';;";
        for (script, last) in [
            ("*--version) exit 1;;".to_owned(), "cargo miri --version"),
            ("rustc*) exit 1;;".to_owned(), "rustc --version"),
            (old.to_owned(), "rustc --version"),
            ("rustc*) echo nonsense;;".to_owned(), "rustc --version"),
            // Without rust-src, or without the network that gets it.
            (format!("{VERSION} *setup) exit 1;;"), "cargo miri setup"),
        ] {
            let (outcome, calls) = asked(&script);
            assert!(outcome.is_ok(), "{script}: {outcome:?}");
            assert_eq!(calls.last().map(String::as_str), Some(last), "{script}");
        }
    }

    #[test]
    fn a_test_that_fails_under_miri_is_no_reason_to_skip() {
        let (outcome, calls) = asked(&format!("{VERSION} *test*) exit 1;;"));
        assert!(outcome.is_err() && calls.len() == 4, "{calls:?}");
    }

    #[test]
    fn releases_are_compared_by_their_numbers() {
        assert_eq!(release("1.97.0-nightly"), Some((1, 97)));
        assert!(release("1.100.0") > release("1.95") && release("1.95.0-nightly") == release("1.95"));
        assert_eq!(release("nightly"), None);
        assert!(release(OLDEST).is_some(), "{OLDEST}");
    }
}
