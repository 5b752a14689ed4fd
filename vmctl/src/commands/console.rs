//! `vmctl console`: the serial console, both ways.

use super::{
    Context,
    cluster::{Care, Where},
};
use crate::{error::CtlError, output, terminal::RawMode};
use patina_proto::v1::{ConsoleAttach, ConsoleRequest, console_request::Message};
use std::io::IsTerminal as _;
use tokio::{io::AsyncReadExt as _, sync::mpsc};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;
/// Bytes of input sent at once.
const CHUNK_BYTES: usize = 4096;

/// Arguments of `vmctl console`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// The VM.
    name: String,
}

/// Attaches until the VM ends, the input ends, or Ctrl-] is pressed.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let mut client = context.client_of(arguments.place, &arguments.name, Care::Change).await?;
    let (requests, outgoing) = mpsc::channel(16);
    // The first message waits in the channel before the call begins: vmmd answers only after it.
    send(&requests, Message::Attach(ConsoleAttach { name: arguments.name.clone() })).await;
    let mut incoming = client.console(ReceiverStream::new(outgoing)).await?.into_inner();
    if std::io::stdin().is_terminal() {
        patina_daemon::say!("attached to the console of {}; Ctrl-] detaches", arguments.name);
    }
    let raw = RawMode::enter()?;
    let mut input = tokio::spawn(forward(requests));
    let result = loop {
        tokio::select! {
            part = incoming.next() => match part {
                Some(Ok(part)) => output::write(&part.output)?,
                Some(Err(status)) => break Err(status.into()),
                None => break Ok(()),
            },
            read = &mut input => break read.unwrap_or(Ok(())),
        }
    };
    drop(raw);
    if std::io::stdin().is_terminal() {
        patina_daemon::say!("\ndetached");
    }
    result
}

/// Sends standard input until it ends or Ctrl-] comes.
async fn forward(requests: mpsc::Sender<ConsoleRequest>) -> Result<(), CtlError> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let read = stdin.read(&mut buffer).await;
        let count = read.map_err(|source| CtlError::Stream { what: "read standard input", source })?;
        let escape = buffer[..count].iter().position(|&byte| byte == ESCAPE);
        let typed = &buffer[..escape.unwrap_or(count)];
        if !typed.is_empty() {
            send(&requests, Message::Input(typed.to_vec())).await;
        }
        if count == 0 || escape.is_some() {
            return Ok(());
        }
    }
}

/// Sends a message; when vmmd has closed the stream, the loop that reads its answers says why.
async fn send(requests: &mpsc::Sender<ConsoleRequest>, message: Message) {
    drop(requests.send(ConsoleRequest { message: Some(message) }).await);
}
