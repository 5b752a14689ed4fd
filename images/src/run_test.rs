use super::*;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script);
    command
}

#[test]
fn lines_of_both_outputs_are_seen_and_logged() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut lines = Vec::new();
    logged(shell("echo one; echo two >&2"), &log, &mut |line| lines.push(line.to_owned())).unwrap();
    assert_eq!(lines, ["one", "two"]);
    assert!(std::fs::read_to_string(&log).unwrap().ends_with("one\ntwo\n"));
}

#[test]
fn a_failure_shows_the_tail_and_names_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let script = "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; exit 3";
    let error = logged(shell(script), &log, &mut |_| {}).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("line 99") && text.contains("line 70") && !text.contains("line 69"), "{text}");
    assert!(text.contains("exit status: 3") && text.contains(log.to_str().unwrap()), "{text}");
    assert!(std::fs::read_to_string(&log).unwrap().contains("line 0\n"));
}

#[test]
fn a_missing_program_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let command = Command::new("no-such-program");
    let error = logged(command, &directory.path().join("log"), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, RunError::Start { program, .. } if program == "no-such-program"));
}

#[test]
fn output_is_returned_and_a_refusal_carries_what_was_said() {
    assert_eq!(output(shell("echo yes")).unwrap(), "yes\n");
    let error = output(shell("echo no such thing >&2; exit 1")).unwrap_err();
    assert_eq!(error.said(), "no such thing");
}
