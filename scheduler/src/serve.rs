//! The scheduler's life: open the ledger, serve, stop.

use crate::{
    engine::{self, Engine, EngineError},
    grpc::{self, HostService, Service},
    options::Options,
    store::{
        StoreError,
        file::{FileStore, Lasting},
    },
};
use patina_daemon::{
    http::{self, HttpError},
    listen::{self, Incoming, ListenError},
    notify,
    server::{self, DescribeError},
    stop::{SignalError, Stop},
    tls::{Security, TlsError},
};
use patina_proto::v1::{host_scheduler_server::HostSchedulerServer, scheduler_server::SchedulerServer};
use std::{thread::JoinHandle, time::Duration};
use tokio::{net::TcpListener, time::timeout};
use tonic::server::NamedService as _;

/// How long answers that are on their way may take once the scheduler is to stop.
const DRAIN: Duration = Duration::from_secs(2);
/// A client on the other side of a dead network is let go after this.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why the scheduler does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The ledger.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The metrics' socket.
    #[error(transparent)]
    Metrics(#[from] HttpError),
    /// Signals.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The server.
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
    /// Reflection.
    #[error(transparent)]
    Reflection(#[from] DescribeError),
    /// The ledger's thread has ended unexpectedly.
    #[error("serve: the ledger's thread has ended; the log has its last error")]
    Ledger,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or it broke.
pub async fn run(options: Options) -> Result<(), ServeError> {
    let stop = Stop::at_signals()?;
    let security = Security::new(options.tls_dir.as_deref(), options.insecure)?;
    // The ledger first: its lock is what keeps two schedulers of one folder apart.
    let store = FileStore::open(&options.state_dir, Lasting::Host)?;
    let metrics = match options.metrics {
        Some(address) => Some(http::listen(address).await?),
        None => None,
    };
    let incoming = listen::listen(&options.listen, &security, None).await?;
    let (engine, ledger) = engine::start(Box::new(store), options.core())?;
    let served = serve(&options, engine.clone(), incoming, metrics, stop).await;
    options.listen.remove();
    engine.stop().await;
    served.and(join(ledger).await)
}

async fn serve(
    options: &Options,
    engine: Engine,
    incoming: Incoming,
    metrics: Option<TcpListener>,
    stop: Stop,
) -> Result<(), ServeError> {
    let server =
        server::builder().http2_keepalive_interval(Some(KEEPALIVE)).http2_keepalive_timeout(Some(KEEPALIVE));
    let names = [SchedulerServer::<Service>::NAME, HostSchedulerServer::<HostService>::NAME];
    let server = server::described(server, grpc::access::callers, patina_proto::DESCRIPTORS, &names)
        .await?
        .add_service(grpc::server(engine.clone()))
        .add_service(grpc::host_server(engine.clone()))
        .serve_with_incoming_shutdown(incoming, stop.clone().told());
    let mut server = std::pin::pin!(server);
    let metrics = metrics.map(|listener| tokio::spawn(http::serve(listener, text_of(engine.clone()))));
    tracing::info!(listen = %options.listen, state = %options.state_dir.display(), "ready");
    notify::notify(notify::READY);
    let watched = engine.clone();
    let watchdog = notify::watchdog(move || {
        let engine = watched.clone();
        async move { engine.is_alive().await }
    });
    tokio::select! {
        result = &mut server => result?,
        () = engine.stopped() => return Err(ServeError::Ledger),
        () = stop.told() => {
            notify::notify(notify::STOPPING);
            tracing::info!("stopping; what waits is refused");
            // What waits for the ledger would hold the server up for ever.
            engine.stop().await;
            if let Ok(result) = timeout(DRAIN, server).await {
                result?;
            }
        }
    }
    for task in [metrics, watchdog].into_iter().flatten() {
        task.abort();
    }
    Ok(())
}

/// What [`http::serve`] asks for.
fn text_of(
    engine: Engine,
) -> impl Fn() -> futures::future::BoxFuture<'static, Result<String, engine::Refusal>>
+ Clone
+ Send
+ Sync
+ 'static {
    move || {
        let engine = engine.clone();
        Box::pin(async move { engine.metrics_text().await })
    }
}

async fn join(ledger: JoinHandle<()>) -> Result<(), ServeError> {
    match tokio::task::spawn_blocking(move || ledger.join()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(ServeError::Ledger),
    }
}
