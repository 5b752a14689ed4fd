//! The client's side of a vmm's control socket ([`patina_control::messages`]).

pub use super::control_error::ControlError;

use super::{filling::Filling, generation, rights};
use crate::store::VmDir;
use patina_abi::{LINE_MAX_BYTES, lines::LineBuffer};
use patina_control::config::Member;
use patina_control::messages::{Frozen, Open, Opened, Prepare};
use patina_daemon::chain;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// How long a vmm, and the guest's agent behind it, may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Connects to a vmm and says what for. What comes after the answer is the stream's.
///
/// # Errors
/// It does not listen, does not answer within `patience`, or refuses.
pub async fn open(
    dir: &VmDir,
    what: &Open,
    patience: Duration,
) -> Result<BufReader<UnixStream>, ControlError> {
    let talk = async {
        let mut stream = BufReader::new(connect(dir).await?);
        write_line(&mut stream, what).await?;
        match read_line(&mut stream).await?.ok_or(ControlError::Closed)? {
            Opened::Ok => Ok(stream),
            other => Err(refusal(other)),
        }
    };
    timeout(patience, talk).await.map_err(|_| ControlError::Timeout(patience))?
}

fn refusal(answer: Opened) -> ControlError {
    match answer {
        Opened::Error(reason) => ControlError::Refused(reason),
        Opened::NotPrepared(error) => ControlError::NotPrepared(error),
        Opened::OldAgent { abi } => ControlError::OldAgent(abi),
        other => ControlError::Answer(other),
    }
}

/// Freezes a VM: what it cost, and the descriptors as its vmm sent them. `stream` is
/// [connected](connect).
///
/// # Errors
/// It does not answer within `patience`, or refuses.
pub async fn freeze(
    mut stream: UnixStream,
    prepare: Option<Prepare>,
    patience: Duration,
) -> Result<(Frozen, Vec<OwnedFd>), ControlError> {
    let talk = async {
        write_line(&mut stream, &Open::Freeze { prepare }).await?;
        match rights::receive(&stream).await? {
            (Opened::Frozen(frozen), sent) => Ok((frozen, sent)),
            (other, _) => Err(refusal(other)),
        }
    };
    timeout(patience, talk).await.map_err(|_| ControlError::Timeout(patience))?
}

/// Asks a VM for what comes in one file ([`Open::PrefaultList`], [`Open::FreePages`]): the file as
/// its vmm sent it.
///
/// # Errors
/// It does not listen, does not answer within `patience`, refuses, or sends no one descriptor.
pub async fn file(dir: &VmDir, open: &Open, patience: Duration) -> Result<OwnedFd, ControlError> {
    let talk = async {
        let mut stream = connect(dir).await?;
        write_line(&mut stream, open).await?;
        match rights::receive(&stream).await? {
            (Opened::Ok, sent) => {
                let one: Result<[OwnedFd; 1], _> = sent.try_into();
                one.map(|[list]| list).map_err(|other| ControlError::Descriptors(other.len(), 1))
            }
            (other, _) => Err(refusal(other)),
        }
    };
    timeout(patience, talk).await.map_err(|_| ControlError::Timeout(patience))?
}

/// Gives a warm VM what it starts from. [`started`] hears what becomes of it. A vmm before
/// [`super::filling::LAZY_VERSION`] gets nothing that is still being filled. `member`, of a spare
/// vmm: who its VM is.
///
/// # Errors
/// The connection broke.
pub async fn start(
    stream: &UnixStream,
    (ticket, member): (String, Option<Box<Member>>),
    generation: &generation::Opened,
    prefault_list: &File,
    filling: Option<&Filling>,
) -> Result<(), ControlError> {
    let mut sent = vec![generation.state.as_fd(), prefault_list.as_fd()];
    sent.extend(generation.layers.iter().map(AsFd::as_fd));
    sent.extend(filling.map(|filling| filling.pager.as_fd()));
    let filling = filling.map(|filling| filling.layers.clone()).unwrap_or_default();
    let mut line =
        serde_json::to_vec(&Open::Start { ticket, filling, member }).map_err(ControlError::Parse)?;
    line.push(b'\n');
    Ok(rights::send(stream, &line, &sent).await?)
}

/// Gives a vmm the socket of another pager, and waits until that pager serves the VM.
///
/// # Errors
/// It does not listen, does not answer within `patience`, or refuses.
pub async fn attach_pager(dir: &VmDir, pager: OwnedFd, patience: Duration) -> Result<(), ControlError> {
    let talk = async {
        let stream = connect(dir).await?;
        let mut line = serde_json::to_vec(&Open::Pager).map_err(ControlError::Parse)?;
        line.push(b'\n');
        rights::send(&stream, &line, &[pager.as_fd()]).await?;
        drop(pager);
        match rights::receive(&stream).await? {
            (Opened::Ok, _) => Ok(()),
            (other, _) => Err(refusal(other)),
        }
    };
    timeout(patience, talk).await.map_err(|_| ControlError::Timeout(patience))?
}

/// When the VM that was [started](start) entered its guest, nanoseconds of CLOCK_MONOTONIC.
///
/// # Errors
/// It did not, or does not answer within `patience`.
pub async fn started(stream: &UnixStream, patience: Duration) -> Result<u64, ControlError> {
    let answer = timeout(patience, rights::receive(stream)).await;
    match answer.map_err(|_| ControlError::Timeout(patience))?? {
        (Opened::Started { entered_ns }, _) => Ok(entered_ns),
        (other, _) => Err(refusal(other)),
    }
}

/// Connects to a vmm, to say later what for.
///
/// # Errors
/// It does not listen.
pub async fn connect(dir: &VmDir) -> Result<UnixStream, ControlError> {
    let folder = dir.open()?;
    let path = format!("/proc/self/fd/{}/vmm.sock", folder.as_raw_fd());
    UnixStream::connect(path).await.map_err(ControlError::Connect)
}

/// Writes one line.
///
/// # Errors
/// The connection broke.
pub async fn write_line<T: Serialize>(
    to: &mut (impl AsyncWrite + Unpin),
    line: &T,
) -> Result<(), ControlError> {
    let mut bytes = serde_json::to_vec(line).map_err(ControlError::Parse)?;
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
) -> Result<Option<T>, ControlError> {
    let mut lines = LineBuffer::new(LINE_MAX_BYTES);
    loop {
        let chunk = from.fill_buf().await?;
        if chunk.is_empty() {
            return if lines.is_empty() { Ok(None) } else { Err(ControlError::Closed) };
        }
        // Not more than this line: what follows is for whoever reads next, and may be no line.
        let end = chunk.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len(), |end| end + 1);
        lines.push(&chunk[..taken]);
        from.consume(taken);
        if let Some(line) = lines.next_line()? {
            return serde_json::from_slice(&line).map(Some).map_err(ControlError::Parse);
        }
    }
}

/// Reads the next line that is understood. A newer vmm may say more than this `vmmd` knows: that is
/// passed over, and the first of it on a connection, which `is_told` is of, is told in the log.
///
/// # Errors
/// The connection broke.
pub async fn read_known<T: DeserializeOwned>(
    from: &mut (impl AsyncBufRead + Unpin),
    is_told: &mut bool,
) -> Result<Option<T>, ControlError> {
    loop {
        match read_line(from).await {
            Err(ControlError::Parse(error)) => {
                if !std::mem::replace(is_told, true) {
                    tracing::warn!(error = %chain(&error), "a line of the vmm is not understood and passed over, as the next ones will be");
                }
            }
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_control::messages::{FromVmm, State};

    #[tokio::test]
    async fn lines_are_read_one_by_one() {
        let mut input: &[u8] = b"{\"t\":\"state\",\"booting\":null}\n\"rest";
        let line: Result<Option<serde_json::Value>, _> = read_line(&mut input).await;
        assert!(line.unwrap().is_some());
        assert!(matches!(read_line::<String>(&mut input).await, Err(ControlError::Closed)));
        assert!(matches!(read_line::<String>(&mut input).await, Ok(None)));
    }

    #[tokio::test]
    async fn lines_of_a_newer_vmm_are_passed_over() {
        let lines = concat!(
            "{\"t\":\"heat\",\"celsius\":90}\n",
            "{\"t\":\"state\",\"paused\":{\"since\":1}}\n",
            "rubbish\n",
            "{\"t\":\"state\",\"ready\":{\"after_us\":5,\"since\":1}}\n"
        );
        let (mut input, mut is_told) = (lines.as_bytes(), false);
        let known = read_known::<FromVmm>(&mut input, &mut is_told).await.unwrap();
        assert_eq!(known, Some(FromVmm::State(State::Ready { after_us: 5 })));
        assert!(is_told);
        assert_eq!(read_known::<FromVmm>(&mut input, &mut is_told).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_the_vmm_says_reads_back() {
        for said in [FromVmm::State(State::Booting), FromVmm::State(State::Ready { after_us: 5 })] {
            let mut bytes = Vec::new();
            write_line(&mut bytes, &said).await.unwrap();
            assert_eq!(read_line::<FromVmm>(&mut bytes.as_slice()).await.unwrap(), Some(said));
        }
    }
}
