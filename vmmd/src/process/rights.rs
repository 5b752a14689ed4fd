//! Lines that come with descriptors (SCM_RIGHTS).

use super::control_error::ControlError;
use patina_abi::{LINE_MAX_BYTES, lines::LineBuffer};
use patina_control::{
    messages::Opened,
    rights::{self, DESCRIPTORS_MAX},
};
use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};
use tokio::{io::Interest, net::UnixStream};

/// Sends one line with descriptors.
///
/// # Errors
/// The connection broke.
pub async fn send(stream: &UnixStream, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    match rights::send(stream, line, descriptors) {
        // What is asked first is a fresh socket, which has room: no wait for the reactor to say so.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            stream.async_io(Interest::WRITABLE, || rights::send(stream, line, descriptors)).await
        }
        other => other,
    }
}

/// Reads a vmm's answer, and the descriptors that come with it.
///
/// # Errors
/// The connection broke or closed, or what comes is no answer.
pub async fn receive(stream: &UnixStream) -> Result<(Opened, Vec<OwnedFd>), ControlError> {
    let (mut lines, mut descriptors) = (LineBuffer::new(LINE_MAX_BYTES), Vec::new());
    let mut bytes = vec![0; 4096];
    loop {
        let (length, more) =
            stream.async_io(Interest::READABLE, || rights::receive(stream, &mut bytes)).await?;
        if length == 0 {
            return Err(ControlError::Closed);
        }
        lines.push(&bytes[..length]);
        descriptors.extend(more);
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(ControlError::Descriptors(descriptors.len(), DESCRIPTORS_MAX));
        }
        if let Some(line) = lines.next_line()? {
            return Ok((serde_json::from_slice(&line).map_err(ControlError::Parse)?, descriptors));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd};

    async fn answer(line: &str, count: usize) -> Result<(Opened, Vec<OwnedFd>), ControlError> {
        let null = File::open("/dev/null").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (first, rest) = line.split_at(1);
        send(&theirs, first.as_bytes(), &vec![null.as_fd(); count]).await.unwrap();
        theirs.try_write(rest.as_bytes()).unwrap();
        drop(theirs);
        receive(&ours).await
    }

    #[tokio::test]
    async fn a_line_and_its_descriptors_arrive_in_pieces_too() {
        let (opened, sent) = answer("{\"started\":{\"entered_ns\":7}}\n", DESCRIPTORS_MAX).await.unwrap();
        assert_eq!((opened, sent.len()), (Opened::Started { entered_ns: 7 }, DESCRIPTORS_MAX));
        assert!(matches!(answer("\"ok\"\n", 0).await, Ok((Opened::Ok, sent)) if sent.is_empty()));
        assert!(matches!(answer("\"ok\"", 2).await, Err(ControlError::Closed)));
        assert!(matches!(answer("{}\n", 2).await, Err(ControlError::Parse(_))));
    }

    #[tokio::test]
    async fn more_descriptors_than_a_line_may_have_are_refused() {
        let null = File::open("/dev/null").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let many = vec![null.as_fd(); DESCRIPTORS_MAX + 1];
        assert_eq!(send(&theirs, b"x", &many).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        for _ in 0..2 {
            send(&theirs, b"x", &many[1..]).await.unwrap();
        }
        drop(theirs);
        let refused = receive(&ours).await;
        assert!(
            matches!(refused, Err(ControlError::Descriptors(found, DESCRIPTORS_MAX)) if found == 2 * DESCRIPTORS_MAX)
        );
    }
}
