//! `Exec`: connects a gRPC stream with an exec session of the guest's agent ([`patina_abi::exec`]).
//!
//! Each side slows down the other: if the client does not read, the program's output stops, and if
//! the program does not read, the client's input stops. When one side closes, the other is closed,
//! too. The agent kills a program whose session closes.

use super::{Answers, Permit, STREAM_QUEUE, status::invalid};
use crate::vms::Host;
use patina_abi::{
    EXEC_PORT,
    exec::{
        ARGV_MAX, Exit, FrameError, FrameType, HEADER_BYTES, PAYLOAD_MAX_BYTES, Start, header, parse_header,
    },
};
use patina_control::messages::Open;
use patina_daemon::chain;
use patina_proto::v1::{self, exec_request, exec_response};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};
use tonic::{Status, Streaming};

/// How long a client may take to say what to run.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Most bytes of a program's arguments.
pub const ARGV_MAX_BYTES: usize = 32 * 1024;
/// Exit codes of shells for a program that is not there, or cannot be run.
const NOT_FOUND: i32 = 127;
const NOT_RUNNABLE: i32 = 126;

/// Why a session broke.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("talk to the guest's agent")]
    Io(#[from] io::Error),
    #[error("read the agent's frame")]
    Frame(#[from] FrameError),
    #[error("read the agent's frame: type {0:?} is not for a host")]
    Direction(FrameType),
    #[error("parse the program's exit status")]
    Exit(#[source] serde_json::Error),
}

type Sender = mpsc::Sender<Result<v1::ExecResponse, Status>>;

/// Serves one call.
///
/// # Errors
/// The first message is not a start, or the VM cannot be reached.
pub async fn run(
    host: &Host,
    permit: Permit,
    mut requests: Streaming<v1::ExecRequest>,
) -> Result<Answers<v1::ExecResponse>, Status> {
    let first = timeout(FIRST_MESSAGE, requests.message())
        .await
        .map_err(|_| invalid("start", "it did not come in time"))??;
    let Some(exec_request::Message::Start(start)) = first.and_then(|first| first.message) else {
        return Err(invalid("start", "the first message says what to run"));
    };
    let vm = host.find(&start.name).await?;
    let start = check(start)?;
    let mut agent = vm.open(Open::Dial { port: EXEC_PORT }).await?;
    let start = serde_json::to_vec(&start).map_err(|e| Status::internal(e.to_string()))?;
    send(&mut agent, FrameType::Start, &start).await.map_err(|e| broken(&e.into()))?;
    let (answers, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(session(requests, agent, answers));
    Ok(permit.answers(receiver))
}

fn check(start: v1::ExecStart) -> Result<Start, Status> {
    let bytes: usize = start.argv.iter().chain(&start.env).map(String::len).sum();
    if start.argv.first().is_none_or(String::is_empty) {
        return Err(invalid("argv", "name a program"));
    }
    if start.argv.len() > ARGV_MAX {
        return Err(invalid("argv", "more than 1024 arguments"));
    }
    if bytes + start.cwd.len() > ARGV_MAX_BYTES {
        return Err(invalid("argv", "arguments and environment of more than 32 KiB"));
    }
    if start.argv.iter().chain(&start.env).chain([&start.cwd]).any(|text| text.contains('\0')) {
        return Err(invalid("argv", "a zero byte ends no argument"));
    }
    let window = start.window.as_ref().map_or(Ok((24, 80)), size)?;
    Ok(Start { argv: start.argv, env: start.env, cwd: start.cwd, tty: start.tty.then_some(window) })
}

fn size(window: &v1::WindowSize) -> Result<(u16, u16), Status> {
    match (u16::try_from(window.rows), u16::try_from(window.cols)) {
        (Ok(rows), Ok(cols)) => Ok((rows, cols)),
        _ => Err(invalid("window", "rows and columns are below 65536")),
    }
}

async fn session(
    requests: Streaming<v1::ExecRequest>,
    agent: impl AsyncRead + AsyncWrite + Send,
    answers: Sender,
) {
    let (mut output, mut input) = tokio::io::split(agent);
    // Both are dropped when one of the three is done, and the connection with them.
    tokio::select! {
        result = relay_output(&mut output, &answers) => {
            if let Err(error) = result {
                report(&answers, broken(&error)).await;
            }
        }
        status = relay_input(requests, &mut input) => report(&answers, status).await,
        () = answers.closed() => {}
    }
}

async fn report(answers: &Sender, status: Status) {
    if answers.send(Err(status)).await.is_err() {
        tracing::debug!("the client of an exec session is gone");
    }
}

fn broken(error: &SessionError) -> Status {
    Status::unavailable(chain(error))
}

/// Until the program's end, or until the client is gone.
async fn relay_output(agent: &mut (impl AsyncRead + Unpin), answers: &Sender) -> Result<(), SessionError> {
    loop {
        let mut bytes = [0; HEADER_BYTES];
        agent.read_exact(&mut bytes).await?;
        let (kind, length) = parse_header(bytes)?;
        let mut payload = vec![0; length];
        agent.read_exact(&mut payload).await?;
        let messages = match kind {
            FrameType::Stdout => vec![exec_response::Message::Stdout(payload)],
            FrameType::Stderr => vec![exec_response::Message::Stderr(payload)],
            FrameType::Exit => ending(serde_json::from_slice(&payload).map_err(SessionError::Exit)?),
            other => return Err(SessionError::Direction(other)),
        };
        for message in messages {
            if answers.send(Ok(v1::ExecResponse { message: Some(message) })).await.is_err() {
                return Ok(());
            }
        }
        if kind == FrameType::Exit {
            return Ok(());
        }
    }
}

/// The last messages of a session: as a shell says it.
fn ending(exit: Exit) -> Vec<exec_response::Message> {
    let last = |code, signal| exec_response::Message::Exit(v1::ExecExit { code, signal });
    match exit {
        Exit { error: Some(error), code, .. } => {
            let missing =
                ["not found", "No such file", "os error 2)"].iter().any(|text| error.contains(text));
            let code = code.unwrap_or(if missing { NOT_FOUND } else { NOT_RUNNABLE });
            vec![exec_response::Message::Stderr(format!("{error}\n").into_bytes()), last(code, 0)]
        }
        Exit { signal: Some(signal), .. } => vec![last(128_i32.saturating_add(signal), signal)],
        Exit { code, .. } => vec![last(code.unwrap_or(NOT_RUNNABLE), 0)],
    }
}

/// Until the client breaks a rule or the agent no longer takes anything; a client that has said all
/// it has to is waited for.
async fn relay_input(
    mut requests: Streaming<v1::ExecRequest>,
    agent: &mut (impl AsyncWrite + Unpin),
) -> Status {
    let mut ended = false;
    loop {
        let message = match requests.message().await {
            Ok(Some(request)) => request.message,
            Ok(None) => break,
            Err(status) => return status,
        };
        let sent = match message {
            Some(exec_request::Message::Stdin(bytes)) if bytes.len() > PAYLOAD_MAX_BYTES => {
                return invalid("stdin", "more than 64 KiB at once");
            }
            Some(exec_request::Message::Stdin(_)) if ended => {
                return invalid("stdin", "it has been ended before");
            }
            // An empty frame would end the input.
            Some(exec_request::Message::Stdin(bytes)) if bytes.is_empty() => Ok(()),
            Some(exec_request::Message::Stdin(bytes)) => send(agent, FrameType::Stdin, &bytes).await,
            Some(exec_request::Message::StdinEnd(_)) if ended => Ok(()),
            Some(exec_request::Message::StdinEnd(_)) => {
                ended = true;
                send(agent, FrameType::Stdin, &[]).await
            }
            Some(exec_request::Message::Window(window)) => match size(&window) {
                Ok((rows, cols)) => {
                    let [[a, b], [c, d]] = [rows.to_le_bytes(), cols.to_le_bytes()];
                    send(agent, FrameType::Window, &[a, b, c, d]).await
                }
                Err(status) => return status,
            },
            Some(exec_request::Message::Signal(signal)) => match u8::try_from(signal) {
                Ok(signal @ 1..=64) => send(agent, FrameType::Signal, &[signal]).await,
                _ => return invalid("signal", "not between 1 and 64"),
            },
            Some(exec_request::Message::Start(_)) => return invalid("start", "it has been said before"),
            None => return invalid("message", "empty, or of a later version"),
        };
        if sent.is_err() {
            ended = true;
            break;
        }
    }
    if !ended && let Err(error) = send(agent, FrameType::Stdin, &[]).await {
        tracing::debug!(error = %chain(&error), "end the input of a program");
    }
    // Nothing more goes in. Should the connection be broken, the agent's last frames may still be
    // on their way: the output's side reads them, or the break, and ends the session.
    std::future::pending().await
}

async fn send(to: &mut (impl AsyncWrite + Unpin), kind: FrameType, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&header(kind, length));
    frame.extend_from_slice(payload);
    to.write_all(&frame).await?;
    to.flush().await
}

#[cfg(test)]
#[path = "exec_test.rs"]
mod tests;
