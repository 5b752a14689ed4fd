//! Published ports: a TCP proxy per port, in user space. It is closed by dropping its
//! [`Published`], or by name.

use crate::plan::spec::Port;
use patina_control::best_effort;
use patina_daemon::chain;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

/// Most connections of one published port at once; the next ones wait in the listen queue.
pub const CONNECTIONS_MAX: usize = 1024;
/// Most connections of all published ports of the daemon: each takes two descriptors, and one VM's
/// callers leave room for others' calls.
pub const CONNECTIONS_ALL_MAX: usize = 8192;
static ALL: Semaphore = Semaphore::const_new(CONNECTIONS_ALL_MAX);
/// How long the guest may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long accepting rests when the host has no descriptors left.
const REST: Duration = Duration::from_millis(100);

/// A port cannot be published.
#[derive(Debug, thiserror::Error)]
#[error("publish port {}", .port.host)]
pub struct PortError {
    /// The port that was to be published.
    pub port: Port,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

/// Ports that listen, with nobody accepting yet.
#[derive(Debug)]
pub struct Bound(Vec<(Port, TcpListener)>);

/// Ports that are served; dropping it closes them and their connections.
#[derive(Debug, Default)]
pub struct Published(Vec<(Port, JoinHandle<()>)>);

impl Drop for Published {
    fn drop(&mut self) {
        self.0.iter().for_each(|(_, served)| served.abort());
    }
}

impl Published {
    /// Serves these, too.
    pub fn add(&mut self, mut more: Self) {
        self.0.append(&mut more.0);
    }

    /// Closes those at these places of the host, with their connections. When this returns, the
    /// host's ports are free.
    pub async fn close(&mut self, places: &[SocketAddr]) {
        let closed: Vec<_> = self.0.extract_if(.., |(port, _)| places.contains(&port.host)).collect();
        closed.iter().for_each(|(_, served)| served.abort());
        for (_, served) in closed {
            best_effort(served.await, "it ends by being aborted");
        }
    }
}

impl Bound {
    /// Listens on every port, or on none.
    ///
    /// # Errors
    /// The first that cannot be had.
    pub async fn bind(ports: &[Port]) -> Result<Self, PortError> {
        let mut bound = Vec::with_capacity(ports.len());
        for port in ports {
            let listener =
                TcpListener::bind(port.host).await.map_err(|source| PortError { port: *port, source })?;
            bound.push((*port, listener));
        }
        Ok(Self(bound))
    }

    /// Which ports.
    pub fn ports(&self) -> impl Iterator<Item = Port> + '_ {
        self.0.iter().map(|(port, _)| *port)
    }

    /// Serves them: every connection goes to the same port's `guest_port` at `guest`.
    #[must_use]
    pub fn serve(self, guest: Ipv4Addr) -> Published {
        let serve = |(port, listener): (Port, TcpListener)| {
            let target = SocketAddr::from((guest, port.guest_port));
            (port, tokio::spawn(accept(listener, target, &ALL)))
        };
        Published(self.0.into_iter().map(serve).collect())
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, all: &'static Semaphore) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this task, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        // The permit comes first: past the limit nothing is accepted, so nothing is held either.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let Ok(of_all) = all.acquire().await else { return };
        let client = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => break client,
                    Err(error) => {
                        tracing::warn!(%target, error = %chain(&error), "accept on a published port");
                        tokio::time::sleep(REST).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        };
        connections.spawn(async move {
            if let Err(error) = relay(client, target).await {
                tracing::debug!(%target, error = %chain(&error), "a connection of a published port ended");
            }
            drop((permit, of_all));
        });
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let connect = timeout(CONNECT_TIMEOUT, TcpStream::connect(target));
    let mut guest = connect.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    client.set_nodelay(true)?;
    guest.set_nodelay(true)?;
    // Closes each direction on its own, so a client may end its request and still read the answer.
    copy_bidirectional(&mut client, &mut guest).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn free_port(guest_port: u16) -> Port {
        let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Port { host: probe.local_addr().unwrap(), guest_port }
    }

    #[tokio::test]
    async fn a_request_can_be_ended_before_its_answer() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free_port(guest.local_addr().unwrap().port()).await;
        let _published = Bound::bind(&[port]).await.unwrap().serve(Ipv4Addr::LOCALHOST);
        let server = tokio::spawn(async move {
            let (mut stream, _) = guest.accept().await.unwrap();
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.unwrap();
            stream.write_all(&request.repeat(2)).await.unwrap();
        });
        let mut client = TcpStream::connect(port.host).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"pingping");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_and_the_others_are_let_go() {
        let (first, taken) = (free_port(1).await, free_port(1).await);
        let _holder = TcpListener::bind(taken.host).await.unwrap();
        let error = Bound::bind(&[first, taken]).await.unwrap_err();
        assert_eq!((error.port, error.source.kind()), (taken, io::ErrorKind::AddrInUse));
        assert!(TcpListener::bind(first.host).await.is_ok());
    }

    #[tokio::test]
    async fn two_ports_share_the_connections_that_all_may_have() {
        static TWO: Semaphore = Semaphore::const_new(2);
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = guest.local_addr().unwrap();
        let (mut served, mut clients) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            served.push(tokio::spawn(accept(listener, target, &TWO)));
            clients.push(TcpStream::connect(address).await.unwrap());
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        // Each port has taken the right to one before it accepts: two of the four connections reach
        // the guest.
        let _held = [guest.accept().await.unwrap(), guest.accept().await.unwrap()];
        assert_eq!(TWO.available_permits(), 0);
        assert!(timeout(Duration::from_millis(200), guest.accept()).await.is_err(), "no third");
        served.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn ports_are_added_and_closed_one_by_one() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let guest_port = guest.local_addr().unwrap().port();
        let (first, second) = (free_port(guest_port).await, free_port(guest_port).await);
        let serve = async |port| Bound::bind(&[port]).await.unwrap().serve(Ipv4Addr::LOCALHOST);
        let mut published = Published::default();
        published.add(serve(first).await);
        let mut client = TcpStream::connect(first.host).await.unwrap();
        let (_held, _) = guest.accept().await.unwrap();
        published.add(serve(second).await);
        published.close(&[first.host]).await;
        let _other = TcpListener::bind(first.host).await.expect("it is free for others at once");
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0, "its connections are cut");
        let _client = TcpStream::connect(second.host).await.unwrap();
        guest.accept().await.unwrap();
    }

    #[tokio::test]
    async fn dropping_closes_port_and_connections() {
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free_port(guest.local_addr().unwrap().port()).await;
        let published = Bound::bind(&[port]).await.unwrap().serve(Ipv4Addr::LOCALHOST);
        let mut client = TcpStream::connect(port.host).await.unwrap();
        let (_held, _) = guest.accept().await.unwrap();
        drop(published);
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
        assert!(TcpStream::connect(port.host).await.is_err());
    }
}
