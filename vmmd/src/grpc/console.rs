//! `Console`: the serial console, in both directions.

use super::{Answers, Permit, STREAM_QUEUE, status::invalid};
use crate::vms::{Host, Vm};
use patina_control::messages::Open;
use patina_proto::v1::{self, console_request};
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};
use tonic::{Status, Streaming};

/// How long a client may take to say which console.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// Longest answer, bytes.
const CHUNK_BYTES: usize = 16 * 1024;

type Sender = mpsc::Sender<Result<v1::ConsoleResponse, Status>>;

/// Serves one call.
///
/// # Errors
/// The first message is not an attach, or the VM cannot be reached.
pub async fn run(
    host: &Host,
    permit: Permit,
    mut requests: Streaming<v1::ConsoleRequest>,
) -> Result<Answers<v1::ConsoleResponse>, Status> {
    let first = timeout(FIRST_MESSAGE, requests.message())
        .await
        .map_err(|_| invalid("attach", "it did not come in time"))??;
    let Some(console_request::Message::Attach(attach)) = first.and_then(|first| first.message) else {
        return Err(invalid("attach", "the first message says which console"));
    };
    let vm = host.find(&attach.name).await?;
    let console = vm.open(Open::Console).await?;
    let (answers, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(session(vm, requests, console, answers));
    Ok(permit.answers(receiver))
}

async fn session(
    vm: Arc<Vm>,
    requests: Streaming<v1::ConsoleRequest>,
    console: impl AsyncRead + AsyncWrite + Send,
    answers: Sender,
) {
    let (mut output, mut input) = tokio::io::split(console);
    let last = tokio::select! {
        last = relay_output(&mut output, &answers) => last,
        last = relay_input(&vm, requests, &mut input) => last,
        () = answers.closed() => None,
    };
    if let Some(status) = last
        && answers.send(Err(status)).await.is_err()
    {
        tracing::debug!("the client of a console is gone");
    }
}

async fn relay_output(console: &mut (impl AsyncRead + Unpin), answers: &Sender) -> Option<Status> {
    loop {
        let mut output = vec![0; CHUNK_BYTES];
        match console.read(&mut output).await {
            Ok(0) => return None,
            Ok(length) => output.truncate(length),
            Err(error) => return Some(Status::unavailable(format!("read the console: {error}"))),
        }
        answers.send(Ok(v1::ConsoleResponse { output })).await.ok()?;
    }
}

async fn relay_input(
    vm: &Vm,
    mut requests: Streaming<v1::ConsoleRequest>,
    console: &mut (impl AsyncWrite + Unpin),
) -> Option<Status> {
    loop {
        let input = match requests.message().await {
            Ok(Some(v1::ConsoleRequest { message: Some(console_request::Message::Input(input)) })) => input,
            Ok(Some(_)) => return Some(invalid("input", "only input follows an attach")),
            // One who only watches may have ended the stream of requests.
            Ok(None) => std::future::pending().await,
            Err(status) => return Some(status),
        };
        if !input.is_empty() {
            vm.note_typed();
        }
        if let Err(error) = console.write_all(&input).await {
            return Some(Status::unavailable(format!("write to the console: {error}")));
        }
    }
}
