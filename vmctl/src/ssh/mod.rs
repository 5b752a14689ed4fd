//! `ssh://`: a vmmd's Unix socket on another machine, by way of the system's ssh.
//!
//! ssh runs `vmctl dial-stdio` there, which connects its standard input and output to the socket.
//! Its first line is [`GREETING`]; all that follows is the socket's.

mod address;
mod stderr;
mod sys;

pub use address::SshAddress;

use std::{
    io,
    pin::Pin,
    process::{ExitStatus, Stdio},
    task::{Context, Poll},
    thread,
    time::{Duration, Instant},
};
use stderr::Stderr;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// What `vmctl dial-stdio` prints first, once it is connected.
pub const GREETING: &[u8] = b"patina dial-stdio 1\n";
/// Longest first line that is read.
const LINE_MAX: usize = 256;
/// How long the last words of an ssh that has closed its output are waited for.
const ENDING: Duration = Duration::from_secs(5);
/// How long an ssh that is told to end may take.
const GRACE: Duration = Duration::from_secs(1);
/// Exit code of ssh for its own errors.
const SSH_FAILED: i32 = 255;
/// Exit code of a shell that does not find the program.
const NOT_FOUND: i32 = 127;

/// Why there is no connection by way of ssh.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// There is no ssh.
    #[error("start ssh; install OpenSSH's client")]
    Start(#[source] io::Error),
    /// ssh itself has failed.
    #[error("connect to {host} with ssh: {said}; see whether `ssh {host} true` works")]
    Failed {
        /// The host.
        host: String,
        /// What ssh says.
        said: String,
    },
    /// The host has no vmctl.
    #[error(
        "run vmctl on {host} with ssh: {said}; install vmctl there, in the PATH of commands that ssh runs"
    )]
    NotFound {
        /// The host.
        host: String,
        /// What the shell there says.
        said: String,
    },
    /// vmctl there has failed.
    #[error("call vmmd on {host} with ssh: {said}")]
    Refused {
        /// The host.
        host: String,
        /// What vmctl says there, with what to do.
        said: String,
    },
    /// Something prints before vmctl does.
    #[error(
        "call vmmd on {host} with ssh: it answers {line:?} instead of vmctl; its shell's startup files must print nothing without a terminal, and its vmctl must be of this release"
    )]
    Noise {
        /// The host.
        host: String,
        /// The first line.
        line: String,
    },
    /// The pipe to ssh.
    #[error("read from ssh")]
    Read(#[source] io::Error),
}

/// A connection to the socket. Its ssh ends with it.
#[derive(Debug)]
pub struct SshStream {
    stdout: ChildStdout,
    // None once it is closed.
    stdin: Option<ChildStdin>,
    // Dropped last: it ends by itself when its input does.
    _ssh: Ssh,
}

/// A process that is ended and reaped when it is dropped.
#[derive(Debug)]
struct Ssh(Child);

impl Drop for Ssh {
    fn drop(&mut self) {
        let has_ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        if has_ended(&mut self.0) {
            return;
        }
        sys::terminate(self.0.id());
        let deadline = Instant::now() + GRACE;
        while !has_ended(&mut self.0) {
            if Instant::now() > deadline && self.0.start_kill().is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Starts ssh, and waits until vmctl on the other side is connected to its vmmd.
pub async fn connect(address: &SshAddress) -> Result<SshStream, SshError> {
    let mut command = Command::new("ssh");
    command.args(address.arguments()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::prepare(&mut command);
    let mut child = command.spawn().map_err(SshError::Start)?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let mut ssh = Ssh(child);
    let (Some(stdin), Some(mut stdout), Some(stderr)) = pipes else {
        return Err(SshError::Start(io::ErrorKind::BrokenPipe.into()));
    };
    let stderr = Stderr::follow(stderr);
    let line = first_line(&mut stdout).await.map_err(SshError::Read)?;
    if line == GREETING {
        stderr.pass_on();
        return Ok(SshStream { stdout, stdin: Some(stdin), _ssh: ssh });
    }
    let host = address.host().to_owned();
    if !line.is_empty() {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        return Err(SshError::Noise { host, line });
    }
    drop(stdin);
    let status = timeout(ENDING, ssh.0.wait()).await.ok().and_then(Result::ok);
    let said = stderr.said(ENDING).await;
    Err(ended(host, status, said))
}

/// What the exit code of ssh says: its own, or that of the command on the other side.
fn ended(host: String, status: Option<ExitStatus>, said: String) -> SshError {
    let said = match (said.is_empty(), status) {
        (false, _) => said,
        (true, Some(status)) => format!("it has ended without a word ({status})"),
        (true, None) => "it has closed its output".to_owned(),
    };
    match status.and_then(|status| status.code()) {
        Some(SSH_FAILED) | None => SshError::Failed { host, said },
        Some(NOT_FOUND) => SshError::NotFound { host, said },
        Some(_) => SshError::Refused { host, said },
    }
}

/// The first line, or as much of it as there may be.
async fn first_line(stdout: &mut ChildStdout) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    // Byte by byte: what follows is the socket's.
    while line.len() < LINE_MAX && line.last() != Some(&b'\n') {
        match stdout.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(line)
}

impl AsyncRead for SshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(context, buffer)
    }
}

impl AsyncWrite for SshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_write(context, bytes),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stdin {
            Some(stdin) => Pin::new(stdin).poll_flush(context),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stdin = None;
        Poll::Ready(Ok(()))
    }
}
