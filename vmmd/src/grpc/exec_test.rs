use super::*;
use exec_response::Message;

async fn relayed(frames: &[(FrameType, &[u8])]) -> (Vec<Message>, Result<(), SessionError>) {
    let (answers, mut receiver) = mpsc::channel(16);
    let mut bytes = Vec::new();
    for (kind, payload) in frames {
        send(&mut bytes, *kind, payload).await.unwrap();
    }
    let result = relay_output(&mut bytes.as_slice(), &answers).await;
    drop(answers);
    let mut messages = Vec::new();
    while let Some(answer) = receiver.recv().await {
        messages.push(answer.unwrap().message.unwrap());
    }
    (messages, result)
}

fn exit(code: i32, signal: i32) -> Message {
    Message::Exit(v1::ExecExit { code, signal })
}

#[tokio::test]
async fn output_comes_in_order_and_ends_with_the_exit() {
    let frames: [(FrameType, &[u8]); 4] = [
        (FrameType::Stdout, b"a"),
        (FrameType::Stderr, b"b"),
        (FrameType::Exit, br#"{"code":3}"#),
        (FrameType::Stdout, b"too late"),
    ];
    let (messages, result) = relayed(&frames).await;
    assert!(result.is_ok());
    assert_eq!(messages, [Message::Stdout(b"a".into()), Message::Stderr(b"b".into()), exit(3, 0)]);
}

#[tokio::test]
async fn an_agent_that_breaks_the_rules_ends_its_session() {
    let (_, result) = relayed(&[(FrameType::Stdin, b"x")]).await;
    assert!(matches!(result, Err(SessionError::Direction(FrameType::Stdin))));
    let (_, result) = relayed(&[(FrameType::Exit, b"{")]).await;
    assert!(matches!(result, Err(SessionError::Exit(_))));
    let (messages, result) = relayed(&[(FrameType::Stdout, b"cut off")]).await;
    assert!(matches!(result, Err(SessionError::Io(_))));
    assert_eq!(messages.len(), 1);
}

#[test]
fn ends_read_as_shells_say_them() {
    let signal = Exit { signal: Some(9), ..Exit::default() };
    assert_eq!(ending(signal), [exit(137, 9)]);
    let error = |text: &str| Exit { error: Some(text.into()), ..Exit::default() };
    assert_eq!(ending(error("nosuch: not found")).last(), Some(&exit(127, 0)));
    assert_eq!(ending(error("/etc/passwd: permission denied")).last(), Some(&exit(126, 0)));
    assert!(matches!(&ending(error("why"))[0], Message::Stderr(text) if text == b"why\n"));
}

#[test]
fn what_cannot_be_run_is_refused_before_the_guest_sees_it() {
    let start = |argv: &[&str]| v1::ExecStart {
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        ..v1::ExecStart::default()
    };
    assert!(check(start(&["true"])).is_ok());
    assert!(check(start(&[])).is_err());
    assert!(check(start(&[""])).is_err());
    assert!(check(start(&["a\0b"])).is_err());
    assert!(check(start(&vec!["a"; ARGV_MAX])).is_ok());
    assert!(check(start(&vec!["a"; ARGV_MAX + 1])).is_err());
    assert!(check(start(&["a", &"x".repeat(ARGV_MAX_BYTES)])).is_err());
    let window = Some(v1::WindowSize { rows: 70_000, cols: 1 });
    assert!(check(v1::ExecStart { window, ..start(&["sh"]) }).is_err());
}
