//! Connections of clients, each with who it is of.

use crate::{chain, peer::Peer, tls::Tls};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::sleep,
};
use tonic::transport::server::Connected;

/// How long a daemon rests after a connection could not be accepted.
const REST: Duration = Duration::from_millis(100);
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

/// Clients as they come.
pub type Incoming = BoxStream<'static, io::Result<Connection>>;

/// Those of a Unix socket.
pub(crate) fn unix(accepted: impl Stream<Item = io::Result<UnixStream>> + Send + 'static) -> Incoming {
    let named = rested(accepted).map(|stream| {
        let stream = stream?;
        let peer = Peer::of(&stream);
        Ok(Connection { ends: Box::new(stream), peer })
    });
    named.boxed()
}

/// Those of a TCP port without TLS.
pub(crate) fn open(accepted: impl Stream<Item = io::Result<TcpStream>> + Send + 'static) -> Incoming {
    let named = rested(accepted).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(Connection { ends: Box::new(stream), peer: Peer::Anybody })
    });
    named.boxed()
}

/// Those of a TCP port that have shown a certificate. One that is slow or refused holds up no
/// other.
pub(crate) fn secured(
    accepted: impl Stream<Item = io::Result<TcpStream>> + Send + 'static,
    tls: Tls,
) -> Incoming {
    let shown = rested(accepted).map(move |stream| {
        let tls = tls.clone();
        async move {
            match stream {
                Ok(stream) => handshake(&tls, stream).await,
                Err(error) => Some(Err(error)),
            }
        }
    });
    shown.buffer_unordered(HANDSHAKES_MAX).filter_map(std::future::ready).boxed()
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
}
