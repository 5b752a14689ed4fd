//! Connections of clients, each with who it is of.

use crate::{chain, peer::Peer, tls::Tls};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use rustix::net::{RecvFlags, recv};
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::transport::server::Connected;

/// How long a daemon rests after a connection could not be accepted.
const REST: Duration = Duration::from_millis(100);
/// How long a client may take to send its first byte, where that is looked at.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// What a connection begins with that is not for gRPC. Neither TLS nor HTTP/2 does.
const ASIDE: u8 = 0;
/// Most clients that have connected and have not shown who they are. The next ones wait.
const HANDSHAKES_MAX: usize = 256;

/// What a connection is made of.
trait Ends: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Ends for T {}

/// A client's connection of any kind.
pub struct Connection {
    ends: Box<dyn Ends>,
    peer: Peer,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ends).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.ends).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ends).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.ends).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.ends).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.ends.is_write_vectored()
    }
}

/// A connection that begins with a zero byte, which is not read yet: it is for something else than
/// gRPC.
#[derive(Debug)]
pub enum Aside {
    /// Of a Unix socket.
    Unix(UnixStream),
    /// Of a TCP port. No certificate was asked for.
    Tcp(TcpStream),
}

/// Where connections go that are not for gRPC. None: there is no such use, and nobody looks.
pub type Asides = Option<mpsc::Sender<Aside>>;

/// A connection as it was accepted.
trait Accepted: Sized {
    /// The first byte, which stays. None: there is none.
    fn first_byte(&self) -> impl Future<Output = io::Result<Option<u8>>> + Send;
    fn aside(self) -> Aside;
}

impl Accepted for UnixStream {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0; 1];
        let peek = || Ok(recv(self, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.0);
        let length = self.async_io(Interest::READABLE, peek).await?;
        Ok(byte.first().copied().filter(|_| length > 0))
    }

    fn aside(self) -> Aside {
        Aside::Unix(self)
    }
}

impl Accepted for TcpStream {
    async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0; 1];
        let length = self.peek(&mut byte).await?;
        Ok(byte.first().copied().filter(|_| length > 0))
    }

    fn aside(self) -> Aside {
        Aside::Tcp(self)
    }
}

/// The connection, if it is for gRPC.
async fn sorted<T: Accepted>(stream: T, asides: &Asides) -> Option<T> {
    let Some(asides) = asides else { return Some(stream) };
    match timeout(FIRST_BYTE, stream.first_byte()).await {
        Ok(Ok(Some(ASIDE))) => {
            // Too many wait, or nobody takes them any longer: it is hung up.
            if asides.try_send(stream.aside()).is_err() {
                tracing::debug!("a connection that is not for gRPC is hung up");
            }
            None
        }
        Ok(Ok(Some(_))) => Some(stream),
        // It says nothing, or has gone.
        Ok(Ok(None) | Err(_)) | Err(_) => None,
    }
}

/// Clients as they come.
pub type Incoming = BoxStream<'static, io::Result<Connection>>;

/// Those of a Unix socket.
pub(crate) fn unix(
    accepted: impl Stream<Item = io::Result<UnixStream>> + Send + 'static,
    asides: Asides,
) -> Incoming {
    each(accepted, asides, |stream| async {
        let peer = Peer::of(&stream);
        Some(Ok(Connection { ends: Box::new(stream), peer }))
    })
}

/// Those of a TCP port without TLS.
pub(crate) fn open(
    accepted: impl Stream<Item = io::Result<TcpStream>> + Send + 'static,
    asides: Asides,
) -> Incoming {
    each(accepted, asides, |stream| async {
        let without_delay = stream.set_nodelay(true);
        Some(without_delay.map(|()| Connection { ends: Box::new(stream), peer: Peer::Anybody }))
    })
}

/// Those of a TCP port that have shown a certificate.
pub(crate) fn secured(
    accepted: impl Stream<Item = io::Result<TcpStream>> + Send + 'static,
    asides: Asides,
    tls: Tls,
) -> Incoming {
    each(accepted, asides, move |stream| {
        let tls = tls.clone();
        async move { handshake(&tls, stream).await }
    })
}

/// Gets each connection ready. One that is slow or refused holds up no other.
fn each<T, Ready>(
    accepted: impl Stream<Item = io::Result<T>> + Send + 'static,
    asides: Asides,
    ready: impl Fn(T) -> Ready + Clone + Send + Sync + 'static,
) -> Incoming
where
    T: Accepted + Send + Sync + 'static,
    Ready: Future<Output = Option<io::Result<Connection>>> + Send,
{
    let made = rested(accepted).map(move |stream| {
        let (asides, ready) = (asides.clone(), ready.clone());
        async move {
            match stream {
                Ok(stream) => ready(sorted(stream, &asides).await?).await,
                Err(error) => Some(Err(error)),
            }
        }
    });
    made.buffer_unordered(HANDSHAKES_MAX).filter_map(std::future::ready).boxed()
}

async fn handshake(tls: &Tls, stream: TcpStream) -> Option<io::Result<Connection>> {
    let from = stream.peer_addr().map(|address| address.to_string()).unwrap_or_default();
    if let Err(error) = stream.set_nodelay(true) {
        return Some(Err(error));
    }
    match tls.accept(stream).await {
        Ok((stream, identity)) => {
            tracing::debug!(from, peer = %identity, "connected");
            Some(Ok(Connection { ends: Box::new(stream), peer: Peer::Certified(identity) }))
        }
        Err(error) => {
            tracing::warn!(from, error = %chain(&error), "a client is refused");
            None
        }
    }
}

/// With a pause after each error. If there are no descriptors, the next try would fail at once, and
/// whoever serves the stream tries again at once.
fn rested<T>(accepted: impl Stream<Item = io::Result<T>>) -> impl Stream<Item = io::Result<T>> {
    accepted.then(|accepted| async move {
        if let Err(error) = &accepted {
            tracing::warn!(error = %chain(error), "accept a connection; it is tried again");
            sleep(REST).await;
        }
        accepted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_without_descriptors_does_not_try_again_at_once() {
        let errors = [Err(io::Error::from_raw_os_error(24)), Err(io::ErrorKind::OutOfMemory.into())];
        let accepted = futures::stream::iter(errors.into_iter().chain([Ok(1), Ok(2)]));
        let before = tokio::time::Instant::now();
        let came: Vec<_> = rested(accepted).map(|came| came.ok()).collect().await;
        assert_eq!(came, [None, None, Some(1), Some(2)]);
        assert_eq!(before.elapsed(), REST * 2, "no pause after those that came");
    }

    #[tokio::test]
    async fn a_connection_that_begins_with_zero_is_not_for_grpc() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (asides, mut set_aside) = mpsc::channel(1);
        let (mut ours, theirs): (Vec<_>, Vec<_>) =
            [(); 3].map(|()| UnixStream::pair().unwrap()).into_iter().unzip();
        let mut incoming = unix(futures::stream::iter(theirs.into_iter().map(Ok)), Some(asides));
        for (stream, bytes) in ours.iter_mut().zip([&b"PRI *"[..], b"\0pages", b""]) {
            stream.write_all(bytes).await.unwrap();
        }
        // The last one says nothing, and goes.
        ours.pop();
        let mut grpc = incoming.next().await.unwrap().unwrap();
        let mut bytes = [0; 5];
        grpc.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"PRI *", "nothing of it is lost");
        assert!(incoming.next().await.is_none());
        let Some(Aside::Unix(mut pages)) = set_aside.recv().await else { panic!("none was set aside") };
        let mut bytes = [0; 6];
        pages.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"\0pages");
        assert!(set_aside.try_recv().is_err(), "only that one");
    }
}
