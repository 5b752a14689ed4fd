//! A client of a scheduler, for operators and hosts. What only hosts use is in [`crate::host`].
//!
//! - [`connect`] and [`over`]: a [`Connection`] to a [`Target`], or over the caller's own
//!   connections. Both connect at the first call, and again after a failure. If the scheduler is
//!   away, calls fail in bounded time, with one of several errors ([`calls::is_away`]).
//! - [`Client`] and [`HostClient`]: the calls of operators and of hosts on a connection.
//! - [`calls`]: calls that are retried until they are answered.
//! - [`crate::embedded::Embedded`]: a scheduler in this process, with the same [`Connection`].
//!
//! If the future of a call is dropped, the call is cancelled, and its request leaves the queue. A
//! ticket that was granted at that very moment is released at once if the scheduler notices, and
//! after its TTL otherwise. [`crate::host::admission::Admission::request`] releases it itself.

pub mod calls;
mod target;

pub use target::{Target, TargetError};

use hyper_util::rt::TokioIo;
use patina_daemon::tls::Security;
use patina_proto::v1::{host_scheduler_client::HostSchedulerClient, scheduler_client::SchedulerClient};
use std::{future::Future, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// The calls of `patina.v1.Scheduler`. Cheap to clone; clones share one connection.
pub type Client = SchedulerClient<Channel>;

/// The calls of `patina.v1.HostScheduler`. Cheap to clone; clones share one connection.
pub type HostClient = HostSchedulerClient<Channel>;

/// The way to a scheduler. Cheap to clone; clones and clients share one connection.
#[derive(Debug, Clone)]
pub struct Connection(Channel);

impl Connection {
    /// For the calls of operators.
    #[must_use]
    pub fn client(&self) -> Client {
        SchedulerClient::new(self.0.clone()).max_decoding_message_size(ANSWER_MAX_BYTES)
    }

    /// For the calls of hosts.
    #[must_use]
    pub fn host_client(&self) -> HostClient {
        HostSchedulerClient::new(self.0.clone()).max_decoding_message_size(ANSWER_MAX_BYTES)
    }
}

/// Longest answer: a page of tickets, or what a clone left.
const ANSWER_MAX_BYTES: usize = 8 << 20;
/// A scheduler that does not take a connection in this time is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that is silent so long is asked whether it lives, and has the same time for its
/// answer.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// A connection to the scheduler at `target`.
///
/// # Errors
/// The security does not allow it; see [`Target::secured`].
pub fn connect(target: &Target, security: &Security) -> Result<Connection, TargetError> {
    channel(target, security).map(Connection)
}

/// A channel to the daemon at `target`, which connects when it is used.
///
/// # Errors
/// The security does not allow it; see [`Target::secured`].
pub fn channel(target: &Target, security: &Security) -> Result<Channel, TargetError> {
    Ok(match (target.clone().secured(security)?, security) {
        (Target::Unix(path), _) => channel_over(move || UnixStream::connect(path.clone())),
        (Target::Https { host, port }, Security::Tls(tls)) => {
            let tls = tls.clone();
            channel_over(move || {
                let (tls, host) = (tls.clone(), host.clone());
                async move { tls.connect(&host, port).await.map_err(io::Error::other) }
            })
        }
        (Target::Http { host, port } | Target::Tcp { host, port } | Target::Https { host, port }, _) => {
            channel_over(move || {
                let (host, port) = (host.clone(), port);
                async move {
                    let stream = TcpStream::connect((host.as_str(), port)).await?;
                    stream.set_nodelay(true)?;
                    Ok(stream)
                }
            })
        }
    })
}

/// A connection over those that `connect` makes, one at a time.
pub fn over<S, F>(connect: impl Fn() -> F + Send + 'static) -> Connection
where
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    Connection(channel_over(connect))
}

fn channel_over<S, F>(connect: impl Fn() -> F + Send + 'static) -> Channel
where
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let connector = service_fn(move |_: Uri| {
        let connecting = connect();
        async move { connecting.await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://patina")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connector)
}
