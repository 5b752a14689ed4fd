//! One call to gc-agent.

use patina_abi::LINE_MAX_BYTES;
use patina_abi::link::{Answer, CallError};
use patina_abi::local::Request;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Calls the agent at `socket` and returns what the verb returns.
///
/// # Errors
/// The verb's own error; ENOTCONN when there is no agent or it does not answer.
pub fn call(socket: &Path, request: &Request) -> Result<serde_json::Value, CallError> {
    let mut line = serde_json::to_vec(request).map_err(|e| failed("encode the call", &e))?;
    line.push(b'\n');
    let mut stream = UnixStream::connect(socket).map_err(|e| failed("connect to gc-agent", &e))?;
    stream.write_all(&line).map_err(|e| failed("call gc-agent", &e))?;
    let answer = read_line(&mut stream).map_err(|e| failed("read gc-agent's answer", &e))?;
    parse(&answer)
}

fn failed(what: &str, e: &dyn std::fmt::Display) -> CallError {
    CallError { code: libc::ENOTCONN, message: format!("{what}: {e}; is gc-agent running?") }
}

/// Reads an answer's line.
///
/// # Errors
/// As for [`call`].
pub fn parse(answer: &[u8]) -> Result<serde_json::Value, CallError> {
    match serde_json::from_slice(answer).map_err(|e| failed("read gc-agent's answer", &e))? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(error) => Err(error),
    }
}

fn read_line(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    while line.last() != Some(&b'\n') {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if line.len() > LINE_MAX_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(line)
}
