//! The client's side of a vmm's control socket ([`vmm::api::control`]).

use super::generation::GenerationError;
use crate::store::{StoreError, VmDir};
use patina_abi::LINE_MAX_BYTES;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader, Interest},
    net::UnixStream,
    time::timeout,
};
use vmm::api::control::{Open, Opened};

/// Why a vmm does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The VM's folder is gone.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody listens.
    #[error("connect to the vmm: {0}")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("talk to the vmm: {0}")]
    Io(#[from] io::Error),
    /// Nothing came in time.
    #[error("wait for the vmm's answer: none in {0:?}")]
    Timeout(Duration),
    /// It closed instead of answering.
    #[error("wait for the vmm's answer: it closed the connection")]
    Closed,
    /// A line is too long.
    #[error("read the vmm's line: longer than {LINE_MAX_BYTES} bytes")]
    Long,
    /// A line is not what it should be.
    #[error("parse the vmm's line: {0}")]
    Parse(#[source] serde_json::Error),
    /// The vmm says no.
    #[error("the vmm refused: {0}")]
    Refused(String),
    /// It says yes and sends nothing.
    #[error("freeze the VM: the vmm's answer carries {0} descriptors, not 2")]
    Descriptors(usize),
    /// What it sends cannot be used.
    #[error("freeze the VM: {0}")]
    Generation(#[from] GenerationError),
}

/// Connects to a vmm and says what for. What comes after the answer is the stream's.
///
/// # Errors
/// It does not listen, does not answer within `patience`, or refuses.
pub async fn open(dir: &VmDir, what: &Open, patience: Duration) -> Result<BufReader<UnixStream>, LinkError> {
    let talk = async {
        let mut stream = BufReader::new(connect(dir).await?);
        write_line(&mut stream, what).await?;
        match read_line(&mut stream).await?.ok_or(LinkError::Closed)? {
            Opened::Ok => Ok(stream),
            Opened::Error(reason) => Err(LinkError::Refused(reason)),
        }
    };
    timeout(patience, talk).await.map_err(|_| LinkError::Timeout(patience))?
}

/// Freezes a VM: the descriptors of its state and of its RAM, as its vmm sent them.
///
/// # Errors
/// It does not listen, does not answer within `patience`, refuses, or sends no two descriptors.
pub async fn freeze(dir: &VmDir, patience: Duration) -> Result<(OwnedFd, OwnedFd), LinkError> {
    let talk = async {
        let mut stream = connect(dir).await?;
        write_line(&mut stream, &Open::Freeze).await?;
        receive(&stream).await
    };
    timeout(patience, talk).await.map_err(|_| LinkError::Timeout(patience))?
}

async fn connect(dir: &VmDir) -> Result<UnixStream, LinkError> {
    let folder = dir.open()?;
    let path = format!("/proc/self/fd/{}/vmm.sock", folder.as_raw_fd());
    UnixStream::connect(path).await.map_err(LinkError::Connect)
}

/// Reads the answer to a freeze, and the descriptors that come with it.
async fn receive(stream: &UnixStream) -> Result<(OwnedFd, OwnedFd), LinkError> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let (bytes, more) = stream.async_io(Interest::READABLE, || receive_some(stream)).await?;
        if bytes.is_empty() {
            return Err(LinkError::Closed);
        }
        if line.len() + bytes.len() > LINE_MAX_BYTES {
            return Err(LinkError::Long);
        }
        line.extend_from_slice(&bytes);
        descriptors.extend(more);
    }
    match serde_json::from_slice(&line).map_err(LinkError::Parse)? {
        Opened::Ok => {}
        Opened::Error(reason) => return Err(LinkError::Refused(reason)),
    }
    let two: Result<[OwnedFd; 2], _> = descriptors.try_into();
    let [state, memory] = two.map_err(|other| LinkError::Descriptors(other.len()))?;
    Ok((state, memory))
}

fn receive_some(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 4096];
    // Room for two: the kernel closes what is too many.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)?;
    bytes.truncate(got.bytes);
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((bytes, descriptors))
}

/// Writes one line.
///
/// # Errors
/// The connection broke.
pub async fn write_line<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), line: &T) -> Result<(), LinkError> {
    let mut bytes = serde_json::to_vec(line).map_err(LinkError::Parse)?;
    bytes.push(b'\n');
    to.write_all(&bytes).await?;
    Ok(to.flush().await?)
}

/// Reads one line of at most [`LINE_MAX_BYTES`]; None when the other side closed between lines.
///
/// # Errors
/// The connection broke or the line is not a `T`.
pub async fn read_line<T: DeserializeOwned>(
    from: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<T>, LinkError> {
    let mut line = Vec::new();
    loop {
        let chunk = from.fill_buf().await?;
        if chunk.is_empty() {
            return if line.is_empty() { Ok(None) } else { Err(LinkError::Closed) };
        }
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len(), |end| end + 1);
        if line.len() + taken > LINE_MAX_BYTES {
            return Err(LinkError::Long);
        }
        line.extend_from_slice(&chunk[..taken]);
        from.consume(taken);
        if end.is_some() {
            return serde_json::from_slice(&line).map(Some).map_err(LinkError::Parse);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::api::control::{FromVmm, State};

    #[tokio::test]
    async fn lines_are_read_one_by_one() {
        let mut input: &[u8] = b"{\"t\":\"state\",\"booting\":null}\n\"rest";
        let line: Result<Option<serde_json::Value>, _> = read_line(&mut input).await;
        assert!(line.unwrap().is_some());
        assert!(matches!(read_line::<String>(&mut input).await, Err(LinkError::Closed)));
        assert!(matches!(read_line::<String>(&mut input).await, Ok(None)));
    }

    #[tokio::test]
    async fn what_the_vmm_says_reads_back() {
        for said in [FromVmm::State(State::Booting), FromVmm::State(State::Ready { after_us: 5 })] {
            let mut bytes = Vec::new();
            write_line(&mut bytes, &said).await.unwrap();
            assert_eq!(read_line::<FromVmm>(&mut bytes.as_slice()).await.unwrap(), Some(said));
        }
    }

    #[tokio::test]
    async fn an_answer_to_a_freeze_is_taken_only_with_its_two_descriptors() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        use std::{fs::File, io::IoSlice, os::fd::AsFd};
        let null = File::open("/dev/null").unwrap();
        let answer = async |line: &str, count: usize| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let descriptors = vec![null.as_fd(); count];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut rights = SendAncillaryBuffer::new(&mut space);
            rights.push(SendAncillaryMessage::ScmRights(&descriptors));
            let (first, rest) = line.split_at(1);
            sendmsg(&theirs, &[IoSlice::new(first.as_bytes())], &mut rights, SendFlags::empty()).unwrap();
            theirs.try_write(rest.as_bytes()).unwrap();
            drop(theirs);
            receive(&ours).await
        };
        assert!(answer("\"ok\"\n", 2).await.is_ok(), "in pieces too");
        assert!(matches!(answer("\"ok\"\n", 1).await, Err(LinkError::Descriptors(1))));
        assert!(matches!(answer("\"ok\"", 2).await, Err(LinkError::Closed)));
        assert!(matches!(answer("{}\n", 2).await, Err(LinkError::Parse(_))));
        let refused = answer("{\"error\":\"again\"}\n", 2).await;
        assert!(matches!(refused, Err(LinkError::Refused(reason)) if reason == "again"));
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let endless = vec![b'x'; LINE_MAX_BYTES + 1];
        let result = read_line::<String>(&mut endless.as_slice()).await;
        assert!(matches!(result, Err(LinkError::Long)));
    }
}
