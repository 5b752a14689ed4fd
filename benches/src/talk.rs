//! Talks to a program in a guest, or to the guest's serial console.

use crate::daemon::{Daemon, DaemonError, call};
use patina_proto::v1::{
    ConsoleAttach, ConsoleRequest, ConsoleResponse, ExecRequest, ExecResponse, ExecStart, console_request,
    exec_request, exec_response,
};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// How long a guest may be silent: touching all pages of a large one takes a minute where its
/// kernel is emulated, several on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);
/// How many messages may wait for vmmd.
const WAITING: usize = 4;

/// A program in a guest, which reads lines and answers lines.
#[derive(Debug)]
pub struct Program {
    name: String,
    input: mpsc::Sender<ExecRequest>,
    output: Streaming<ExecResponse>,
    printed: String,
}

impl Program {
    /// Starts it.
    pub async fn start(daemon: &Daemon, name: &str, argv: &[&str]) -> Result<Self, DaemonError> {
        let (input, requests) = mpsc::channel(WAITING);
        let argv = argv.iter().map(|&word| word.to_owned()).collect();
        let start = ExecStart { name: name.to_owned(), argv, ..ExecStart::default() };
        let message = Some(exec_request::Message::Start(start));
        let gone = |_| said("a program", name, "nothing");
        input.send(ExecRequest { message }).await.map_err(gone)?;
        let output =
            daemon.client.clone().exec(ReceiverStream::new(requests)).await.map_err(call("Exec", name))?;
        Ok(Self { name: name.to_owned(), input, output: output.into_inner(), printed: String::new() })
    }

    /// Says a line and waits for the line that it answers with.
    pub async fn ask(&mut self, line: &str) -> Result<String, DaemonError> {
        let message = Some(exec_request::Message::Stdin(format!("{line}\n").into()));
        let gone = |_| said("a program", &self.name, "nothing");
        self.input.send(ExecRequest { message }).await.map_err(gone)?;
        self.line().await
    }

    /// The next line that it prints.
    pub async fn line(&mut self) -> Result<String, DaemonError> {
        loop {
            if let Some((line, rest)) = self.printed.split_once('\n') {
                let line = line.to_owned();
                self.printed = rest.to_owned();
                return Ok(line);
            }
            let message = next("a program", &self.name, &mut self.output).await?;
            match message.message {
                Some(exec_response::Message::Stdout(bytes) | exec_response::Message::Stderr(bytes)) => {
                    self.printed.push_str(&String::from_utf8_lossy(&bytes));
                }
                other => {
                    let last = format!("{}{other:?}", self.printed);
                    return Err(said("a program", &self.name, &last));
                }
            }
        }
    }
}

/// The serial console of a guest.
#[derive(Debug)]
pub struct Console {
    name: String,
    input: mpsc::Sender<ConsoleRequest>,
    output: Streaming<ConsoleResponse>,
    printed: String,
}

impl Console {
    /// Attaches to it.
    pub async fn attach(daemon: &Daemon, name: &str) -> Result<Self, DaemonError> {
        let (input, requests) = mpsc::channel(WAITING);
        let attach = ConsoleAttach { name: name.to_owned() };
        let gone = |_| said("the console", name, "nothing");
        let message = Some(console_request::Message::Attach(attach));
        input.send(ConsoleRequest { message }).await.map_err(gone)?;
        let output = daemon.client.clone().console(ReceiverStream::new(requests)).await;
        let output = output.map_err(call("Console", name))?.into_inner();
        Ok(Self { name: name.to_owned(), input, output, printed: String::new() })
    }

    /// Types, and waits until the guest has printed `expected`.
    pub async fn answer(&mut self, text: &str, expected: &str) -> Result<(), DaemonError> {
        let message = Some(console_request::Message::Input(text.to_owned().into()));
        let gone = |_| said("the console", &self.name, "nothing");
        self.input.send(ConsoleRequest { message }).await.map_err(gone)?;
        while !self.printed.contains(expected) {
            let message = next("the console", &self.name, &mut self.output).await;
            let message = message.map_err(|error| match error {
                DaemonError::Said { .. } => said("the console", &self.name, &self.printed),
                other => other,
            })?;
            self.printed.push_str(&String::from_utf8_lossy(&message.output));
        }
        self.printed.clear();
        Ok(())
    }
}

async fn next<T>(what: &'static str, name: &str, output: &mut Streaming<T>) -> Result<T, DaemonError> {
    let message = timeout(PATIENCE, output.message()).await;
    let message = message.map_err(|_| said(what, name, "nothing in time"))?.map_err(call(what, name))?;
    message.ok_or_else(|| said(what, name, "nothing more"))
}

fn said(what: &'static str, name: &str, said: &str) -> DaemonError {
    DaemonError::Said { what, name: name.to_owned(), said: said.to_owned() }
}
