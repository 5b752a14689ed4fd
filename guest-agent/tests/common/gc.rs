//! The command with the fixture's agent, and what its host hears of it.

use super::{Fixture, Host};
use patina_abi::LINE_MAX_BYTES;
use patina_abi::link::{Answer, CallError, FromAgent, FromHost};
use patina_abi::local::{IDENTITY_FILE, SOCKET};
use serde_json::Value;
use std::io::BufRead;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A script in a mount namespace where agent, identity and `gc` are the fixture's, and in its
/// directory.
pub fn shell(fixture: &Fixture, script: &str) -> Command {
    let (socket, identity) = (fixture.path("local"), fixture.path("identity"));
    let script = format!(
        "mount -t tmpfs gc-test /run && mkdir /run/gridcentric && ln -s {} {SOCKET} && ln -s {} {IDENTITY_FILE} && {script}",
        socket.display(),
        identity.display()
    );
    let programs = Path::new(env!("CARGO_BIN_EXE_gc")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("unshare");
    command.args(["-r", "-m", "sh", "-c", &script]).env("PATH", path).current_dir(fixture.dir.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn gc(fixture: &Fixture, arguments: &str) -> Child {
    shell(fixture, &format!("exec gc {arguments}")).spawn().unwrap()
}

/// How it ended: exit code, standard output, standard error.
pub fn end(child: Child) -> (Option<i32>, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub fn done(code: i32, stdout: &str) -> (Option<i32>, String, String) {
    (Some(code), stdout.to_owned(), String::new())
}

/// The next message must be this request: its id and arguments. No line is longer than it may be.
pub fn expect(host: &mut Host, wanted: &str) -> (u64, Value) {
    let mut line = String::new();
    host.stream.read_line(&mut line).unwrap();
    assert!(line.len() <= LINE_MAX_BYTES, "{}", line.len());
    match serde_json::from_str(&line).unwrap() {
        FromAgent::Request { id, verb, args } if verb == wanted => (id, args.read().unwrap()),
        other => panic!("{other:?} instead of {wanted}"),
    }
}

pub fn reply(host: &mut Host, id: u64, value: Value) {
    host.say(&FromHost::Reply { id, result: Answer::Ok(value) });
}

pub fn refuse(host: &mut Host, id: u64, code: i32, message: &str) {
    let result = Answer::Error(CallError { code, message: message.into() });
    host.say(&FromHost::Reply { id, result });
}
