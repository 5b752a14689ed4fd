//! The connections over which another host's pager reads layers of this one.
//!
//! ```text
//!  pager ◀── socket ── vmmd ── connect, Hello ──▶ vmmd ── socket ──▶ pager
//!    ╰───────────────────── TLS, runs ──────────────────────────────╯
//! ```
//!
//! The vmmd that needs layers connects to the port on which the other one has its gRPC interface,
//! and says for which lease. Both give the connection to their pagers, whose jails cannot make any,
//! and have nothing to do with it from then on. The pagers show each other the lease's certificate,
//! which came with the call for clones: who connects without it gets nothing.

use crate::{
    pager::peers::Dial,
    vms::{
        host::Host,
        remote_data::{error::PagesError, peers},
    },
};
use futures::future::BoxFuture;
use patina_control::pager::Credential;
use patina_daemon::{chain, listen::Aside};
use rustix::net::sockopt;
use scheduler::client::Target;
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use uuid::Uuid;

/// What such a connection begins with. The first byte is one that neither TLS nor HTTP/2 begins
/// with; the number is the version of all that follows.
const MAGIC: &[u8; 16] = b"\0patina-pages/1\0";
/// The magic, and the lease.
const HELLO_BYTES: usize = MAGIC.len() + 16;
/// How long the other host may take to say for which lease it has connected.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// Most connections of which that is not known yet. One more is hung up.
const HELLOS_MAX: usize = 64;
/// A connection is given up when what was sent is not acknowledged for so long, milliseconds.
const UNACKNOWLEDGED_MS: u32 = 2000;
/// A connection on which nothing is sent is tested after so long, and given up after three more
/// tests.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Connects to the pager of the host that has lent a generation.
#[derive(Debug)]
pub struct Lender {
    /// Where the host is.
    pub address: String,
    /// The lease that it gave.
    pub lease: Uuid,
    /// By which both pagers know each other.
    pub credential: Credential,
}

impl Dial for Lender {
    fn dial(&self) -> BoxFuture<'static, io::Result<[OwnedFd; 2]>> {
        let (address, lease) = (self.address.clone(), self.lease);
        Box::pin(async move {
            let target = peers::target(&address);
            let target =
                target.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
            let (demand, ahead) = tokio::try_join!(connect(&target, lease), connect(&target, lease))?;
            Ok([demand, ahead])
        })
    }

    fn credential(&self) -> &Credential {
        &self.credential
    }
}

async fn connect(target: &Target, lease: Uuid) -> io::Result<OwnedFd> {
    let hello = [&MAGIC[..], lease.as_bytes()].concat();
    match target {
        Target::Unix(path) => {
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(&hello).await?;
            Ok(stream.into_std()?.into())
        }
        Target::Tcp { host, port } | Target::Https { host, port } | Target::Http { host, port } => {
            let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
            watch(&stream)?;
            stream.write_all(&hello).await?;
            Ok(stream.into_std()?.into())
        }
    }
}

/// Has a connection end soon after the other host has gone, and has nothing wait to be sent.
fn watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = stream.as_fd();
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

/// Which lease a connection is for.
async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> Result<Uuid, PagesError> {
    let mut hello = [0; HELLO_BYTES];
    let read = timeout(HELLO_PATIENCE, stream.read_exact(&mut hello)).await;
    read.map_err(|_| PagesError::Silent(HELLO_PATIENCE))?.map_err(PagesError::Broken)?;
    match hello.split_first_chunk::<16>() {
        Some((MAGIC, lease)) => Uuid::from_slice(lease).map_err(|_| PagesError::Foreign),
        _ => Err(PagesError::Foreign),
    }
}

impl Host {
    /// Takes connections of other hosts' pagers, for as long as this `vmmd` listens.
    pub async fn serve_pages(self: Arc<Self>, mut connections: mpsc::Receiver<Aside>) {
        let turns = Arc::new(Semaphore::new(HELLOS_MAX));
        while let Some(connection) = connections.recv().await {
            let Ok(turn) = Arc::clone(&turns).try_acquire_owned() else {
                tracing::warn!("too many connections for pages that say nothing: one more is hung up");
                continue;
            };
            let host = Arc::clone(&self);
            tokio::spawn(async move {
                if let Err(error) = host.take_connection(connection).await {
                    tracing::warn!(error = %chain(&error), "a connection for pages is refused");
                }
                drop(turn);
            });
        }
    }

    async fn take_connection(self: &Arc<Self>, connection: Aside) -> Result<(), PagesError> {
        let (lease, stream) = match connection {
            Aside::Unix(mut stream) => (read_hello(&mut stream).await?, stream.into_std().map(OwnedFd::from)),
            Aside::Tcp(mut stream) => {
                watch(&stream).map_err(PagesError::Broken)?;
                (read_hello(&mut stream).await?, stream.into_std().map(OwnedFd::from))
            }
        };
        let stream = stream.map_err(PagesError::Broken)?;
        let mut borrowed = self.borrow(lease).ok_or(PagesError::NoLease(lease))?;
        let with = (stream, borrowed.credential.clone());
        let served = self.pager.serve_peer(Uuid::new_v4(), &borrowed.layers, with).await?;
        // The lease holds them.
        borrowed.layers.clear();
        tokio::spawn(async move {
            // An error: the pager is gone.
            borrowed.is_done = served.await.unwrap_or(false);
            // The lease has had this connection until here.
            drop(borrowed);
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hear(bytes: &[u8]) -> Result<Uuid, PagesError> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).await.unwrap();
        ours.shutdown().await.unwrap();
        read_hello(&mut theirs).await
    }

    #[tokio::test]
    async fn a_connection_says_for_which_lease_it_is() {
        let lease = Uuid::from_u128(7);
        let hello = [&MAGIC[..], lease.as_bytes()].concat();
        assert_eq!(hear(&hello).await.unwrap(), lease);
        assert!(matches!(hear(&hello[..31]).await, Err(PagesError::Broken(_))));
        let newer = [b"\0patina-pages/2\0", &lease.as_bytes()[..]].concat();
        assert!(matches!(hear(&newer).await, Err(PagesError::Foreign)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_not_waited_for_long() {
        let (_ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(matches!(read_hello(&mut theirs).await, Err(PagesError::Silent(_))));
    }
}
