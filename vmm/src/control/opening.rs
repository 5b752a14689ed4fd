//! The first line of a connection on the control socket, and the answer to it.

use super::vm::{Failure, Reply};
use crate::note::note;
use patina_abi::LINE_MAX_BYTES;
use patina_control::VERSION;
use patina_control::end::End;
use patina_control::messages::{Open, Opened};
use patina_control::rights;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Writes the answer to an [`Open`]. Returns false if the peer has closed the connection.
pub fn answer(mut stream: &UnixStream, opened: &Opened) -> bool {
    let mut line = serde_json::to_vec(opened).unwrap_or_default();
    line.push(b'\n');
    // A new socket accepts a whole line, unless its peer has closed it.
    stream.write(&line).is_ok_and(|written| written == line.len())
}

/// Sends the outcome of a request to its client. `Ok(false)`: the client does not have what it
/// requested.
///
/// # Errors
/// The VM cannot go on.
pub fn deliver(stream: &UnixStream, outcome: Result<Reply, Failure>) -> Result<bool, End> {
    match outcome {
        Ok(reply) => match send(stream, &reply) {
            Ok(()) => Ok(true),
            Err(error) => {
                note(&format!("answer on the control socket: {error}"));
                Ok(false)
            }
        },
        Err(Failure::Refused(reason)) => {
            answer(stream, &Opened::Error(reason));
            Ok(false)
        }
        Err(Failure::NotPrepared(error)) => {
            answer(stream, &Opened::NotPrepared(error));
            Ok(false)
        }
        Err(Failure::Ended(end)) => {
            answer(stream, &Opened::Error(end.reason.clone()));
            Err(end)
        }
    }
}

fn send(stream: &UnixStream, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(&reply.opened)?;
    line.push(b'\n');
    let files: Vec<_> = reply.files.iter().map(AsFd::as_fd).collect();
    rights::send(stream, &line, &files)
}

/// Reads exactly the first line from the socket, and the descriptors that came with it. Later bytes
/// stay in the socket for whatever serves the connection next. `None`: the line is not complete
/// yet.
///
/// # Errors
/// The peer sends no valid first line. The error is the text to send to it.
pub fn read_open(stream: &UnixStream) -> Result<Option<(Open, Vec<OwnedFd>)>, String> {
    use rustix::net::{RecvFlags, recv};
    const OPEN_MAX_BYTES: usize = 1024;
    const _: () = assert!(OPEN_MAX_BYTES <= LINE_MAX_BYTES);
    let mut head = [0; OPEN_MAX_BYTES];
    let length = match recv(stream, &mut head[..], RecvFlags::PEEK) {
        Ok((0, _)) => return Err("the peer closed the connection before its first line".into()),
        Ok((length, _)) => length,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(format!("read the first line: {error}")),
    };
    let Some(end) = head[..length].iter().position(|byte| *byte == b'\n') else {
        return if length == OPEN_MAX_BYTES { Err("the first line is too long".into()) } else { Ok(None) };
    };
    let (length, descriptors) = rights::receive(stream, &mut head[..=end])
        .map_err(|error| format!("read the first line: {error}"))?;
    if length != end + 1 {
        return Err("read the first line: it is incomplete".into());
    }
    serde_json::from_slice(&head[..end]).map(|open| Some((open, descriptors))).map_err(|error| {
        format!("the first line is invalid for this vmm of control version {VERSION}: {error}")
    })
}
