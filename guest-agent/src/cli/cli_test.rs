use super::*;
use patina_abi::local::Request;
use std::io::Read;
use std::os::unix::net::UnixListener;

const TICKET: &str = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn refused(line: &str) -> CallError {
    dispatch(&words(line)).unwrap_err()
}

#[test]
fn a_wrong_use_is_einval_and_says_how() {
    let lines = "|fly|vmid 1|list --yaml|list --json x|list --ticket|list --ticket 1|version now|clone|clone --no-hold|clone 1 2|clone --fast 1|\
        clone 99999999999|clone 0|clone -1|clone x|rt|rt 1 1 1|rt 1 1 1 1 1|rt a 1 1 1|request-ticket 1 -1 1 1|\
        rt 0 1 1 1|rt 8 0 1 1|rt 8 1 0 1|rt 8 1 1 -1|rt 8 1 1 86400001|rt 99999999999 1 1 1|rt 8 3 3 1|\
        rt 8 1 1 1 --request-id|rt 8 1 1 1 --request-id=|lt x|list-tickets x|ticket u x|ticket u|\
        get-ticket 7|sync 0|sync -1|sync x|sync 1 1|sync T 0|sync T T|sync T 1 1|sync --fast|sync 99999999999999999999|\
        join 1|join x|join T 0|join T -5|join T 1 1|join noreport T|join noreport --status 1|join noreport --data f|\
        join --json|join --data-dir d|join --status|join --status x|join --status 99999999999|join T --status 1|\
        join T --data f|kill|kill 0|kill -1|kill x|kill 1.5|kill 1 --ticket T|kill --ticket|kill --ticket 1|\
        kill 4294967296|help fly|help vmid ip";
    for line in lines.split('|') {
        let line = line.replace('T', TICKET);
        assert_eq!(refused(&line).code, 22, "{line:?}");
    }
    let many: Vec<String> =
        std::iter::once("kill".to_owned()).chain((1..=1025).map(|n| n.to_string())).collect();
    assert_eq!(dispatch(&many).unwrap_err().message, "kill: unexpected argument \"1025\"");
    let message = refused("rt 8 3 3 1").message;
    assert_eq!(message, "rt: MINVMS VMs of MINCPUSPERVM CPUs are 9 CPUs, which is more than MAXCPUS, 8");
    let message = refused("rt 8 0 1 1").message;
    assert_eq!(message, "rt: MINVMS is a number from 1 to 4294967295, not \"0\"");
    assert!(refused("").message.contains("usage: gc VERB"));
    assert_eq!(refused("fly").message, "unknown verb \"fly\"; `gc help` lists them");
    assert_eq!(refused("vmid 1").message, "vmid: unexpected argument \"1\"");
}

#[test]
fn an_error_names_its_verb_once() {
    let said = |message: &str| with_verb("kill", message.to_owned());
    assert_eq!(said("no such clone"), "kill: no such clone");
    assert_eq!(said("kill: no such clone"), "kill: no such clone");
    assert_eq!(said("killed by somebody"), "kill: killed by somebody");
}

#[test]
fn help_names_every_verb() {
    let text = dispatch(&words("--help")).unwrap().text;
    assert_eq!(text, dispatch(&words("help")).unwrap().text);
    for verb in table::VERBS {
        assert!(text.contains(&format!("\n  {} ", verb.names())), "{}", verb.name);
    }
    assert!(text.lines().all(|line| line.len() < 120), "{text}");
    assert!(dispatch(&words("-V")).unwrap().text.starts_with("gc "));
}

#[test]
fn each_verb_has_help_with_its_uses_exits_and_an_example() {
    for verb in table::VERBS {
        let text = dispatch(&words(&format!("help {}", verb.name))).unwrap().text;
        for arguments in verb.uses {
            assert!(text.contains(format!("gc {} {arguments}", verb.name).trim_end()), "{text}");
        }
        for (code, meaning) in verb.all_exits() {
            assert_eq!(text.matches(&format!("\n  {code:<4} ")).count(), 1, "{code}: {text}");
            assert!(text.contains(&format!("\n  {code:<4} {meaning}\n")), "{text}");
        }
        assert!(text.contains("\nexample:\n  ") && text.contains("gc "), "{text}");
        assert!(text.lines().all(|line| line.len() < 120), "{text}");
        for name in [verb.name, verb.long].into_iter().filter(|name| !name.is_empty()) {
            for flag in ["--help", "-h", "1 2 3 --help"] {
                assert_eq!(dispatch(&words(&format!("{name} {flag}"))).unwrap().text, text);
            }
            assert_eq!(dispatch(&words(&format!("help {name}"))).unwrap().text, text);
        }
    }
    let sync = dispatch(&words("sync --help")).unwrap().text;
    assert!(sync.starts_with("usage: gc sync [TICKET] [TIMEOUT_MS] [--json]\n\nWait until "), "{sync}");
}

/// What hosts and agents may answer, a command says in its help.
#[test]
fn each_verb_lists_every_number_that_it_may_be_refused_with() {
    for verb in table::VERBS {
        let calls: &[&str] = match verb.name {
            "join" => &["leave-data", "leave", "join", "join-data"],
            "help" | "version" => &[],
            name => &[name],
        };
        let exits = verb.all_exits();
        let calls = calls.iter().map(|call| patina_abi::codes::verb(call).expect(call));
        // The command asks for pages, and sends pieces: its lines are never too long.
        let common = patina_abi::codes::COMMON.iter().filter(|code| **code != libc::EMSGSIZE);
        for code in calls.flat_map(|call| call.codes).chain(common) {
            assert!(exits.iter().any(|(exit, _)| *exit == code.to_string()), "{}: {code}", verb.name);
        }
    }
}

#[test]
fn the_identity_is_read_from_the_file_or_is_enotconn() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("identity");
    assert_eq!(verbs::identity_in(&file, "vmid").unwrap_err().code, 107);
    std::fs::write(&file, "vmid=3\nip=100.64.0.4\n").unwrap();
    assert_eq!(verbs::identity_in(&file, "ip").unwrap(), "100.64.0.4");
}

#[test]
fn a_list_is_a_line_a_vm() {
    let members = serde_json::json!([
        {"vmid": 0, "ip": "100.64.0.1", "state": "ready", "host": "a"},
        {"vmid": 1, "ip": "100.64.0.2", "state": "booting", "host": "b"},
    ]);
    let members: Vec<patina_abi::link::Member> = serde_json::from_value(members).unwrap();
    assert_eq!(verbs::table(&members), "0 100.64.0.1 ready a\n1 100.64.0.2 booting b\n");
}

#[test]
fn a_call_returns_the_agents_answer_or_says_that_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let request = Request { verb: "list".into(), args: serde_json::Value::Null };
    assert_eq!(call::call(&path, &request).unwrap_err().code, 107);

    let listener = UnixListener::bind(&path).unwrap();
    let answers: [&[u8]; 4] =
        [b"{\"ok\":[]}\n", b"{\"error\":{\"code\":16,\"message\":\"busy\"}}\n", b"", b"rubbish\n"];
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; 16];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"{\"verb\":\"list\"}\n");
            stream.write_all(answer).unwrap();
        }
    });
    assert_eq!(call::call(&path, &request).unwrap(), serde_json::json!([]));
    let busy = CallError { code: 16, message: "busy".into() };
    assert_eq!(call::call(&path, &request).unwrap_err(), busy);
    assert_eq!(call::call(&path, &request).unwrap_err().code, 107);
    assert_eq!(call::call(&path, &request).unwrap_err().code, 107);
    server.join().unwrap();
}

#[test]
fn a_code_from_outside_never_reads_as_success() {
    assert_eq!([0, 1, -5, 256, 16].map(exit_code), [5, 13, 5, 5, 16]);
}

#[test]
fn a_clones_arguments_are_a_number_or_a_ticket() {
    let request = |line: &str| clone::request(&words(line)).unwrap().0.args;
    assert_eq!(request("3"), serde_json::json!({"count": 3}));
    assert_eq!(request("--no-hold 3"), serde_json::json!({"count": 3, "hold": false}));
    assert_eq!(request(&format!("{TICKET} --no-hold")), serde_json::json!({"ticket": TICKET, "hold": false}));
}

#[test]
fn a_clone_prints_as_fork_and_warns_of_what_failed() {
    let output = |value| clone::output(value, false).unwrap();
    let parent = output(serde_json::json!({"vmid": 0, "clones": [4], "failed": [[5, "no memory"]]}));
    let warning = "clone: the clone with vmid 5 was not started: no memory\n";
    assert_eq!(parent, Output { text: "0\n".into(), warnings: warning.into(), code: 0 });
    let cloned = output(serde_json::json!({"vmid": 4, "clones": [], "failed": []}));
    assert_eq!(cloned, Output { text: "4\n".into(), ..Output::default() });
    for as_json in [false, true] {
        assert_eq!(clone::output("no".into(), as_json).unwrap_err().code, 71);
    }
    let all =
        clone::output(serde_json::json!({"vmid": 0, "clones": [4], "failed": [[5, "no"]]}), true).unwrap();
    assert_eq!(all.text, "{\"clones\":[4],\"failed\":[[5,\"no\"]],\"vmid\":0}\n");
    assert_eq!(all.warnings, "clone: the clone with vmid 5 was not started: no\n");
}

#[test]
fn a_ticket_is_a_line_whose_second_field_is_its_uuid() {
    let arguments =
        |line: &str| serde_json::to_value(tickets::parse_request(&words(line)).unwrap().0).unwrap();
    let mut wanted =
        serde_json::json!({"max_cpus": 8, "min_vms": 2, "min_cpus_per_vm": 4, "timeout_ms": 1000});
    assert_eq!(arguments("8 2 4 1000"), wanted);
    wanted["request_id"] = "job-7".into();
    assert_eq!(arguments("8 2 4 1000 --json --request-id job-7"), wanted);
    let ticket = patina_abi::link::TicketView {
        uuid: "0f6d8f3e".into(),
        status: "granted".into(),
        cpus: 8,
        vms: 2,
        min_cpus_per_vm: 4,
    };
    assert_eq!(tickets::line(&ticket), "ticket: 0f6d8f3e granted 8 2 4\n");
}

#[test]
fn a_uuid_is_a_ticket_and_a_number_a_time() {
    let sync = |line: &str| {
        let arguments = words(line);
        let parsed = words::Words::parse(&arguments, &[], &[]).and_then(|words| family::parse_sync(&words));
        serde_json::to_value(parsed.unwrap()).unwrap()
    };
    assert_eq!(sync(""), serde_json::json!({}));
    assert_eq!(sync("5000"), serde_json::json!({"timeout_ms": 5000}));
    assert_eq!(sync(TICKET), serde_json::json!({"ticket": TICKET}));
    assert_eq!(sync(&format!("{TICKET} 60000")), serde_json::json!({"ticket": TICKET, "timeout_ms": 60000}));
}

#[test]
fn a_line_a_clone_says_how_it_ended() {
    let clone = |vmid, end: &str, status, reported| patina_abi::link::JoinedClone {
        vmid,
        end: end.into(),
        status,
        data_bytes: 0,
        reported,
    };
    let clones = [
        clone(1, "joined", 3, true),
        clone(2, "joined", 0, false),
        clone(3, "killed", 0, false),
        clone(4, "lost", 0, false),
    ];
    assert_eq!(join::table(&clones), "1 joined 3\n2 joined -\n3 killed 0\n4 lost 0\n");
}
