//! Calls to gc-agent.

use patina_abi::LINE_MAX_BYTES;
use patina_abi::lines::LineBuffer;
use patina_abi::link::{Answer, CallError};
use patina_abi::local::{Request, SOCKET};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to the agent: several calls, one after another.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Connects to the agent of this guest.
    ///
    /// # Errors
    /// ENOTCONN when there is none.
    pub fn open() -> Result<Self, CallError> {
        Self::open_at(Path::new(SOCKET))
    }

    fn open_at(socket: &Path) -> Result<Self, CallError> {
        Ok(Self { stream: UnixStream::connect(socket).map_err(|e| failed("connect to gc-agent", &e))? })
    }

    /// Calls a verb and returns what it returns.
    ///
    /// # Errors
    /// The verb's own error; ENOTCONN when the agent does not answer.
    pub fn call(&mut self, request: &Request) -> Result<Value, CallError> {
        let mut line = serde_json::to_vec(request).map_err(|e| failed("encode the call", &e))?;
        line.push(b'\n');
        self.stream.write_all(&line).map_err(|e| failed("call gc-agent", &e))?;
        let answer = read_line(&mut self.stream).map_err(|e| failed("read gc-agent's answer", &e))?;
        parse(&answer)
    }

    /// Waits for the machine's end, which is not seen from inside.
    pub fn wait_for_end(mut self) -> CallError {
        match self.stream.read(&mut [0; 16]) {
            Ok(_) | Err(_) => CallError {
                code: libc::EIO,
                message:
                    "the host has taken what this VM left, and has not ended it: gc-agent has gone instead"
                        .into(),
            },
        }
    }
}

/// Calls the agent at `socket` once.
///
/// # Errors
/// As for [`Connection::call`].
pub fn call(socket: &Path, request: &Request) -> Result<Value, CallError> {
    Connection::open_at(socket)?.call(request)
}

fn failed(what: &str, e: &dyn std::fmt::Display) -> CallError {
    CallError { code: libc::ENOTCONN, message: format!("{what}: {e}; is gc-agent running?") }
}

/// Reads an answer's line.
///
/// # Errors
/// As for [`call`].
pub fn parse(answer: &[u8]) -> Result<Value, CallError> {
    match serde_json::from_slice(answer).map_err(|e| failed("read gc-agent's answer", &e))? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(error) => Err(error),
    }
}

fn read_line(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut lines = LineBuffer::new(LINE_MAX_BYTES);
    let mut chunk = [0; 4096];
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        lines.push(chunk.get(..count).unwrap_or_default());
        match lines.next_line() {
            Ok(Some(line)) => return Ok(line),
            Ok(None) => {}
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}
