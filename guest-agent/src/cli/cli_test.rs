use super::*;
use patina_abi::local::Request;
use std::io::Read;
use std::os::unix::net::UnixListener;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn refused(line: &str) -> CallError {
    dispatch(&words(line)).unwrap_err()
}

#[test]
fn a_wrong_use_is_einval_and_says_how() {
    let lines = "|fly|vmid 1|list --yaml|list --json x|version now|clone|clone --no-hold|clone 1 2|clone --fast 1|\
        clone 99999999999|rt|rt 1 1 1|rt 1 1 1 1 1|rt a 1 1 1|request-ticket 1 -1 1 1|lt x|list-tickets x|ticket|\
        ticket u x";
    for line in lines.split('|') {
        assert_eq!(refused(line).code, 22, "{line:?}");
    }
    assert!(refused("").message.contains("usage: gc VERB"));
    assert_eq!(refused("fly").message, "unknown verb \"fly\"; `gc help` lists them");
    assert_eq!(refused("vmid 1").message, "vmid: unexpected argument \"1\"");
}

#[test]
fn help_names_every_verb() {
    let text = dispatch(&words("--help")).unwrap().text;
    for verb in VERBS {
        let names =
            if verb.long.is_empty() { verb.name.to_owned() } else { format!("{}, {}", verb.name, verb.long) };
        assert!(text.contains(&format!("\n  {names} ")), "{names}");
    }
    assert!(text.lines().all(|line| line.len() < 120), "{text}");
    assert!(dispatch(&words("-V")).unwrap().text.starts_with("gc "));
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
    assert_eq!(verbs::table(members).unwrap(), "0 100.64.0.1 ready a\n1 100.64.0.2 booting b\n");
    assert_eq!(verbs::table("no".into()).unwrap_err().code, 71);
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
    assert_eq!([0, 1, -5, 256, 16].map(exit_code), [5, 5, 5, 5, 16]);
}

#[test]
fn a_clones_arguments_are_a_number_or_a_ticket() {
    let request = |line: &str| clone::request(&words(line)).unwrap().args;
    assert_eq!(request("3"), serde_json::json!({"count": 3}));
    assert_eq!(request("--no-hold 3"), serde_json::json!({"count": 3, "hold": false}));
    assert_eq!(request("0f6d8f3e --no-hold"), serde_json::json!({"ticket": "0f6d8f3e", "hold": false}));
}

#[test]
fn a_clone_prints_as_fork_and_warns_of_what_failed() {
    let output = |value| clone::output(value).unwrap();
    let parent = output(serde_json::json!({"vmid": 0, "clones": [4], "failed": [[5, "no memory"]]}));
    let warning = "clone: the clone with vmid 5 was not started: no memory\n";
    assert_eq!(parent, Output { text: "0\n".into(), warnings: warning.into(), code: 0 });
    let cloned = output(serde_json::json!({"vmid": 4, "clones": [], "failed": []}));
    assert_eq!(cloned, Output { text: "4\n".into(), ..Output::default() });
    assert_eq!(clone::output("no".into()).unwrap_err().code, 71);
}

#[test]
fn a_ticket_is_a_line_whose_second_field_is_its_uuid() {
    let arguments = tickets::parse_request(&words("8 2 4 1000")).unwrap();
    assert_eq!(
        serde_json::to_value(arguments).unwrap(),
        serde_json::json!({"max_cpus": 8, "min_vms": 2, "min_cpus_per_vm": 4, "timeout_ms": 1000})
    );
    let ticket = patina_abi::link::TicketView {
        uuid: "0f6d8f3e".into(),
        status: "granted".into(),
        cpus: 8,
        vms: 2,
        min_cpus_per_vm: 4,
    };
    assert_eq!(tickets::line(&ticket), "ticket: 0f6d8f3e granted 8 2 4\n");
}
