//! The connections over which another host's pager reads layers of this one. They go through both
//! vmmds, as calls of `ReadLayers`: so they have the security of all calls.

use crate::{
    pager::peers::Dial,
    vms::{host::Host, remote_data::peers::Peers},
};
use patina_control::best_effort;
use patina_daemon::chain;
use patina_proto::v1::LayerBytes;
use std::{os::unix::net::UnixStream as StdUnixStream, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use uuid::Uuid;

/// Most bytes of a message.
const BYTES_MAX: usize = 128 * 1024;
/// Messages between a connection's task and the network.
const QUEUE: usize = 8;

/// Connects to the pager of the host that has lent a generation.
#[derive(Debug)]
pub struct Lender {
    /// How other hosts are called.
    pub peers: Peers,
    /// Where the host is.
    pub address: String,
    /// The lease that it gave.
    pub lease: Uuid,
}

impl Dial for Lender {
    fn dial(&self, stream: StdUnixStream) {
        let (peers, address, lease) = (self.peers.clone(), self.address.clone(), self.lease);
        tokio::spawn(async move {
            if let Err(error) = connect(&peers, &address, lease, stream).await {
                tracing::warn!(address, %lease, error = %chain(error.as_ref()), "read the memory of VMs from another host");
            }
        });
    }
}

async fn connect(
    peers: &Peers,
    address: &str,
    lease: Uuid,
    stream: StdUnixStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    sender.try_send(LayerBytes { lease: lease.to_string(), bytes: Vec::new() })?;
    let answers = peers.client(address)?.read_layers(ReceiverStream::new(receiver)).await?.into_inner();
    join(stream, answers, sender, |bytes| bytes).await;
    Ok(())
}

impl Host {
    /// Serves a connection of another host, until it ends.
    ///
    /// # Errors
    /// There is no such lease, or the pager does not serve it.
    pub(crate) async fn read_layers(
        self: &Arc<Self>,
        mut requests: Streaming<LayerBytes>,
    ) -> Result<mpsc::Receiver<Result<LayerBytes, Status>>, Status> {
        let first = requests.message().await?.unwrap_or_default();
        let unknown = || Status::not_found(format!("read layers: there is no lease {:?}", first.lease));
        let lease: Uuid = first.lease.parse().map_err(|_| unknown())?;
        let mut borrowed = self.borrow(lease).ok_or_else(unknown)?;
        let broken = |error: std::io::Error| Status::unavailable(format!("read layers: {error}"));
        let (theirs, ours) = StdUnixStream::pair().map_err(broken)?;
        ours.set_nonblocking(true).map_err(broken)?;
        let ours = UnixStream::from_std(ours).map_err(broken)?;
        let served = self.pager.serve_peer(Uuid::new_v4(), &borrowed.layers, theirs.into()).await;
        served.map_err(|error| Status::unavailable(format!("read layers: {}", chain(&error))))?;
        // The lease holds them.
        borrowed.layers.clear();
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let is_done = join(ours, requests, sender, Ok).await;
            // The lease has had this connection until here.
            borrowed.is_done = is_done;
            drop(borrowed);
        });
        Ok(receiver)
    }
}

/// Carries bytes between a pager's connection and a call until either ends. Returns whether the
/// other host has ended the call as one does that needs no more.
async fn join<T: Send + 'static>(
    stream: UnixStream,
    mut received: Streaming<LayerBytes>,
    sender: mpsc::Sender<T>,
    wrap: impl Fn(LayerBytes) -> T,
) -> bool {
    let (mut from_pager, mut to_pager) = stream.into_split();
    let read = async {
        loop {
            let mut bytes = vec![0; BYTES_MAX];
            match from_pager.read(&mut bytes).await {
                Ok(0) | Err(_) => break,
                Ok(length) => bytes.truncate(length),
            }
            if sender.send(wrap(LayerBytes { lease: String::new(), bytes })).await.is_err() {
                break;
            }
        }
    };
    let write = async {
        loop {
            match received.message().await {
                Ok(Some(message)) if message.bytes.len() <= BYTES_MAX => {
                    if to_pager.write_all(&message.bytes).await.is_err() {
                        break false;
                    }
                }
                Ok(Some(_)) | Err(_) => break false,
                Ok(None) => break true,
            }
        }
    };
    let is_done = tokio::select! {
        () = read => false,
        is_done = write => is_done,
    };
    best_effort(to_pager.shutdown().await, "one that fails here has ended");
    is_done
}
