//! The pager of a host that has lent layers: how it is reached.
//!
//! A connection between pagers begins on the port on which the other vmmd has its gRPC interface,
//! with [`hello`]: which lease it is for.

use futures::future::BoxFuture;
use patina_control::pager::Credential;
use rustix::net::sockopt;
use scheduler::client::{Target, TargetError};
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UnixStream},
};
use uuid::Uuid;

/// What such a connection begins with. The first byte is one that neither TLS nor HTTP/2 begins
/// with; the number is the version of all that follows.
const MAGIC: &[u8; 16] = b"\0patina-pages/1\0";
/// The magic, and the lease.
pub const HELLO_BYTES: usize = MAGIC.len() + 16;
/// A connection is given up when what was sent is not acknowledged for so long, milliseconds.
const UNACKNOWLEDGED_MS: u32 = 2000;
/// A connection on which nothing is sent is tested after so long, and given up after three more
/// tests.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The pager of a host that has lent layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lender {
    /// Where the host is.
    pub address: String,
    /// The lease that it gave.
    pub lease: Uuid,
    /// By which both pagers know each other.
    pub credential: Credential,
    /// For whom, and by whom.
    #[serde(default)]
    pub of: Of,
}

/// By which other hosts are found that have the same layers. Earlier releases know nothing of it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Of {
    /// The family of the VMs whose memory it is.
    pub family: Uuid,
    /// The host that lends.
    pub host: Uuid,
}

impl Lender {
    /// Connects to the other pager twice: for what VMs wait for, and for what is fetched ahead.
    #[must_use]
    pub fn dial(&self) -> BoxFuture<'static, io::Result<[OwnedFd; 2]>> {
        let (address, lease) = (self.address.clone(), self.lease);
        Box::pin(async move {
            let target = target(&address);
            let target =
                target.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
            let (demand, ahead) = tokio::try_join!(connect(&target, lease), connect(&target, lease))?;
            Ok([demand, ahead])
        })
    }
}

/// Where a host says that it is.
///
/// # Errors
/// It is no address.
pub fn target(address: &str) -> Result<Target, TargetError> {
    // A vmmd without --advertise tells the address on which it listens.
    address.parse().or_else(|_| format!("tcp:{address}").parse())
}

async fn connect(target: &Target, lease: Uuid) -> io::Result<OwnedFd> {
    match target {
        Target::Unix(path) => {
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(&hello(lease)).await?;
            Ok(stream.into_std()?.into())
        }
        Target::Tcp { host, port } | Target::Https { host, port } | Target::Http { host, port } => {
            let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
            watch(&stream)?;
            stream.write_all(&hello(lease)).await?;
            Ok(stream.into_std()?.into())
        }
    }
}

/// Has a connection end soon after the other host has gone, and has nothing wait to be sent.
///
/// # Errors
/// The kernel's.
pub fn watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream = stream.as_fd();
    sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

/// What a connection for a lease begins with.
#[must_use]
pub fn hello(lease: Uuid) -> Vec<u8> {
    [&MAGIC[..], lease.as_bytes()].concat()
}

/// Which lease a connection is for. None: it is no connection of this release.
#[must_use]
pub fn lease_of(hello: &[u8; HELLO_BYTES]) -> Option<Uuid> {
    match hello.split_first_chunk::<16>() {
        Some((MAGIC, lease)) => Uuid::from_slice(lease).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_says_for_which_lease_it_is() {
        let lease = Uuid::from_u128(7);
        let mut bytes: [u8; HELLO_BYTES] = hello(lease).try_into().unwrap();
        assert_eq!(lease_of(&bytes), Some(lease));
        // Of a later release.
        bytes[14] = b'2';
        assert_eq!(lease_of(&bytes), None);
    }
}
