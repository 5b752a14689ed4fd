//! `vmctl exec`: runs a program in a guest. Passes on its input, output, signals and exit code.

use super::{
    Context,
    cluster::{Care, Where},
};
use crate::{
    error::CtlError,
    terminal::{RawMode, window_size},
    values,
};
use patina_proto::v1::{
    ExecRequest, ExecResponse, ExecStart, StdinEnd, exec_request::Message, exec_response,
};
use std::{
    io::{self, Write as _},
    process::ExitCode,
};
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Streaming;

/// Bytes of input sent at once; vmmd takes up to 64 KiB.
const CHUNK_BYTES: usize = 32 * 1024;

/// Arguments of `vmctl exec`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Pass standard input on, which is done anyway.
    #[arg(short, long, overrides_with = "no_stdin")]
    interactive: bool,
    /// Run it on a terminal of its own. Where vmctl has none, what it is given is typed on it, and
    /// then ^D.
    #[arg(short, long)]
    pub tty: bool,
    /// Do not read standard input: the program's ends at once.
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
    /// Add a variable to its environment.
    #[arg(short, long, value_parser = values::guest_variable(), value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Its working directory.
    #[arg(short, long, value_name = "DIRECTORY", value_parser = values::guest_utf8())]
    workdir: Option<String>,
    #[command(flatten)]
    place: Where,
    /// The VM.
    #[arg(value_parser = values::utf8())]
    pub name: String,
    /// The program and its arguments; `--` may stand before it.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_names = ["COMMAND", "ARG"],
        value_parser = values::guest_utf8()
    )]
    pub argv: Vec<String>,
}

/// Runs the program: its exit code, 128 + signal when a signal ended it.
pub async fn run(context: &Context, arguments: Arguments) -> Result<ExitCode, CtlError> {
    let mut client = context.client_of(arguments.place, &arguments.name, Care::Change).await?;
    let (requests, outgoing) = mpsc::channel(16);
    let (tty, no_stdin) = (arguments.tty, arguments.no_stdin);
    send(&requests, Message::Start(start(arguments))).await;
    let incoming = client.exec(ReceiverStream::new(outgoing)).await?.into_inner();
    let _raw = if tty { RawMode::enter()? } else { None };
    let signals = tokio::spawn(forward_signals(requests.clone(), tty));
    let input = tokio::spawn(forward_input(requests, no_stdin));
    let result = print(incoming).await;
    signals.abort();
    input.abort();
    result
}

fn start(arguments: Arguments) -> ExecStart {
    ExecStart {
        name: arguments.name,
        argv: arguments.argv,
        env: arguments.env,
        cwd: arguments.workdir.unwrap_or_default(),
        tty: arguments.tty,
        window: if arguments.tty { window_size() } else { None },
    }
}

/// Prints what the program prints until it ends.
async fn print(mut incoming: Streaming<ExecResponse>) -> Result<ExitCode, CtlError> {
    while let Some(response) = incoming.next().await {
        match response?.message {
            Some(exec_response::Message::Stdout(bytes)) => crate::output::write(&bytes)?,
            Some(exec_response::Message::Stderr(bytes)) => io::stderr()
                .write_all(&bytes)
                .map_err(|source| CtlError::Stream { what: "write to standard error", source })?,
            Some(exec_response::Message::Exit(exit)) => {
                // Linux gives exit codes 0..=255; anything else would be a vmmd that does not keep
                // to its interface.
                return Ok(ExitCode::from(u8::try_from(exit.code).unwrap_or(u8::MAX)));
            }
            None => {}
        }
    }
    Err(CtlError::CutShort("exec"))
}

/// Sends standard input, all of it or none, and that it has ended.
async fn forward_input(requests: mpsc::Sender<ExecRequest>, no_stdin: bool) {
    if !no_stdin && let Err(error) = send_input(&requests).await {
        patina_daemon::say!("error: read standard input: {error}");
    }
    send(&requests, Message::StdinEnd(StdinEnd {})).await;
}

async fn send_input(requests: &mpsc::Sender<ExecRequest>) -> io::Result<()> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = stdin.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        send(requests, Message::Stdin(buffer[..count].to_vec())).await;
    }
}

/// Passes signals on by their numbers, which are the same in the guest; on a terminal of its own
/// the program gets them as keys, and we tell it the window's size.
async fn forward_signals(requests: mpsc::Sender<ExecRequest>, tty: bool) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut user1 = signal(SignalKind::user_defined1())?;
    let mut user2 = signal(SignalKind::user_defined2())?;
    let mut window = signal(SignalKind::window_change())?;
    loop {
        let kind = tokio::select! {
            _ = interrupt.recv() => SignalKind::interrupt(),
            _ = terminate.recv() => SignalKind::terminate(),
            _ = hangup.recv() => SignalKind::hangup(),
            _ = quit.recv() => SignalKind::quit(),
            _ = user1.recv() => SignalKind::user_defined1(),
            _ = user2.recv() => SignalKind::user_defined2(),
            _ = window.recv() => SignalKind::window_change(),
        };
        if kind != SignalKind::window_change() {
            send(&requests, Message::Signal(kind.as_raw_value())).await;
        } else if let (true, Some(size)) = (tty, window_size()) {
            send(&requests, Message::Window(size)).await;
        }
    }
}

/// Sends a message; when vmmd has closed the stream, the loop that reads its answers says why.
async fn send(requests: &mpsc::Sender<ExecRequest>, message: Message) {
    drop(requests.send(ExecRequest { message: Some(message) }).await);
}
