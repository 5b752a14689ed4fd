//! Exec sessions with real programs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Fixture, start, wait_for_end, watch_process};
use patina_abi::exec::{Exit, FrameType, PAYLOAD_MAX_BYTES, SESSIONS_MAX, Start, header};
use patina_abi::link::{Answer, CallError, FromHost};
use std::io::{ErrorKind, Write};

fn code(code: i32) -> Exit {
    Exit { code: Some(code), ..Exit::default() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn output_errors_and_exit_code_come_back() {
    let fixture = Fixture::new();
    let outcome = fixture.start(&["sh", "-c", "echo out; echo err >&2; exit 7"]).finish();
    assert_eq!((text(&outcome.stdout), text(&outcome.stderr)), ("out\n".into(), "err\n".into()));
    assert_eq!(outcome.exit, code(7));
}

#[test]
fn megabytes_stream_both_ways_at_once() {
    let fixture = Fixture::new();
    let mut exec = fixture.start(&["cat"]);
    let sent: Vec<u8> = (0..8_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = common::Exec { stream: exec.stream.try_clone().unwrap() };
    let copy = sent.clone();
    let thread = std::thread::spawn(move || {
        for chunk in copy.chunks(PAYLOAD_MAX_BYTES) {
            writer.send(FrameType::Stdin, chunk);
        }
        writer.send(FrameType::Stdin, b"");
    });
    let outcome = exec.finish();
    thread.join().unwrap();
    assert!(outcome.stdout == sent, "{} bytes came back of {}", outcome.stdout.len(), sent.len());
    assert_eq!(outcome.exit, code(0));
}

#[test]
fn the_host_chooses_environment_and_directory() {
    let fixture = Fixture::new();
    let mut exec = fixture.exec();
    exec.start(&Start {
        env: vec!["GREETING=hello there".into()],
        cwd: "/usr".into(),
        ..start(&["sh", "-c", "echo $GREETING; pwd"])
    });
    assert_eq!(text(&exec.finish().stdout), "hello there\n/usr\n");
}

#[test]
fn what_cannot_be_started_is_said_with_a_shells_exit_code() {
    let fixture = Fixture::new();
    for (argv, code, words) in [
        (&["no-such-program"][..], 127, "exec no-such-program: not found"),
        (&["/etc/passwd"][..], 126, "exec /etc/passwd: Permission denied (os error 13)"),
        (&[][..], 126, "exec: 0 arguments given, 1 to 1024 are allowed"),
    ] {
        let exit = fixture.start(argv).finish().exit;
        assert_eq!((exit.code, exit.error.as_deref()), (Some(code), Some(words)));
    }
    let mut exec = fixture.exec();
    exec.start(&Start { cwd: "/no/such".into(), ..start(&["true"]) });
    assert!(exec.finish().exit.error.unwrap().starts_with("exec: working directory /no/such: "));
}

#[test]
fn what_is_not_the_protocol_ends_the_session_with_a_word() {
    let fixture = Fixture::new();
    let frames: [(&[u8], &str); 5] = [
        (&[2, 1, 0, 0, 0, b'x'], "a frame of type Stdin has no place here"),
        (&[16, 0, 0, 0, 0], "a frame of type Stdout has no place here"),
        (&[99, 0, 0, 0, 0], "frame type 99 is unknown"),
        (&[1, 1, 0, 1, 0], "frame of 65537 bytes is longer than 65536"),
        (&[1, 2, 0, 0, 0, b'{', b'}'], "the first frame is no request"),
    ];
    for (bytes, words) in frames {
        let mut exec = fixture.exec();
        exec.stream.write_all(bytes).unwrap();
        let error = exec.finish().exit.error.unwrap();
        assert!(error.contains(words), "{error}");
    }
    // A program that runs does not outlive it.
    let mut exec = fixture.start(&["sh", "-c", "echo $$; exec sleep 1000"]);
    let process = watch_process(&exec.read_until("\n"));
    exec.send(FrameType::Signal, &[200]);
    assert!(exec.finish().exit.error.unwrap().contains("no signal"));
    wait_for_end(&process);
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let fixture = Fixture::new();
    let mut exec = fixture.start(&["sh", "-c", "sleep 1000 & echo $!; wait"]);
    let child = watch_process(&exec.read_until("\n"));
    exec.send(FrameType::Signal, &[15]);
    assert_eq!(exec.finish().exit, Exit { signal: Some(15), ..Exit::default() });
    wait_for_end(&child);
}

#[test]
fn a_host_that_closes_kills_the_whole_group() {
    let fixture = Fixture::new();
    let mut exec = fixture.start(&["sh", "-c", "trap '' TERM HUP; sleep 1000 & echo $! $$; wait"]);
    let numbers = exec.read_until("\n");
    let processes: Vec<_> = numbers.split_whitespace().map(watch_process).collect();
    assert_eq!(processes.len(), 2);
    drop(exec);
    processes.iter().for_each(wait_for_end);
}

#[test]
fn a_background_process_that_keeps_the_pipe_does_not_keep_the_session() {
    let fixture = Fixture::new();
    let outcome = fixture.start(&["sh", "-c", "sleep 1000 & echo $!; exit 5"]).finish();
    assert_eq!(outcome.exit, code(5));
    // It lives on, as behind any shell.
    let number = text(&outcome.stdout);
    let process = watch_process(&number);
    rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).unwrap();
    wait_for_end(&process);
    // One that writes without end does not keep it either, and ends itself when nobody reads.
    let outcome = fixture.start(&["sh", "-c", "yes & echo $! >&2; exit 6"]).finish();
    assert_eq!(outcome.exit, code(6));
    assert!(!text(&outcome.stderr).is_empty());
}

#[test]
fn all_output_of_a_program_that_ended_is_sent_before_exit() {
    let fixture = Fixture::new();
    for _ in 0..20 {
        let outcome = fixture.start(&["sh", "-c", "head -c 60000 /dev/zero; echo end >&2"]).finish();
        assert_eq!((outcome.stdout.len(), text(&outcome.stderr).as_str()), (60_000, "end\n"));
    }
}

#[test]
fn a_host_that_does_not_read_stops_the_program_and_nothing_else() {
    let fixture = Fixture::new();
    let mark = fixture.path("mark");
    let script = format!("head -c 50000000 /dev/zero; touch {}", mark.display());
    let mut unread = fixture.start(&["sh", "-c", &script]);
    for _ in 0..20 {
        assert_eq!(fixture.start(&["true"]).finish().exit, code(0));
    }
    assert!(!mark.exists(), "50 MB went where nobody reads");
    assert_eq!(unread.finish().stdout.len(), 50_000_000);
    assert!(mark.exists());
}

#[test]
fn a_program_that_does_not_read_stops_the_host_and_nothing_else() {
    let fixture = Fixture::new();
    let mut exec = fixture.start(&["sleep", "1000"]);
    exec.stream.set_nonblocking(true).unwrap();
    let frame = [&[2, 0, 16, 0, 0][..], &[0; 4096]].concat();
    let mut sent_bytes = 0;
    loop {
        match exec.stream.write(&frame[sent_bytes % frame.len()..]) {
            Ok(count) => sent_bytes += count,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                // What is full now may be full only until the agent has run once more.
                if fixture.start(&["true"]).finish().exit == code(0) && sent_bytes > 100_000 {
                    break;
                }
            }
        }
        assert!(sent_bytes < 10_000_000, "the agent takes input without end");
    }
}

#[test]
fn input_for_a_program_that_does_not_want_it_is_dropped() {
    let fixture = Fixture::new();
    let script = "exec <&-; trap 'exit 4' USR1; echo closed; while :; do :; done";
    let mut exec = fixture.start(&["sh", "-c", script]);
    exec.read_until("closed\n");
    for _ in 0..100 {
        exec.send(FrameType::Stdin, &[0; 4096]);
    }
    exec.send(FrameType::Stdin, b"");
    // Frames are taken in order: the signal is there when the input was dropped.
    exec.send(FrameType::Signal, &[10]);
    assert_eq!(exec.finish().exit, code(4));
}

#[test]
fn a_terminal_is_one() {
    let fixture = Fixture::new();
    let mut exec = fixture.exec();
    let script = "tty; stty size; echo to-tty > /dev/tty; read line; echo got $line; stty size; exit 3";
    exec.start(&Start { tty: Some((33, 77)), ..start(&["sh", "-c", script]) });
    let text = exec.read_until("to-tty\r\n");
    assert!(text.contains("/dev/pts/") && text.contains("33 77\r\n"), "{text}");
    exec.send(FrameType::Window, &[44, 0, 99, 0]);
    exec.send(FrameType::Stdin, b"hello\n");
    let outcome = exec.finish();
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert!(text.contains("got hello\r\n") && text.ends_with("44 99\r\n"), "{text}");
    assert_eq!(outcome.exit, code(3));
}

#[test]
fn a_terminals_keys_are_signals_and_its_end_is_an_end() {
    let fixture = Fixture::new();
    let mut exec = fixture.exec();
    exec.start(&Start { tty: Some((24, 80)), ..start(&["sh", "-c", "echo go; exec sleep 1000"]) });
    exec.read_until("go\r\n");
    exec.send(FrameType::Stdin, b"\x03");
    assert_eq!(exec.finish().exit, Exit { signal: Some(2), ..Exit::default() });

    let mut exec = fixture.exec();
    exec.start(&Start { tty: Some((24, 80)), ..start(&["cat"]) });
    exec.send(FrameType::Stdin, b"line\n");
    exec.read_until("line\r\nline\r\n");
    exec.send(FrameType::Stdin, b"");
    assert_eq!(exec.finish().exit, code(0));
}

/// What a program on a terminal prints, echo included, when it is given `input` and then its end.
fn typed(argv: &[&str], input: &[u8]) -> (String, Exit) {
    let fixture = Fixture::new();
    let mut exec = fixture.exec();
    exec.start(&Start { tty: Some((24, 80)), ..start(argv) });
    for chunk in input.chunks(PAYLOAD_MAX_BYTES) {
        exec.send(FrameType::Stdin, chunk);
    }
    exec.send(FrameType::Stdin, b"");
    let outcome = exec.finish();
    (text(&outcome.stdout), outcome.exit)
}

#[test]
fn a_terminals_input_ends_within_a_line_too() {
    assert_eq!(typed(&["cat"], b"abc"), ("abcabc".into(), code(0)));
    assert_eq!(typed(&["cat"], b"abc\n"), ("abc\r\nabc\r\n".into(), code(0)));
    assert_eq!(typed(&["cat"], b""), (String::new(), code(0)));
    // Two lines, of which the last is open: all of it comes back.
    let (text, exit) = typed(&["sh", "-c", "stty -echo; cat"], b"one\ntwo");
    assert!(text.ends_with("one\r\ntwo") && exit == code(0), "{text:?} {exit:?}");
}

#[test]
fn keys_in_a_terminals_input_are_keys() {
    // ^D hands over what was typed of the line; ^C is a signal.
    let (text, exit) = typed(&["sh", "-c", "stty -echo; cat"], b"a\x04b");
    assert!(text.ends_with("ab") && exit == code(0), "{text:?} {exit:?}");
    assert_eq!(typed(&["cat"], b"a\x03").1, Exit { signal: Some(2), ..Exit::default() });
}

#[test]
fn whoever_reads_behind_the_end_of_a_terminals_input_is_at_the_end_again() {
    let (text, exit) = typed(&["sh", "-i"], b"cat\nhello\n");
    // What is typed may be echoed before the shell's prompt or behind it.
    assert!(text.matches("hello").count() == 2 && exit == code(0), "{text:?} {exit:?}");
}

#[test]
fn a_terminal_whose_program_has_changed_its_keys_ends_too() {
    let fixture = Fixture::new();
    for (settings, program) in [("eof ^B", "cat"), ("raw -echo", "head -c 1 | od -An -tu1")] {
        let mut exec = fixture.exec();
        let script = format!("stty {settings}; echo go; {program}");
        exec.start(&Start { tty: Some((24, 80)), ..start(&["sh", "-c", &script]) });
        exec.read_until("go");
        exec.send(FrameType::Stdin, b"");
        let outcome = exec.finish();
        assert_eq!(outcome.exit, code(0), "{settings}");
        assert!(settings.starts_with("eof") || text(&outcome.stdout).contains('4'), "{outcome:?}");
    }
}

#[test]
fn a_megabyte_of_lines_goes_through_a_terminal() {
    let lines: String = (0..20_000).map(|number| format!("{number:050}\n")).collect();
    let (text, exit) = typed(&["sh", "-c", "stty -echo; wc -lc"], lines.as_bytes());
    let counts: Vec<&str> = text.split_whitespace().collect();
    assert!(counts.ends_with(&["20000", "1020000"]) && exit == code(0), "{text:?} {exit:?}");
}

#[test]
fn one_session_too_many_is_told() {
    let fixture = Fixture::new();
    let mut sessions: Vec<_> = (0..SESSIONS_MAX)
        .map(|_| {
            let mut exec = fixture.start(&["sh", "-c", "echo $$; exec sleep 1000"]);
            let process = watch_process(&exec.read_until("\n"));
            (exec, process)
        })
        .collect();
    let exit = fixture.exec().finish().exit;
    assert_eq!(exit.error.as_deref(), Some("exec: 32 programs run already; wait for one to end"));
    let (exec, process) = sessions.pop().unwrap();
    drop(exec);
    wait_for_end(&process);
    // The agent learns of the end as the test does; it may be a moment behind.
    let served = std::iter::repeat_with(|| fixture.exec()).find_map(|mut exec| {
        let json = serde_json::to_vec(&start(&["true"])).unwrap();
        let head = header(FrameType::Start, u32::try_from(json.len()).unwrap());
        // A session that is refused may be closed before this is written.
        let sent = exec.stream.write_all(&[&head[..], &json].concat());
        let exit = exec.finish().exit;
        assert!(sent.is_ok() || exit.error.is_some());
        exit.error.is_none().then_some(exit)
    });
    assert_eq!(served, Some(code(0)));
    for (exec, process) in sessions {
        drop(exec);
        wait_for_end(&process);
    }
}

/// Writes to its output once this file is there, and says in another that it has.
const WRITES_LATER: &str = "while ! [ -e go ]; do sleep 0.02; done; \
    i=0; while [ $i -lt 3000 ]; do echo a line that nobody reads; i=$((i + 1)); done; echo $? > wrote";

fn wait_for_file(path: &std::path::Path) {
    let since = std::time::Instant::now();
    while !path.exists() {
        assert!(since.elapsed() < common::PATIENCE, "{} does not come", path.display());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// A program is left in the background by this script, which ends; what it writes more than a pipe
/// holds.
fn writes_after(fixture: &Fixture, leave: impl FnOnce(&str)) {
    leave(&format!("cd {} && {{ ({WRITES_LATER}) & }}", fixture.dir.path().display()));
    std::fs::write(fixture.path("go"), "").unwrap();
    wait_for_file(&fixture.path("wrote"));
}

#[test]
fn a_program_in_the_background_outlives_its_session() {
    let fixture = Fixture::new();
    writes_after(&fixture, |script| {
        assert_eq!(fixture.start(&["sh", "-c", script]).finish().exit, code(0));
    });
}

#[test]
fn a_program_that_left_the_group_of_a_session_outlives_its_being_broken_off() {
    let fixture = Fixture::new();
    writes_after(&fixture, |script| {
        let mut exec =
            fixture.start(&["sh", "-c", &format!("setsid sh -c '{script} && echo left'; sleep 1000")]);
        exec.read_until("left");
    });
}

#[test]
fn a_program_in_the_background_of_a_hook_outlives_it() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    writes_after(&fixture, |script| {
        fixture.hook("pre-clone", script);
        let mut program = fixture.program();
        program.send("{\"verb\":\"clone\",\"args\":{\"count\":1}}\n");
        let (id, _) = host.clone_request();
        let result = Answer::Error(CallError { code: 16, message: "no room".into() });
        host.say(&FromHost::Reply { id, result });
        assert!(program.line().contains("no room"));
    });
}
