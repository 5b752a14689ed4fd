//! Standard output and standard error that take nothing: exit codes stay as `vmctl --help`
//! documents them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs::File,
    process::{Command, Output, Stdio},
};

const NOBODY: &str = "unix:/nonexistent/vmmd.sock";

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// A pipe whose reader has ended.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

fn vmctl(arguments: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
    command.env("PATINA_HOST", NOBODY).args(arguments).stdin(Stdio::null());
    command.stdout(stdout).stderr(stderr).output().unwrap()
}

#[test]
fn an_error_that_cannot_be_printed_keeps_its_exit_code() {
    for (arguments, code) in [
        (&["inspect", "nosuch"][..], 6),
        (&["kill", "a", "b"], 6),
        (&["exec", "nosuch", "--", "true"], 125),
        (&["--host", "nonsense", "ls"], 2),
        (&["ls", "--bogus"], 2),
        (&["exec", "--bogus", "web", "--", "true"], 125),
    ] {
        for stderr in [full(), closed()] {
            let output = vmctl(arguments, Stdio::piped(), stderr);
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", output.status);
        }
    }
}

#[test]
fn a_full_standard_output_is_an_error_and_a_closed_one_is_141() {
    for arguments in
        [&["completion", "bash"][..], &["--help"], &["--version"], &["help", "exec"], &["doctor"]]
    {
        let output = vmctl(arguments, full(), Stdio::piped());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("write to standard output") && said.contains("No space left"), "{said}");
        let output = vmctl(arguments, closed(), Stdio::piped());
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), &b""[..]), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_of_exec_and_an_environment_that_is_no_utf_8_are_told_by_their_codes() {
    use std::os::unix::ffi::OsStrExt as _;
    let odd = std::ffi::OsStr::from_bytes(b"unix:/\xff");
    for (arguments, code) in
        [(&["exec", "web", "true"][..], 125), (&["exec", "-it", "web", "sh"], 125), (&["ls"], 2)]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        let output = command.env("PATINA_HOST", odd).args(arguments).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("--host") && said.contains("not UTF-8"), "{said}");
    }
}
