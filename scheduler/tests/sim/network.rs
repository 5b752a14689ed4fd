//! The simulated network, as the scheduler's server and client see it.

use scheduler::{
    client::{self, Connection},
    engine::Engine,
    grpc,
};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Server, server::Connected};
use turmoil::net::{TcpListener, TcpStream};

/// The scheduler's host and port.
pub const SCHEDULER: (&str, u16) = ("scheduler", 9000);
/// How long a message takes.
pub const LATENCY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(40));
/// As the scheduler's own server has it.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A connection that a server takes.
struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();
    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, to)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Serves an engine until the host crashes.
pub async fn serve(engine: Engine) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", SCHEDULER.1)).await?;
    let (accepted, incoming) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if accepted.send(Ok::<_, io::Error>(Accepted(stream))).await.is_err() {
                return;
            }
        }
    });
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(grpc::server(engine.clone()))
        .add_service(grpc::host_server(engine));
    Ok(server.serve_with_incoming(incoming).await?)
}

/// This host's connection to the scheduler.
pub fn connection() -> Connection {
    client::over(|| TcpStream::connect(SCHEDULER))
}
