//! Exec, console, logs, and what guests ask.

use crate::bench::{Client, kill, ready, tell, vm};
use patina_proto::v1::{
    self, ExecResponse, console_request, exec_request, exec_response::Message, logs_request::Source,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming};

pub fn start(name: &str, argv: &[&str]) -> v1::ExecRequest {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let start = v1::ExecStart { name: name.into(), argv, ..Default::default() };
    v1::ExecRequest { message: Some(exec_request::Message::Start(start)) }
}

fn stdin(bytes: &[u8]) -> v1::ExecRequest {
    v1::ExecRequest { message: Some(exec_request::Message::Stdin(bytes.into())) }
}

pub async fn exec(client: &mut Client, requests: Vec<v1::ExecRequest>) -> Result<(String, i32), Status> {
    let mut answers = client.exec(tokio_stream::iter(requests)).await?.into_inner();
    let (mut output, mut code) = (String::new(), None);
    while let Some(ExecResponse { message: Some(message) }) = answers.message().await? {
        match message {
            Message::Stdout(bytes) | Message::Stderr(bytes) => output += &String::from_utf8(bytes).unwrap(),
            Message::Exit(exit) => code = Some(exit.code),
        }
    }
    Ok((output, code.expect("the last message is the exit")))
}

/// What a program says, and its exit code.
pub async fn run(client: &mut Client, name: &str, argv: &[&str]) -> (String, i32) {
    exec(client, vec![start(name, argv)]).await.unwrap()
}

/// What the host answers to a call of a guest.
pub async fn ask(client: &mut Client, name: &str, verb: &str, args: &str) -> serde_json::Value {
    let (text, _) = exec(client, vec![start(name, &["ask", verb, args])]).await.unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A call of a guest after which its VM ends: the answer may be lost with the program that waits
/// for it.
pub async fn ask_last(client: &mut Client, name: &str, verb: &str, args: &str) {
    if let Ok((text, _)) = exec(client, vec![start(name, &["ask", verb, args])]).await {
        let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(answer["error"].is_null(), "{answer}");
    }
}

/// What the guest's `list` says.
pub async fn members(client: &mut Client, name: &str) -> String {
    ask(client, name, "list", "null").await.to_string()
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn programs_run_with_input_output_and_exit_codes() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("a", "")).await;
        let ran = exec(&mut client, vec![start("a", &["echo", "hello", "there"])]).await.unwrap();
        assert_eq!(ran, ("hello there".into(), 0));
        assert_eq!(exec(&mut client, vec![start("a", &["fail", "7"])]).await.unwrap().1, 7);
        assert_eq!(exec(&mut client, vec![start("a", &["nosuch"])]).await.unwrap().1, 127);
        // The client ends its requests: so does the program's input.
        let ran = exec(&mut client, vec![start("a", &["cat"]), stdin(b"one "), stdin(b"two")]).await.unwrap();
        assert_eq!(ran, ("one two".into(), 0));
        let members = members(&mut client, "a").await;
        assert!(members.contains(r#""ip":"100.64.0.1","state":"ready""#), "{members}");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn what_cannot_be_run_is_refused() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        client.create_vm(vm("slow", "slow")).await.unwrap();
        let mut code = async |requests| exec(&mut client, requests).await.unwrap_err().code();
        assert_eq!(code(vec![start("slow", &["echo"])]).await, Code::FailedPrecondition);
        assert_eq!(code(vec![start("nobody", &["echo"])]).await, Code::NotFound);
        assert_eq!(code(vec![start("slow", &[])]).await, Code::InvalidArgument);
        assert_eq!(code(vec![stdin(b"x")]).await, Code::InvalidArgument);
        assert_eq!(code(vec![]).await, Code::InvalidArgument);
    });
}

async fn logs(client: &mut Client, name: &str, follow: bool, source: Source) -> Streaming<v1::LogsResponse> {
    let mut request = v1::LogsRequest { name: name.into(), follow, ..Default::default() };
    request.set_source(source);
    client.logs(request).await.unwrap().into_inner()
}

async fn read_until(log: &mut Streaming<v1::LogsResponse>, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let next = log.message().await.unwrap().unwrap_or_else(|| panic!("the log ended: {seen}"));
        seen += &String::from_utf8(next.data).unwrap();
    }
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_client_that_goes_away_ends_its_program() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("a", "")).await;
        let mut log = logs(&mut client, "a", true, Source::Vmm).await;
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        requests.send(start("a", &["hang"])).await.unwrap();
        let mut answers = client.exec(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        let first = answers.message().await.unwrap().unwrap().message;
        assert_eq!(first, Some(Message::Stdout(b"hanging".into())));
        drop((requests, answers));
        read_until(&mut log, "session closed").await;
        kill(&mut client, "a").await;
        assert!(log.next().await.is_none(), "the log of an ended VM ends");
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn the_console_goes_both_ways_and_its_log_stays() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("a", "")).await;
        let attach = console_request::Message::Attach(v1::ConsoleAttach { name: "a".into() });
        let input = console_request::Message::Input(b"hi".into());
        let requests = [attach, input].map(|message| v1::ConsoleRequest { message: Some(message) });
        let mut console = client.console(tokio_stream::iter(requests)).await.unwrap().into_inner();
        let mut echoed = Vec::new();
        while echoed.len() < 2 {
            echoed.extend(console.message().await.unwrap().unwrap().output);
        }
        assert_eq!(echoed, b"HI");
        kill(&mut client, "a").await;
        read_until(&mut logs(&mut client, "a", false, Source::Console).await, "stand-in console of a").await;
    });
}
