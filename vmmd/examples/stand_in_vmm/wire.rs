//! Lines with descriptors, and the frames of an agent's session.

use patina_abi::exec::{FrameType, HEADER_BYTES, header, parse_header};
use patina_control::{messages::Opened, rights};
use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

/// A line and what came with it; None when the connection was closed or broke first.
pub fn receive(stream: &UnixStream) -> (Option<Vec<u8>>, Vec<OwnedFd>) {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let mut byte = [0; 1];
        let Ok((1.., more)) = rights::receive(stream, &mut byte) else { return (None, descriptors) };
        line.push(byte[0]);
        descriptors.extend(more);
    }
    (Some(line), descriptors)
}

pub fn send(stream: &UnixStream, opened: &Opened, descriptors: &[OwnedFd]) {
    let mut line = serde_json::to_vec(opened).unwrap();
    line.push(b'\n');
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    rights::send(stream, &line, &descriptors).unwrap();
}

pub fn say<T: serde::Serialize>(stream: &mut UnixStream, line: &T) {
    assert!(try_say(stream, line), "the peer listens");
}

/// Whether it could be said.
pub fn try_say<T: serde::Serialize>(stream: &mut UnixStream, line: &T) -> bool {
    let mut bytes = serde_json::to_vec(line).unwrap();
    bytes.push(b'\n');
    stream.write_all(&bytes).is_ok()
}

pub fn frame(reader: &mut impl Read) -> Option<(FrameType, Vec<u8>)> {
    let mut bytes = [0; HEADER_BYTES];
    reader.read_exact(&mut bytes).ok()?;
    let (kind, length) = parse_header(bytes).unwrap();
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).ok()?;
    Some((kind, payload))
}

pub fn put(stream: &mut UnixStream, kind: FrameType, payload: &[u8]) {
    stream.write_all(&header(kind, u32::try_from(payload.len()).unwrap())).unwrap();
    stream.write_all(payload).unwrap();
}
