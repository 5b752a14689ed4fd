//! Sends and receives descriptors with a line (SCM_RIGHTS). Each function makes one system call,
//! and blocks only if the socket does.

use crate::config::LAYERS_MAX;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// Most descriptors that come with a line: a generation's state, a prefault list, the files of the
/// RAM, and a socket to the pager.
pub const DESCRIPTORS_MAX: usize = 3 + LAYERS_MAX;

/// Sends a line with at most [`DESCRIPTORS_MAX`] descriptors. A line is far shorter than a socket's
/// buffer, so it is sent whole or not at all.
///
/// # Errors
/// The kernel's. WouldBlock or WriteZero if a non-blocking socket accepts nothing now or only a
/// part. InvalidInput for too many descriptors.
pub fn send(stream: impl AsFd, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = send_part(stream, line, descriptors)?;
    if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// As [`send`], but where the socket accepts only a part of the line, returns how much. All
/// descriptors go with the first byte.
///
/// # Errors
/// As [`send`]'s.
pub fn send_part(stream: impl AsFd, line: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if descriptors.len() > DESCRIPTORS_MAX || !rights.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(stream, &[IoSlice::new(line)], &mut rights, SendFlags::NOSIGNAL)?)
}

/// Reads into `bytes`. Returns the number of bytes, 0 at the end, and the descriptors that came
/// with them. The kernel closes descriptors beyond [`DESCRIPTORS_MAX`].
///
/// # Errors
/// The kernel's. WouldBlock if a non-blocking socket has nothing now.
pub fn receive(stream: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            descriptors.extend(more);
        }
    }
    Ok((got.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_getfd};
    use std::{fs::File, os::unix::net::UnixStream};

    #[test]
    fn a_line_arrives_with_its_descriptors_which_no_child_inherits() {
        let null = File::open("/dev/null").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        for count in [DESCRIPTORS_MAX, 0] {
            send(&theirs, b"line\n", &vec![null.as_fd(); count]).unwrap();
            let mut bytes = [0; 64];
            let (length, descriptors) = receive(&ours, &mut bytes).unwrap();
            assert_eq!((&bytes[..length], descriptors.len()), (&b"line\n"[..], count));
            assert!(descriptors.iter().all(|fd| fcntl_getfd(fd).unwrap() == FdFlags::CLOEXEC));
        }
        drop(theirs);
        assert_eq!(receive(&ours, &mut [0; 1]).unwrap().0, 0);
    }

    #[test]
    fn too_many_descriptors_are_refused_and_a_full_socket_is_told() {
        let null = File::open("/dev/null").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let many = vec![null.as_fd(); DESCRIPTORS_MAX + 1];
        assert_eq!(send(&theirs, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        theirs.set_nonblocking(true).unwrap();
        let full = std::iter::repeat_with(|| send(&theirs, &[0; 4096], &many[1..])).find_map(Result::err);
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        assert_eq!(send(&theirs, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
