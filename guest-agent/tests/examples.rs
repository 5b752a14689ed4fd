//! The programs of `examples/guest`, as they are, with the real agent and the real `gc`, and a host
//! played by the test. One whose language is not installed here is ignored, and says so.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::gc::{done, end, expect, refuse, reply, shell};
use common::{Fixture, Host};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use patina_abi::link::{Cloned, FromAgent, FromHost};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};

const TICKET: &str = "0f6d8f3e-6f0b-4b8e-9a53-2d1f3a3c1b11";

/// A program that forks: its language's command, how it is made ready, and how it is run.
struct Fork {
    name: &'static str,
    needs: &'static str,
    build: &'static str,
    run: &'static str,
}

/// `$D` is the examples' directory, `$T` one of the test's own.
const FORKS: [Fork; 4] = [
    Fork { name: "python", needs: "python3", build: "", run: "python3 $D/fork.py" },
    Fork { name: "c", needs: "cc", build: "cc -Wall -Wextra -Werror -o $T/fork $D/fork.c", run: "$T/fork" },
    Fork { name: "java", needs: "java", build: "", run: "java $D/Fork.java" },
    Fork { name: "node", needs: "node", build: "", run: "node $D/fork.mjs" },
];

fn main() -> ExitCode {
    let forks = FORKS.iter().map(|fork| {
        Trial::ignorable_test(format!("a_{}_program_forks_the_machine", fork.name), || {
            with(fork.needs, || fork.tell())
        })
    });
    let seeds = Trial::ignorable_test("a_program_seeds_again_in_each_machine", || {
        with("python3", a_program_seeds_again)
    });
    let jobs: [(&str, fn()); 5] = [
        ("a_map_reduce_job_adds_up_what_its_clones_leave", a_job_adds_up),
        ("a_map_reduce_job_leaves_its_part_in_a_clone", a_job_in_a_clone),
        ("a_map_reduce_job_without_a_ticket_does_nothing", a_job_without_a_ticket),
        ("a_map_reduce_job_that_cannot_clone_does_nothing", a_job_without_clones),
        ("a_map_reduce_job_says_whose_part_is_missing", a_job_with_a_part_missing),
    ];
    let jobs = jobs.into_iter().map(|(name, story)| {
        Trial::test(name, move || {
            story();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), forks.chain([seeds]).chain(jobs).collect()).exit_code()
}

/// Tells a story, if there is this language.
fn with(language: &str, story: impl FnOnce()) -> Result<Completion, Failed> {
    let found = Command::new(language).arg("--version").output();
    if !found.is_ok_and(|output| output.status.success()) {
        return Ok(Completion::ignored_with(format!("there is no {language} here")));
    }
    story();
    Ok(Completion::Completed)
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/guest")
}

/// A program that waits for what will not come is ended.
fn start(fixture: &Fixture, command: &str) -> Child {
    let limit = common::PATIENCE.as_secs();
    let mut shell = shell(fixture, &format!("exec timeout {limit} {command}"));
    shell
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("D", examples())
        .env("T", fixture.dir.path())
        .env("TMPDIR", fixture.dir.path());
    shell.spawn().unwrap()
}

/// In the machine that is cloned.
fn cloned(host: &mut Host, id: u64, vmids: &[u32]) {
    host.say(&FromHost::Resumed { cloned: true });
    let result = Cloned { vmids: vmids.to_vec(), failed: Vec::new() };
    reply(host, id, serde_json::to_value(result).unwrap());
}

/// Nobody has said anything more.
fn is_quiet(host: &mut Host) {
    host.say(&FromHost::Prepare { hold: false });
    let next = host.next();
    assert!(matches!(next, FromAgent::Prepared { .. }), "{next:?}");
}

impl Fork {
    fn tell(&self) {
        let fixture = Fixture::new();
        if !self.build.is_empty() {
            let built = end(start(&fixture, self.build));
            assert_eq!(built, done(0, ""));
        }
        let mut host = fixture.ready(0);
        let child = start(&fixture, &format!("{} 3", self.run));
        let (id, args) = expect(&mut host, "clone");
        assert_eq!(args, json!({"count": 3}));
        cloned(&mut host, id, &[1, 2, 4]);
        assert_eq!(end(child), done(0, "0 100.64.0.1 from before 1 2 4\n"));

        let child = start(&fixture, self.run);
        let (id, args) = expect(&mut host, "clone");
        assert_eq!(args, json!({"count": 1}));
        refuse(&mut host, id, 16, "not as it is");
        let (code, told, words) = end(child);
        assert!(code == Some(16) && told.is_empty() && words.contains("not as it is"), "{code:?} {words}");

        let child = start(&fixture, &format!("{} 1 $T/told", self.run));
        expect(&mut host, "clone");
        drop(host);
        let _host = fixture.ready(5);
        assert_eq!(end(child), done(0, ""));
        let told = std::fs::read_to_string(fixture.path("told")).unwrap();
        assert_eq!(told, "5 100.64.0.6 from before\n");
    }
}

/// That the first draw is the same everywhere only real clones show.
fn a_program_seeds_again() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let child = start(&fixture, "python3 $D/reseed.py 2");
    let (id, args) = expect(&mut host, "clone");
    assert_eq!(args, json!({"count": 2}));
    cloned(&mut host, id, &[1, 2]);
    let (code, told, words) = end(child);
    let told: Vec<&str> = told.split_whitespace().collect();
    let ["alike", number, bytes, "own", own_number, own_bytes] = told[..] else { panic!("{told:?} {words}") };
    assert!(
        code == Some(0) && number != own_number && bytes != own_bytes && own_bytes.len() == 32,
        "{told:?}"
    );
}

/// Starts the job, and grants it a ticket; the id of its request for clones.
fn job(fixture: &Fixture, host: &mut Host, arguments: &str) -> (Child, u64) {
    let child = start(fixture, &format!("sh $D/map_reduce.sh {arguments}"));
    let (id, args) = expect(host, "rt");
    assert_eq!((&args["max_cpus"], &args["min_vms"]), (&json!(4), &json!(2)));
    let view = json!({"uuid": TICKET, "status": "granted", "cpus": 3, "vms": 3, "min_cpus_per_vm": 1});
    reply(host, id, view);
    let (id, args) = expect(host, "clone");
    assert_eq!(args, json!({"ticket": TICKET}));
    (child, id)
}

/// The VM that cloned meets its clones and hears how they have ended.
fn joined(host: &mut Host, ends: Value) {
    for round in [1, 2] {
        let (id, args) = expect(host, "sync");
        assert_eq!(args["ticket"], TICKET);
        reply(host, id, json!({"round": round, "arrived": 3}));
    }
    let (id, args) = expect(host, "join");
    assert_eq!(args["ticket"], TICKET);
    reply(host, id, ends);
}

fn ended(vmid: u32, end: &str, data_bytes: usize) -> Value {
    json!({"vmid": vmid, "end": end, "status": 0, "data_bytes": data_bytes, "reported": end == "joined"})
}

fn base64(text: &str) -> String {
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
}

/// Whatever happened, its last word is that no clone is to be left.
fn killed(host: &mut Host) {
    let (id, args) = expect(host, "kill");
    assert_eq!(args, json!({"ticket": TICKET}));
    reply(host, id, json!([3, 4, 9]));
}

fn a_job_adds_up() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (child, id) = job(&fixture, &mut host, "2 4");
    cloned(&mut host, id, &[3, 4, 9]);
    let parts = [(3, "1137\n"), (4, "1\n"), (9, "1124\n")];
    joined(&mut host, parts.iter().map(|(vmid, data)| ended(*vmid, "joined", data.len())).collect());
    for (vmid, data) in parts {
        let (id, args) = expect(&mut host, "join-data");
        assert_eq!(args["vmid"], vmid);
        reply(&mut host, id, json!({"data": base64(data), "bytes": data.len()}));
    }
    killed(&mut host);
    assert_eq!(end(child), done(0, "2262\n"));
}

fn a_job_with_a_part_missing() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (child, id) = job(&fixture, &mut host, "");
    cloned(&mut host, id, &[3, 4]);
    joined(&mut host, json!([ended(3, "joined", 0), ended(4, "killed", 0)]));
    killed(&mut host);
    assert_eq!(end(child), (Some(1), String::new(), "4 killed 0\n".to_owned()));
}

fn a_job_in_a_clone() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(0);
    let (child, _) = job(&fixture, &mut host, "");
    drop(host);
    let mut host = fixture.ready(4);
    let (id, args) = expect(&mut host, "sync");
    assert_eq!(args, json!({}));
    reply(&mut host, id, json!({"round": 1, "arrived": 4}));
    // Its place among the clones of the ticket is the second of three, whatever their numbers are.
    let vm = |vmid: u32, ticket: &str| json!({"vmid": vmid, "ip": "100.64.0.9", "state": "ready", "host": "h", "ticket": ticket});
    let master = json!({"vmid": 0, "ip": "100.64.0.1", "state": "ready", "host": "h"});
    let (id, args) = expect(&mut host, "list");
    assert_eq!(args, json!({"from": 0}));
    let others = "ffffffff-6f0b-4b8e-9a53-2d1f3a3c1b11";
    reply(&mut host, id, json!({"members": [master, vm(2, others), vm(3, TICKET)], "next": 4}));
    let (id, args) = expect(&mut host, "list");
    assert_eq!(args, json!({"from": 4}));
    reply(&mut host, id, json!({"members": [vm(4, TICKET), vm(9, TICKET)]}));
    let (id, _) = expect(&mut host, "sync");
    reply(&mut host, id, json!({"round": 2, "arrived": 4}));
    let (id, args) = expect(&mut host, "leave-data");
    assert_eq!(args, json!({"offset": 0, "data": base64("1\n")}), "3, 6, 9, …");
    reply(&mut host, id, Value::Null);
    let (id, args) = expect(&mut host, "leave");
    assert_eq!(args, json!({"status": 0, "noreport": false}));
    refuse(&mut host, id, 5, "not as it is");
    let (code, told, words) = end(child);
    assert_eq!((code, told.as_str(), words.as_str()), (Some(5), "", "gc: join: not as it is\n"));
    is_quiet(&mut host);
}

fn a_job_without_a_ticket() {
    let fixture = Fixture::new();
    // In a clone `gc join` would end the VM.
    let mut host = fixture.ready(4);
    let child = start(&fixture, "sh $D/map_reduce.sh");
    let (id, _) = expect(&mut host, "rt");
    refuse(&mut host, id, 16, "not as it is");
    assert_eq!(end(child), (Some(1), String::new(), "gc: rt: not as it is\n".to_owned()));
    is_quiet(&mut host);
}

fn a_job_without_clones() {
    let fixture = Fixture::new();
    let mut host = fixture.ready(4);
    let (child, id) = job(&fixture, &mut host, "");
    refuse(&mut host, id, 116, "not as it is");
    assert_eq!(end(child), (Some(116), String::new(), "gc: clone: not as it is\n".to_owned()));
    is_quiet(&mut host);
}
