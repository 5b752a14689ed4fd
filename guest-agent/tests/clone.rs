//! Cloning as the agent sees it: hooks, holding, what the host is asked and what a program hears,
//! in parent and clone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Fixture, Hold, Host, Program, identity, said_ready, wait_for_end, watch_process};
use patina_abi::link::{Answer, CallError, FromAgent, FromHost, Identity};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use std::time::Duration;

const CLONE_2: &str = "{\"verb\":\"clone\",\"args\":{\"count\":2}}\n";

fn reply(id: u64, value: Value) -> FromHost {
    FromHost::Reply { id, result: Answer::Ok(value) }
}

fn refusal(id: u64, code: i32, message: &str) -> FromHost {
    FromHost::Reply { id, result: Answer::Error(CallError { code, message: message.into() }) }
}

fn json_of(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

/// A program whose call for two clones is with the host.
fn asked(fixture: &Fixture, host: &mut Host) -> (Program, u64) {
    let mut program = fixture.program();
    program.send(CLONE_2);
    let (id, args) = host.clone_request();
    assert_eq!(args, json!({"count": 2}));
    (program, id)
}

/// Has the host say that a message is there, and the agent have read it.
fn settle(fixture: &Fixture) {
    // Calls of a program are served after what came on the link before.
    fixture.program().call("vmid");
}

#[test]
fn a_parent_runs_its_hooks_holds_asks_and_answers() {
    let fixture = Fixture::new();
    fixture.hook("pre-clone", "echo pre $GC_ROLE $GC_VMID $GC_IP ${GC_TICKET-none} >> log");
    fixture.hook("post-clone", "echo post $GC_ROLE $GC_VMID $GC_IP ${GC_TICKET-none} >> log");
    let mut host = fixture.ready(0);
    let (mut program, id) = asked(&fixture, &mut host);
    assert_eq!(fixture.log(), ["pre parent 0 100.64.0.1 none", "hold"]);
    host.say(&FromHost::Resumed { cloned: true });
    host.say(&reply(id, json!({"vmids": [1], "failed": [[2, "no memory"]]})));
    assert_eq!(
        json_of(&program.line()),
        json!({"ok": {"vmid": 0, "clones": [1], "failed": [[2, "no memory"]]}})
    );
    assert_eq!(
        fixture.log()[1..],
        ["hold".to_owned(), "release".into(), "post parent 0 100.64.0.1 none".into()]
    );
    // The same program again, with a ticket.
    program.send("{\"verb\":\"clone\",\"args\":{\"ticket\":\"t-1\"}}\n");
    let (id, args) = host.clone_request();
    assert_eq!(args, json!({"ticket": "t-1"}));
    assert_eq!(fixture.log()[4..], ["pre parent 0 100.64.0.1 t-1".to_owned(), "hold".into()]);
    host.say(&refusal(id, 2, "there is no such ticket"));
    assert_eq!(json_of(&program.line()), json!({"error": {"code": 2, "message": "there is no such ticket"}}));
    assert_eq!(fixture.log()[6..], ["release"]);
}

#[test]
fn a_clone_becomes_itself_before_anybody_goes_on() {
    let fixture = Fixture::new();
    fixture.hook("post-clone", "echo post $GC_ROLE $GC_VMID $GC_IP ${GC_TICKET-none} >> log");
    let mut host = fixture.ready(0);
    std::fs::write(fixture.path("hosts"), "127.0.0.1 localhost\n100.64.0.1 vm-0 # patina\n10.0.0.1 db\n")
        .unwrap();
    let inode = |name| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(fixture.path(name)).unwrap());
    let (identity_file, hosts_file) = (inode("identity"), inode("hosts"));
    let (mut program, _) = asked(&fixture, &mut host);
    drop(host);
    let mut host = fixture.accept();
    assert_eq!(fixture.log(), ["hold"], "still held");
    let mut new = identity(12);
    new.ticket = "5d1f3a3c".into();
    host.say(&FromHost::Identity(new));
    assert_eq!(host.next(), said_ready(12));
    assert_eq!(json_of(&program.line()), json!({"ok": {"vmid": 12, "clones": [], "failed": []}}));
    assert_eq!(fixture.log(), ["hold", "apply 12", "release", "post clone 12 100.64.0.13 5d1f3a3c"]);
    assert_eq!(program.call("vmid"), r#"{"ok":12}"#);
    // Written in place, as nobody could see them half written.
    assert_eq!((inode("identity"), inode("hosts")), (identity_file, hosts_file));
    let text = std::fs::read_to_string(fixture.path("identity")).unwrap();
    assert!(text.starts_with("vmid=12\nip=100.64.0.13\n") && text.contains("\nticket=5d1f3a3c\n"), "{text}");
    assert_eq!(
        std::fs::read_to_string(fixture.path("hosts")).unwrap(),
        "127.0.0.1 localhost\n10.0.0.1 db\n100.64.0.13 vm-12 # patina\n"
    );
    assert_eq!(*fixture.said.lock().unwrap(), ["vmid 0 100.64.0.1 ready"], "a console is slow");
}

#[test]
fn a_clone_hears_of_itself_on_the_link_that_it_has() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (mut program, id) = asked(&fixture, &mut host);
    let mut other = fixture.program();
    other.send("{\"verb\":\"list\"}\n");
    // From here on the test is the clone's own host.
    host.say(&FromHost::Identity(identity(12)));
    let ready = said_ready(12);
    let said = [host.next(), host.next()];
    assert!(said.contains(&ready), "{said:?}");
    assert_eq!(json_of(&program.line()), json!({"ok": {"vmid": 12, "clones": [], "failed": []}}));
    assert_eq!(fixture.log(), ["hold", "apply 12", "release"]);
    // What was with the parent's host is nobody's any more, also where an answer comes to that
    // number.
    if said[0] != ready {
        assert!(other.line().contains("the link to the host broke"));
    }
    host.say(&reply(id, json!({"vmids": [3]})));
    settle(&fixture);
    // The link serves on, and the clone can be cloned in its turn.
    let (mut program, _) = asked(&fixture, &mut host);
    host.say(&FromHost::Identity(identity(13)));
    assert_eq!(host.next(), said_ready(13));
    assert_eq!(json_of(&program.line())["ok"]["vmid"], 13);
}

#[test]
fn a_restored_master_is_another_vm_though_its_vmid_is_the_same() {
    let fixture = Fixture::new();
    fixture.hook("post-clone", "echo post $GC_ROLE $GC_VMID $GC_IP >> log");
    let mut host = fixture.ready(0);
    let mut other = fixture.program();
    other.send("{\"verb\":\"list\"}\n");
    host.request();
    host.say(&FromHost::Prepare { hold: true });
    assert!(matches!(host.next(), FromAgent::Prepared { result: Answer::Ok(_) }));
    // From here on the test is the host that has restored it, as the master of another family.
    let family = "7c1f0b52-5d43-4a38-9c3e-0f6c5b4f2a11".to_owned();
    host.say(&FromHost::Identity(Identity { family: family.clone(), ..identity(0) }));
    assert_eq!(
        host.next(),
        FromAgent::Ready { vmid: 0, family: family.clone(), abi: patina_abi::ABI, vmcoreinfo: None }
    );
    assert!(other.line().contains("the link to the host broke"), "its host is the old VM's");
    // The next freeze is prepared when the hook has ended.
    host.say(&FromHost::Prepare { hold: false });
    assert!(matches!(host.next(), FromAgent::Prepared { result: Answer::Ok(_) }));
    assert_eq!(fixture.log(), ["hold", "apply 0", "release", "post clone 0 100.64.0.1"]);
    let text = std::fs::read_to_string(fixture.path("identity")).unwrap();
    assert!(text.contains(&format!("\nfamily={family}\n")), "{text}");
}

#[test]
fn a_clone_that_nobody_prepared_drops_what_its_parent_was_about() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let mut other = fixture.program();
    other.send("{\"verb\":\"list\"}\n");
    let (id, _) = host.request();
    host.say(&FromHost::Identity(identity(4)));
    assert_eq!(host.next(), said_ready(4));
    assert!(other.line().contains("the link to the host broke"), "its host is the parent's");
    host.say(&reply(id, json!([])));
    assert_eq!(other.call("vmid"), r#"{"ok":4}"#);
}

#[test]
fn a_shorter_identity_leaves_nothing_of_the_longer_one() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(100);
    for vmid in [7, 101] {
        let (mut program, _) = asked(&fixture, &mut host);
        drop(host);
        host = fixture.ready(vmid);
        assert_eq!(json_of(&program.line())["ok"]["vmid"], vmid);
        let text = std::fs::read_to_string(fixture.path("identity")).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!((lines.len(), lines[0]), (8, format!("vmid={vmid}").as_str()), "{text}");
        assert!(text.ends_with('\n'));
    }
}

#[test]
fn a_parent_whose_link_breaks_goes_on_and_says_so() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (mut program, _) = asked(&fixture, &mut host);
    let mut other = fixture.program();
    other.send("{\"verb\":\"list\"}\n");
    host.request();
    drop(host);
    let _host = fixture.ready(0);
    assert!(program.line().contains("the link to the host broke"));
    assert!(other.line().contains("\"code\":107"));
    assert_eq!(fixture.log(), ["hold", "apply 0", "release"]);
}

#[test]
fn a_failing_hook_stops_the_clone_with_its_output() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let mut program = fixture.program();
    let cases = [
        ("echo database; echo is busy >&2; exit 3", "pre-clone: exit code 3: database\nis busy"),
        ("exit 1", "pre-clone: exit code 1"),
        ("kill -TERM $$", "pre-clone: signal 15"),
        ("sleep 1000 & echo $!; exit 1", "pre-clone: exit code 1: "),
    ];
    for (script, words) in cases {
        fixture.hook("pre-clone", script);
        program.send(CLONE_2);
        let answer = json_of(&program.line());
        assert_eq!(answer["error"]["code"], 125, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(words), "{message}");
        if let Some(number) = message.strip_prefix("pre-clone: exit code 1: ") {
            let left = watch_process(number);
            rustix::process::pidfd_send_signal(&left, rustix::process::Signal::KILL).unwrap();
        }
    }
    // The end of much output.
    fixture.hook("pre-clone", "head -c 300000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1");
    program.send(CLONE_2);
    let message = json_of(&program.line())["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("x\nthe end") && message.len() < 4096 + 100, "{}", message.len());
    // What cannot be run is a failure too, and so says the host's own attempt.
    std::fs::write(fixture.path("pre-clone"), "#!/no/such/shell\n").unwrap();
    program.send(CLONE_2);
    assert!(program.line().contains("pre-clone: exec "));
    host.say(&FromHost::Prepare { hold: true });
    let FromAgent::Prepared { result: Answer::Error(error) } = host.next() else { panic!("no error") };
    assert!(error.code == 125 && error.message.starts_with("pre-clone: "), "{error:?}");
    assert!(fixture.log().is_empty(), "nothing was held");
}

#[test]
fn a_hook_that_does_not_end_is_killed_with_all_it_started() {
    let fixture = Fixture::with(Hold::AtOnce, |settings| settings.hook_limit = Duration::from_millis(300));
    let _host = fixture.ready(0);
    fixture.hook("pre-clone", "trap '' TERM; sleep 1000 & echo $! $$; wait");
    let mut program = fixture.program();
    program.send(CLONE_2);
    let answer = json_of(&program.line());
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("pre-clone: killed, because it did not end within "), "{message}");
    let numbers = message.rsplit(": ").next().unwrap();
    let pids: Vec<_> = numbers.split_whitespace().filter_map(|n| Pid::from_raw(n.parse().unwrap())).collect();
    assert_eq!(pids.len(), 2, "{message}");
    for pid in pids {
        // It is killed, and may not know yet.
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => wait_for_end(&process),
            Err(error) => assert_eq!(error.raw_os_error(), libc::ESRCH),
        }
    }
}

#[test]
fn a_failing_post_clone_hook_is_told_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.hook("post-clone", "echo no route >&2; exit 2");
    let mut host = fixture.ready(0);
    let (mut program, id) = asked(&fixture, &mut host);
    host.say(&FromHost::Resumed { cloned: true });
    host.say(&reply(id, json!({"vmids": [1, 2]})));
    assert_eq!(json_of(&program.line())["ok"]["clones"], json!([1, 2]));
    assert_eq!(fixture.said.lock().unwrap()[1..], ["post-clone: exit code 2: no route"]);
}

#[test]
fn programs_are_held_before_the_host_is_asked_and_not_for_ever() {
    let fixture = Fixture::with(Hold::Later, |_| {});
    let mut host = fixture.ready(0);
    let mut program = fixture.program();
    program.send(CLONE_2);
    settle(&fixture);
    assert_eq!(fixture.log(), ["hold"]);
    let mut list = fixture.program();
    list.send("{\"verb\":\"list\"}\n");
    assert_eq!(host.request().1, "list", "the clone is not asked for yet");
    fixture.all_stand_still();
    host.clone_request();

    let short = |settings: &mut guest_agent::agent::Settings| settings.hold_limit = Duration::from_millis(50);
    let fixture = Fixture::with(Hold::Later, short);
    let mut host = fixture.ready(0);
    let mut program = fixture.program();
    program.send(CLONE_2);
    let answer = json_of(&program.line());
    assert_eq!(answer["error"]["code"], 110);
    assert!(answer["error"]["message"].as_str().unwrap().contains("not all stopped within 50ms"), "{answer}");
    host.say(&FromHost::Prepare { hold: true });
    assert!(matches!(host.next(), FromAgent::Prepared { result: Answer::Error(e) } if e.code == 110));
    assert_eq!(fixture.log(), ["hold", "release", "hold", "release"]);
}

#[test]
fn without_holding_nobody_is_held() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let mut program = fixture.program();
    program.send("{\"verb\":\"clone\",\"args\":{\"count\":1,\"hold\":false}}\n");
    assert_eq!(host.clone_request().1, json!({"count": 1}));
    drop(host);
    let mut host = fixture.ready(4);
    assert_eq!(json_of(&program.line())["ok"]["vmid"], 4);
    host.say(&FromHost::Prepare { hold: false });
    assert!(matches!(host.next(), FromAgent::Prepared { result: Answer::Ok(_) }));
    assert_eq!(fixture.log(), ["apply 4"]);

    // A kernel that cannot is told of once.
    let fixture = Fixture::with(Hold::Unsupported, |_| {});
    let mut host = fixture.ready(0);
    for _ in 0..2 {
        let (mut program, id) = asked(&fixture, &mut host);
        host.say(&reply(id, json!({"vmids": [1]})));
        assert_eq!(json_of(&program.line())["ok"]["clones"], json!([1]));
    }
    assert_eq!(
        fixture.said.lock().unwrap()[1..],
        ["clone: programs are not held: the kernel has no cgroup2"]
    );
}

#[test]
fn a_host_that_takes_long_does_not_keep_programs_waiting() {
    let short = |settings: &mut guest_agent::agent::Settings| settings.host_limit = Duration::from_millis(50);
    let fixture = Fixture::with(Hold::AtOnce, short);
    let mut host = fixture.ready(0);
    let (mut program, id) = asked(&fixture, &mut host);
    // Sessions stand still until then, so this one says that it is over.
    assert_eq!(fixture.start(&["true"]).finish().exit.code, Some(0));
    assert_eq!(fixture.log(), ["hold", "release"]);
    // It is cloned in the end.
    host.say(&FromHost::Resumed { cloned: true });
    host.say(&reply(id, json!({"vmids": [1]})));
    assert_eq!(json_of(&program.line())["ok"]["clones"], json!([1]));
    assert_eq!(fixture.log(), ["hold", "release"]);
}

#[test]
fn one_at_a_time() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (mut first, id) = asked(&fixture, &mut host);
    let mut second = fixture.program();
    second.send(CLONE_2);
    settle(&fixture);
    host.say(&FromHost::Prepare { hold: true });
    // Nothing of the second comes before: the answer to this does.
    let FromAgent::Prepared { result: Answer::Error(error) } = host.next() else { panic!("no error") };
    assert_eq!(error.code, 16, "{}", error.message);
    host.say(&FromHost::Resumed { cloned: true });
    host.say(&reply(id, json!({"vmids": [1, 2]})));
    assert!(first.line().contains("\"vmid\":0"));
    let (id, _) = host.clone_request();
    // A clone has the call that waited.
    let mut third = fixture.program();
    third.send(CLONE_2);
    settle(&fixture);
    drop(host);
    let mut host = fixture.ready(9);
    assert!(second.line().contains("\"vmid\":9"));
    let (again, _) = host.clone_request();
    assert_ne!(id, again);
    host.say(&reply(again, json!({"vmids": [10, 11]})));
    assert_eq!(json_of(&third.line())["ok"]["clones"], json!([10, 11]));
    // One that has gone is not waited for.
    host.say(&FromHost::Prepare { hold: true });
    assert!(matches!(host.next(), FromAgent::Prepared { result: Answer::Ok(_) }));
    let mut fourth = fixture.program();
    fourth.send(CLONE_2);
    settle(&fixture);
    host.say(&FromHost::Resumed { cloned: false });
    host.clone_request();
}

/// The agent has seen that a program is gone: another's call is served after that.
fn see_gone(fixture: &Fixture, program: Program) {
    drop(program);
    settle(fixture);
    settle(fixture);
}

#[test]
fn a_call_whose_program_was_killed_in_line_is_not_made() {
    let fixture = Fixture::new();
    fixture.hook("pre-clone", "echo hook >> log; while ! [ -e go ]; do sleep 0.02; done");
    let mut host = fixture.ready(0);
    let (mut first, mut second) = (fixture.program(), fixture.program());
    first.send(CLONE_2);
    settle(&fixture);
    second.send(CLONE_2);
    settle(&fixture);
    see_gone(&fixture, second);
    std::fs::write(fixture.path("go"), "").unwrap();
    let (id, _) = host.clone_request();
    host.say(&FromHost::Resumed { cloned: true });
    host.say(&reply(id, json!({"vmids": [1]})));
    assert_eq!(json_of(&first.line())["ok"]["clones"], json!([1]));
    // What comes next is the call of another.
    let mut third = fixture.program();
    third.send("{\"verb\":\"clone\",\"args\":{\"count\":5}}\n");
    assert_eq!(host.clone_request().1, json!({"count": 5}));
    assert_eq!(fixture.log(), ["hook", "hold", "release", "hook", "hold"]);
}

#[test]
fn a_call_whose_program_was_killed_while_its_hook_runs_is_not_made_and_the_next_is() {
    let fixture = Fixture::new();
    fixture.hook("pre-clone", "echo hook >> log; while ! [ -e go ]; do sleep 0.02; done; echo ended >> log");
    let mut host = fixture.ready(0);
    let (mut first, mut second) = (fixture.program(), fixture.program());
    first.send(CLONE_2);
    settle(&fixture);
    second.send("{\"verb\":\"clone\",\"args\":{\"count\":5}}\n");
    settle(&fixture);
    see_gone(&fixture, first);
    std::fs::write(fixture.path("go"), "").unwrap();
    assert_eq!(host.clone_request().1, json!({"count": 5}));
    assert_eq!(fixture.log(), ["hook", "ended", "hook", "ended", "hold"]);
}

#[test]
fn a_call_that_is_with_the_host_is_taken_back_and_all_stand_still_until_the_host_has_answered() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (first, id) = asked(&fixture, &mut host);
    let mut second = fixture.program();
    second.send(CLONE_2);
    settle(&fixture);
    drop(first);
    assert_eq!(host.next(), FromAgent::Cancel { id });
    assert_eq!(fixture.log(), ["hold"]);
    host.say(&refusal(id, libc::ECANCELED, "nobody waits for it"));
    let (next, _) = host.clone_request();
    assert_eq!(fixture.log(), ["hold", "release", "hold"]);
    // One for which it was too late.
    drop(second);
    assert_eq!(host.next(), FromAgent::Cancel { id: next });
    host.say(&FromHost::Resumed { cloned: true });
    host.say(&reply(next, json!({"vmids": [1]})));
    settle(&fixture);
    assert_eq!(fixture.log(), ["hold", "release", "hold", "release"]);
    asked(&fixture, &mut host);
}

/// `gc clone 1` on the fixture's agent, as a hook would call it, with what makes it hard to see
/// whose it is. What it says goes into a file.
fn clones(fixture: &Fixture, how: &str) -> String {
    let gc = env!("CARGO_BIN_EXE_gc");
    let (socket, run) = (fixture.path("local"), "/run/gridcentric");
    format!(
        "env -i PATH=$PATH {how} unshare -r -m sh -c 'mount -t tmpfs t /run && mkdir {run} && ln -s {} {run}/agent.sock && \
            {gc} clone 1; echo $? >&2' >> told 2>&1",
        socket.display()
    )
}

#[test]
fn a_hook_that_clones_is_refused_at_once() {
    for hook in ["pre-clone", "post-clone"] {
        let fixture = Fixture::new();
        let how = ["", "setsid -w", "sh -c 'exec \"$@\"' sh"];
        fixture.hook(hook, &how.map(|how| clones(&fixture, how)).join("\n"));
        let mut host = fixture.ready(0);
        let (mut program, id) = asked(&fixture, &mut host);
        host.say(&FromHost::Resumed { cloned: true });
        host.say(&reply(id, json!({"vmids": [1]})));
        assert_eq!(json_of(&program.line())["ok"]["clones"], json!([1]));
        let told = std::fs::read_to_string(fixture.path("told")).unwrap();
        let refused = format!("clone: the call comes from the {hook} hook");
        assert_eq!(told.matches(&refused).count(), 3, "{told}");
        assert_eq!(told.lines().filter(|line| *line == "35").count(), 3, "{told}");
        // Others may, and so may everybody when the hook has ended.
        asked(&fixture, &mut host);
    }
}

#[test]
fn others_wait_in_line_while_a_hook_runs() {
    let fixture = Fixture::new();
    fixture.hook("pre-clone", "while ! [ -e go ]; do sleep 0.02; done");
    let mut host = fixture.ready(0);
    let mut program = fixture.program();
    program.send(CLONE_2);
    settle(&fixture);
    let mut other = std::process::Command::new("sh");
    other.args(["-c", &clones(&fixture, "")]).current_dir(fixture.dir.path());
    let mut other = other.spawn().unwrap();
    std::fs::write(fixture.path("go"), "").unwrap();
    let (id, _) = host.clone_request();
    host.say(&refusal(id, 16, "no room"));
    assert!(program.line().contains("no room"));
    let (id, args) = host.clone_request();
    assert_eq!(args, json!({"count": 1}));
    host.say(&refusal(id, 16, "no room for this either"));
    other.wait().unwrap();
    let told = std::fs::read_to_string(fixture.path("told")).unwrap();
    assert!(told.contains("no room for this either"), "{told}");
}

#[test]
fn the_host_clones_from_outside() {
    let fixture = Fixture::new();
    fixture.hook("pre-clone", "echo pre $GC_ROLE >> log");
    fixture.hook("post-clone", "echo post $GC_ROLE $GC_VMID >> log");
    let mut host = fixture.ready(0);
    for (cloned, after) in [(false, &["release"][..]), (true, &["release", "post parent 0"])] {
        let before = fixture.log().len();
        host.say(&FromHost::Prepare { hold: true });
        assert!(matches!(host.next(), FromAgent::Prepared { result: Answer::Ok(_) }));
        assert_eq!(fixture.log()[before..], ["pre parent".to_owned(), "hold".into()]);
        host.say(&FromHost::Resumed { cloned });
        // The next clone begins when this one is over.
        let mut program = fixture.program();
        program.send(CLONE_2);
        let (id, _) = host.clone_request();
        assert_eq!(fixture.log()[before + 2..before + 2 + after.len()], *after);
        host.say(&refusal(id, 11, "not now"));
        program.line();
    }
    let before = fixture.log().len();
    host.say(&FromHost::Prepare { hold: true });
    host.next();
    drop(host);
    let mut host = fixture.ready(3);
    // It is over when another can begin.
    let mut program = fixture.program();
    program.send(CLONE_2);
    host.clone_request();
    let wanted = ["pre parent", "hold", "apply 3", "release", "post clone 3", "pre parent", "hold"];
    assert_eq!(fixture.log()[before..], wanted);
}

#[test]
fn a_call_that_says_nothing_sensible_is_refused() {
    let fixture = Fixture::new();
    let mut program = fixture.program();
    program.send(CLONE_2);
    assert!(program.line().contains("\"code\":107"), "nobody is anybody yet");
    let mut host = fixture.ready(0);
    let long = format!("{{\"ticket\":\"{}\"}}", "x".repeat(65));
    for args in [
        "{}",
        "{\"count\":0}",
        "{\"count\":-1}",
        "{\"count\":1,\"ticket\":\"t\"}",
        "{\"ticket\":\"\"}",
        &long,
        "{\"ticket\":\"a\\u0000b\"}",
        "{\"count\":1,\"held\":true}",
        "7",
        "null",
    ] {
        program.send(&format!("{{\"verb\":\"clone\",\"args\":{args}}}\n"));
        let line = program.line();
        assert!(line.contains("\"code\":22,\"message\":\"clone: "), "{args}: {line}");
    }
    // A host that answers nonsense is not believed.
    let (mut program, id) = asked(&fixture, &mut host);
    host.say(&reply(id, json!("yes")));
    assert!(program.line().contains("\"code\":71"));
    drop(host);
    std::fs::remove_file(fixture.path("host")).unwrap();
    assert!(fixture.program().call("list").contains("\"code\":107"));
    program.send(CLONE_2);
    assert!(program.line().contains("\"code\":107"), "no link");
}

#[test]
fn an_agent_that_starts_releases_what_another_held() {
    let fixture = Fixture::new();
    let _host = fixture.accept();
    assert_eq!(std::fs::read_to_string(fixture.path("log")).unwrap(), "release\n");
}

#[test]
fn in_a_clone_the_programs_of_sessions_go_on_without_them() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    // One that writes more than a pipe holds, one that reads to the end of its input.
    let mark = fixture.path("mark");
    let script = format!(
        "echo up; read word; head -c 1000000 /dev/zero; read rest; echo $word >> {0}; echo done >> {0}",
        mark.display()
    );
    let mut exec = fixture.start(&["sh", "-c", &script]);
    exec.read_until("up\n");
    let mut waiting = fixture.exec();
    let mut terminal = fixture.exec();
    let script = format!("echo up; cat >/dev/null; echo tty >> {}", mark.display());
    terminal.start(&patina_abi::exec::Start { tty: Some((24, 80)), ..common::start(&["sh", "-c", &script]) });
    terminal.read_until("up\r\n");
    let (mut program, _) = asked(&fixture, &mut host);
    // The host's ends break with the clone's beginning; what they had sent is lost with them.
    drop(host);
    let _host = fixture.ready(5);
    assert!(program.line().contains("\"vmid\":5"));
    for exec in [&mut exec, &mut waiting, &mut terminal] {
        let mut rest = Vec::new();
        let end = std::io::Read::read_to_end(&mut exec.stream, &mut rest);
        assert!(end.is_ok(), "closed: {end:?}");
    }
    // Its programs run to their ends.
    let ended = || {
        let text = std::fs::read_to_string(&mark).unwrap_or_default();
        text.contains("done") && text.contains("tty")
    };
    let until = std::time::Instant::now() + common::PATIENCE;
    while !ended() {
        assert!(std::time::Instant::now() < until, "{:?}", std::fs::read_to_string(&mark));
        std::thread::yield_now();
    }
    // New sessions are as ever.
    assert_eq!(fixture.start(&["true"]).finish().exit.code, Some(0));
}

#[test]
fn sessions_of_a_parent_stand_still_and_go_on() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let mut exec = fixture.start(&["cat"]);
    exec.send(patina_abi::exec::FrameType::Stdin, b"one\n");
    exec.read_until("one\n");
    let (mut program, id) = asked(&fixture, &mut host);
    // A session that its host closes in between ends its program, in the parent.
    let mut gone = fixture.start(&["sh", "-c", "echo $$; exec sleep 1000"]);
    let quick = fixture.start(&["true"]);
    exec.send(patina_abi::exec::FrameType::Stdin, b"two\n");
    settle(&fixture);
    host.say(&FromHost::Resumed { cloned: true });
    exec.read_until("two\n");
    let process = watch_process(&gone.read_until("\n"));
    host.say(&reply(id, json!({"vmids": [1]})));
    program.line();
    let (_program, id) = asked(&fixture, &mut host);
    drop(gone);
    host.say(&refusal(id, 11, "not now"));
    wait_for_end(&process);
    let mut quick = quick;
    assert_eq!(quick.finish().exit.code, Some(0));
}
