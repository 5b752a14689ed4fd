//! The command's quick answers: right, and as cheap as README.md says.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::trace::trace;
use patina_abi::local::IDENTITY_FILE;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

const SYS_OPEN: u64 = 2;
const SYS_EXECVE: u64 = 59;

/// gc with an identity file as in a guest: in a mount namespace with its own /run.
fn gc_command(identity: Option<&str>, arguments: &str) -> Command {
    let file = identity.map_or(String::new(), |text| {
        format!("mkdir $(dirname {IDENTITY_FILE}) && printf '{text}' > {IDENTITY_FILE} &&")
    });
    let script = format!("mount -t tmpfs gc-test /run && {file} exec \"$0\" {arguments}");
    let mut command = Command::new("unshare");
    command.args(["-r", "-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_gc")]);
    command
}

fn gc(identity: Option<&str>, arguments: &str) -> Output {
    gc_command(identity, arguments).output().unwrap()
}

fn answer(identity: Option<&str>, arguments: &str) -> (Option<i32>, String) {
    let output = gc(identity, arguments);
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

const CLONE: &str = "vmid=12\\nip=100.64.0.13\\nprefix=20\\nhostname=vm\\n";
const MASTER: &str = "vmid=0\\nip=100.64.0.1\\n";

#[test]
fn the_identity_is_printed() {
    assert_eq!(answer(Some(CLONE), "vmid"), (Some(0), "12\n".into()));
    assert_eq!(answer(Some(CLONE), "my-ip"), (Some(0), "100.64.0.13\n".into()));
    assert_eq!(answer(Some(CLONE), "ismaster"), (Some(1), String::new()));
    assert_eq!(answer(Some(MASTER), "vmid"), (Some(0), "0\n".into()));
    assert_eq!(answer(Some(MASTER), "ismaster"), (Some(0), String::new()));
    // Keys are whole words at the start of a line.
    let odd = "xvmid=1\\nvmidx=2\\n\\nip\\nlonglongname=vmid=3\\nvmid=4\\n";
    assert_eq!(answer(Some(odd), "vmid"), (Some(0), "4\n".into()));
}

#[test]
fn without_an_identity_or_with_a_broken_one_it_is_enotconn() {
    for verb in ["vmid", "my-ip", "ismaster"] {
        for identity in [None, Some(""), Some("rubbish"), Some("vmi")] {
            let output = gc(identity, verb);
            assert_eq!(output.status.code(), Some(107), "{verb} {identity:?}");
            let words = String::from_utf8(output.stderr).unwrap();
            assert!(words.starts_with(&format!("gc: {verb}: the host has not told")), "{words}");
        }
    }
}

#[test]
fn other_verbs_go_the_long_way() {
    assert_eq!(answer(None, "version").0, Some(0));
    assert_eq!(answer(Some(CLONE), "vmid extra").0, Some(22));
    assert_eq!(answer(Some(CLONE), "ismasterx").0, Some(22));
    assert_eq!(answer(Some(CLONE), "''").0, Some(22));
    assert_eq!(answer(Some(CLONE), "").0, Some(22));
    assert_eq!(answer(None, "list").0, Some(107));
}

/// Runs a command that ends as gc, and counts what gc asks of the kernel. A debug build is linked
/// dynamically: its loader comes first and opens nothing with open(2), which is gc's own first
/// call.
fn count_syscalls(command: &mut Command) -> Vec<u64> {
    let mut calls = Vec::new();
    trace(command.stdout(Stdio::null()), |_, call| match call {
        SYS_EXECVE => calls.clear(),
        _ if call == SYS_OPEN || !calls.is_empty() => calls.push(call),
        _ => {}
    });
    calls
}

#[test]
fn an_answer_costs_four_system_calls() {
    const OPEN_READ_WRITE_EXIT: [u64; 4] = [SYS_OPEN, 0, 1, 231];
    for verb in ["vmid", "my-ip"] {
        assert_eq!(count_syscalls(&mut gc_command(Some(CLONE), verb)), OPEN_READ_WRITE_EXIT);
    }
    assert_eq!(count_syscalls(&mut gc_command(Some(CLONE), "ismaster")), [SYS_OPEN, 0, 231]);
}

/// Runs gc with an agent that hears one call and gives one answer; what it heard, and how gc ended.
fn with_agent(answer: &'static str, arguments: &str) -> (String, Output) {
    with_agent_and(answer, arguments, |command| command)
}

/// The same, with gc's command set up further.
fn with_agent_and(
    answer: &'static str,
    arguments: &str,
    set_up: impl FnOnce(&mut Command) -> &mut Command,
) -> (String, Output) {
    let directory = tempfile::tempdir().unwrap();
    let agent = UnixListener::bind(directory.path().join("agent.sock")).unwrap();
    let heard = std::thread::spawn(move || {
        let (stream, _) = agent.accept().unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (&stream).write_all(answer.as_bytes()).unwrap();
        line
    });
    let script = format!(
        "mkdir -p /run/gridcentric && mount --bind \"$1\" /run/gridcentric && exec \"$0\" {arguments}"
    );
    let script = format!("mount -t tmpfs gc-test /run && {script}");
    let mut command = Command::new("unshare");
    command.args(["-r", "-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_gc")]).arg(directory.path());
    let output = set_up(&mut command).output().unwrap();
    (heard.join().unwrap(), output)
}

fn said(output: &Output) -> (Option<i32>, &str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_clone_prints_its_vmid_and_an_error_is_the_exit_code() {
    let (heard, output) = with_agent("{\"ok\":{\"vmid\":12,\"clones\":[],\"failed\":[]}}\n", "clone 3");
    assert_eq!(heard, "{\"verb\":\"clone\",\"args\":{\"count\":3}}\n");
    assert_eq!(said(&output), (Some(0), "12\n", ""));
    let partly = "{\"ok\":{\"vmid\":0,\"clones\":[1],\"failed\":[[2,\"no memory\"]]}}\n";
    let (_, output) = with_agent(partly, "clone 2 --no-hold");
    let warning = "gc: clone: the clone with vmid 2 was not started: no memory\n";
    assert_eq!(said(&output), (Some(0), "0\n", warning));
    let refusal = "{\"error\":{\"code\":125,\"message\":\"pre-clone: exit code 1: database is busy\"}}\n";
    let (_, output) = with_agent(refusal, "clone 2");
    assert_eq!(said(&output), (Some(125), "", "gc: clone: pre-clone: exit code 1: database is busy\n"));
}

#[test]
fn tickets_are_lines_and_none_is_exit_16() {
    const TICKET: &str = r#"{"uuid":"u-1","status":"granted","cpus":8,"vms":4,"min_cpus_per_vm":2}"#;
    let ok: &'static str = format!("{{\"ok\":{TICKET}}}\n").leak();
    let (heard, output) = with_agent(ok, "rt 8 2 2 500");
    let args = r#"{"max_cpus":8,"min_cpus_per_vm":2,"min_vms":2,"timeout_ms":500}"#;
    assert_eq!(heard, format!("{{\"verb\":\"rt\",\"args\":{args}}}\n"));
    assert_eq!(said(&output), (Some(0), "ticket: u-1\n", ""));
    let busy = "{\"error\":{\"code\":16,\"message\":\"not enough CPUs\"}}\n";
    let (_, output) = with_agent(busy, "request-ticket 8 2 2 500");
    assert_eq!(said(&output), (Some(16), "", "gc: request-ticket: not enough CPUs\n"));
    const UUID: &str = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";
    let (heard, output) = with_agent(ok, &format!("ticket {UUID}"));
    assert_eq!(heard, format!("{{\"verb\":\"ticket\",\"args\":{{\"uuid\":\"{UUID}\"}}}}\n"));
    assert_eq!(said(&output), (Some(0), "ticket: u-1 granted 8 4 2\n", ""));
    let (_, output) = with_agent(ok, &format!("get-ticket {UUID} --json"));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()["vms"], 4);
    let list: &'static str = format!("{{\"ok\":{{\"tickets\":[{TICKET},{TICKET}]}}}}\n").leak();
    let (heard, output) = with_agent(list, "lt");
    assert_eq!(heard, "{\"verb\":\"lt\",\"args\":{\"from\":\"\"}}\n");
    assert_eq!(said(&output).1, "ticket: u-1 granted 8 4 2\n".repeat(2));
}

/// A pipe whose reader has ended.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

fn full() -> Stdio {
    std::fs::File::create("/dev/full").unwrap().into()
}

/// As after `gc list | head -1`: the same code, and nothing said, as for vmctl.
#[test]
fn a_standard_output_that_nobody_reads_is_141() {
    for verb in ["version", "help", "help list"] {
        let output = gc_command(Some(CLONE), verb).stdout(closed()).output().unwrap();
        assert_eq!(said(&output), (Some(141), "", ""), "{verb}: {}", output.status);
    }
    let list = r#"{"ok":{"members":[{"vmid":0,"ip":"100.64.0.1","state":"ready","host":"h"}]}}"#;
    let list: &'static str = format!("{list}\n").leak();
    let (_, output) = with_agent_and(list, "list", |command| command.stdout(closed()));
    assert_eq!(said(&output), (Some(141), "", ""), "{}", output.status);
}

/// Their answers come before the C library starts: the signal itself ends them, which a shell tells
/// as 141.
#[test]
fn quick_answers_that_nobody_reads_are_141_to_a_shell() {
    for verb in ["vmid", "my-ip"] {
        for shell in ["trap - PIPE", "trap '' PIPE"] {
            let identity = format!("mkdir $(dirname {IDENTITY_FILE}) && printf '{CLONE}' > {IDENTITY_FILE}");
            let script = format!(
                "mount -t tmpfs gc-test /run && {identity} && {shell}; \"$0\" {verb}; echo code $? >&2"
            );
            let mut command = Command::new("unshare");
            command.args(["-r", "-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_gc")]);
            let output = command.stdout(closed()).output().unwrap();
            assert_eq!(said(&output).2, "code 141\n", "{verb}, {shell}");
        }
    }
}

#[test]
fn an_error_that_nobody_reads_keeps_its_exit_code() {
    for stderr in [closed as fn() -> Stdio, full] {
        for (verb, code) in [("bogus", 22), ("", 22), ("list", 107), ("clone 0", 22)] {
            let output = gc_command(None, verb).stderr(stderr()).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{verb}: {}", output.status);
        }
        // The answer comes although the warning cannot.
        let partly = "{\"ok\":{\"vmid\":0,\"clones\":[1],\"failed\":[[2,\"no memory\"]]}}\n";
        let (_, output) = with_agent_and(partly, "clone 2", |command| command.stderr(stderr()));
        assert_eq!(said(&output), (Some(0), "0\n", ""), "{}", output.status);
        let output = gc_command(None, "version").stdout(full()).stderr(stderr()).output().unwrap();
        assert_eq!(output.status.code(), Some(28), "{}", output.status);
    }
}
