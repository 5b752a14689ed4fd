use super::*;

const GOOD: &str = r#"
SUITE tiny_guests
{ "type": "suite", "event": "started", "test_count": 2 }
{ "type": "test", "event": "started", "name": "power_off_is_recorded" }
{ "type": "test", "name": "power_off_is_recorded", "event": "ok" }
{ "type": "test", "event": "started", "name": "a_reset_is_recorded" }
something that a program said
{ "type": "test", "name": "a_reset_is_recorded", "event": "ok" }
{ "type": "suite", "event": "ok", "passed": 2, "failed": 0, "ignored": 0, "measured": 0, "filtered_out": 0, "exec_time": 0.1 }
END tiny_guests 0
SUITE vmm
running 1 test
test sys::pagemap::tests::finds - should panic ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 98 filtered out; finished in 0.01s
END vmm 0
RESULT ok
"#;

fn expected() -> Expected {
    let tests = ["power_off_is_recorded", "a_reset_is_recorded"].map(str::to_owned);
    Expected::from([("tiny_guests".to_owned(), BTreeSet::from(tests))])
}

fn report(lines: &str, console: &str) -> Report {
    let mut report = Report::new(expected());
    for line in lines.lines() {
        report.line(&format!("{line}\r\n"), Duration::ZERO);
    }
    report.end("QEMU ended with exit status: 0", console);
    report
}

fn faults(lines: &str, console: &str) -> Vec<Fault> {
    report(lines, console).faults().to_vec()
}

fn tiny(name: &str) -> (String, String) {
    ("tiny_guests".to_owned(), name.to_owned())
}

#[test]
fn a_run_of_all_expected_tests_has_passed() {
    let report = report(GOOD, "[    0.0] Linux version 6.1\n[    3.0] kvm: Nested Virtualization enabled\n");
    assert_eq!(report.faults(), []);
    assert_eq!(
        (report.passed(), report.said().as_str()),
        (
            3,
            "\nsomething that a program said\nrunning 1 test\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 98 filtered out; finished in 0.01s"
        )
    );
}

#[test]
fn a_run_without_its_last_line_has_not_passed() {
    let cut = GOOD.split("END vmm").next().unwrap();
    let found = faults(cut, "");
    let [Fault::NoResult(doing, ended, said)] = &found[..] else { panic!("{found:?}") };
    assert!(doing.starts_with("vmm: what follows sys::pagemap::tests::finds"), "{doing}");
    assert_eq!(ended, "QEMU ended with exit status: 0");
    assert!(said.contains("running 1 test"), "{said}");
}

#[test]
fn a_host_that_prints_nothing_has_not_passed() {
    let found = faults("", "");
    assert_eq!(found.len(), 3, "two tests did not run, and no result came: {found:?}");
}

#[test]
fn the_test_that_hangs_is_named() {
    let cut = GOOD.split("something").next().unwrap();
    let found = faults(cut, "");
    let (suite, name) = tiny("a_reset_is_recorded");
    assert!(found.contains(&Fault::Missing(suite, name)), "{found:?}");
    let named = |fault: &Fault| matches!(fault, Fault::NoResult(doing, ..) if doing == "tiny_guests: a_reset_is_recorded");
    assert!(found.iter().any(named), "{found:?}");
}

#[test]
fn an_expected_test_that_is_ignored_has_not_passed() {
    let ignored = GOOD.replace(
        r#""name": "a_reset_is_recorded", "event": "ok""#,
        r#""name": "a_reset_is_recorded [no usable /dev/kvm: gone]", "event": "ignored""#,
    );
    let (suite, name) = tiny("a_reset_is_recorded");
    assert_eq!(faults(&ignored, ""), [Fault::Ignored(suite, name)]);
}

#[test]
fn an_expected_test_that_did_not_run_has_not_passed() {
    let without: String =
        GOOD.lines().filter(|line| !line.contains("a_reset")).map(|line| format!("{line}\n")).collect();
    let (suite, name) = tiny("a_reset_is_recorded");
    assert_eq!(faults(&without, ""), [Fault::Missing(suite, name)]);
}

#[test]
fn a_test_that_fails_is_told_with_its_words_expected_or_not() {
    let failed = GOOD
        .replace(
            r#""name": "power_off_is_recorded", "event": "ok""#,
            r#""name": "power_off_is_recorded", "event": "failed", "stdout": "Error: \"it did \\\"not\\\"\"\n""#,
        )
        .replace("finds - should panic ... ok", "finds ... FAILED")
        .replace("RESULT ok", "RESULT failed");
    let found = faults(&failed, "");
    let (suite, name) = tiny("power_off_is_recorded");
    let expected = [
        Fault::Failed(suite, name, "Error: \"it did \\\"not\\\"\"\n".to_owned()),
        Fault::Failed("vmm".to_owned(), "sys::pagemap::tests::finds".to_owned(), String::new()),
        Fault::Result("failed".to_owned()),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_program_that_dies_between_its_tests_has_not_passed() {
    let died = GOOD.replace("END vmm 0", "END vmm 139");
    assert_eq!(faults(&died, ""), [Fault::Code("vmm".to_owned(), "139".to_owned())]);
}

#[test]
fn a_seccomp_kill_and_a_fault_of_the_kernel_are_found_in_its_log() {
    let kill = "[   21.3] audit: type=1326 audit(1795740000.1:7): auid=4294967295 uid=65534 pid=150 comm=\"vcpu0\" exe=\"/patina/bin/vmm\" sig=31 arch=c000003e syscall=2 compat=0";
    let console = format!("[    1.0] audit: type=2000 audit(1.0:1): state=initialized\r\n{kill}\r\n");
    assert_eq!(faults(GOOD, &console), [Fault::SeccompKill(kill.to_owned())]);
    for line in [
        "[   9.1] BUG: unable to handle page fault for address: ffffffff",
        "[   9.1] Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "[   9.1] kernel BUG at mm/memory.c:12!",
        "[   9.1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    ] {
        assert_eq!(faults(GOOD, line), [Fault::Kernel(line.to_owned())]);
    }
}

#[test]
fn a_tests_time_is_from_its_start_to_its_end() {
    let mut report = Report::new(expected());
    let at = Duration::from_secs;
    assert_eq!(report.line("SUITE tiny_guests", at(4)), Some(Event::Suite("tiny_guests".to_owned())));
    assert_eq!(report.line(r#"{ "type": "test", "event": "started", "name": "a" }"#, at(5)), None);
    let ended = report.line(r#"{ "type": "test", "name": "a", "event": "ok" }"#, at(7));
    assert_eq!(ended, Some(Event::Test { name: "a".to_owned(), verdict: Verdict::Ok, took: at(2) }));
}
