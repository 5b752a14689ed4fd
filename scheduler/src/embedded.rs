//! A scheduler in this process. `vmmd --standalone` has one, and calls it in the same way as a
//! remote one.

use crate::core::api::Options;
use crate::{
    client::{self, Connection},
    engine::{self, Engine, EngineError},
    grpc::{self, Service},
    store::Store,
};
use patina_daemon::{chain, server};
use patina_proto::v1::scheduler_server::SchedulerServer;
use std::{io, thread::JoinHandle};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

/// What one side of a connection in memory may be ahead of the other.
const PIPE_BYTES: usize = 256 << 10;
/// Connections that have not been taken yet.
const BACKLOG: usize = 16;

/// An engine on its thread with its service; ends when it is dropped.
#[derive(Debug)]
pub struct Embedded {
    engine: Engine,
    connections: mpsc::Sender<DuplexStream>,
    server: tokio::task::JoinHandle<()>,
    ledger: JoinHandle<()>,
}

impl Embedded {
    /// Starts it. To be called in a tokio runtime.
    ///
    /// # Errors
    /// The store cannot be read, or there is no thread.
    pub fn start(store: Box<dyn Store>, options: Options) -> Result<Self, EngineError> {
        let (engine, ledger) = engine::start(store, options)?;
        let (connections, incoming) = mpsc::channel(BACKLOG);
        let server = server::builder()
            .add_service(grpc::server(engine.clone()))
            .add_service(grpc::host_server(engine.clone()))
            .serve_with_incoming(ReceiverStream::new(incoming).map(Ok::<_, io::Error>));
        let server = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(error = %chain(&error), "the embedded scheduler's server has ended");
            }
        });
        Ok(Self { engine, connections, server, ledger })
    }

    /// A connection of its own.
    #[must_use]
    pub fn connection(&self) -> Connection {
        let connections = self.connections.clone();
        client::over(move || {
            let connections = connections.clone();
            async move {
                let (near, far) = duplex(PIPE_BYTES);
                let gone = |_| io::Error::new(io::ErrorKind::ConnectionRefused, "the scheduler has stopped");
                connections.send(far).await.map_err(gone)?;
                Ok(near)
            }
        })
    }

    /// The service for operators, for a server that they reach; see [`grpc::server`]. Hosts have
    /// none there: this scheduler has one host, in this process.
    #[must_use]
    pub fn service(&self) -> SchedulerServer<Service> {
        grpc::server(self.engine.clone())
    }

    /// The engine, for its metrics.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Stops it: what is under way is refused, and the ledger is closed when this returns.
    pub async fn stop(self) {
        self.engine.stop().await;
        self.server.abort();
        let ledger = self.ledger;
        if tokio::task::spawn_blocking(move || ledger.join()).await.is_err() {
            tracing::error!("the ledger's thread has ended by a panic");
        }
    }
}
