//! The scheduler's life: open the ledger, serve, stop.

use crate::{
    engine::{self, Engine, EngineError},
    grpc::{self, RESETS_MAX, STREAMS_MAX, Service},
    options::Options,
    store::{
        StoreError,
        file::{FileStore, Lasting},
    },
};
use patina_daemon::{
    http::{self, HttpError},
    listen::{self, Address, Incoming, ListenError},
    notify,
};
use patina_proto::v1::scheduler_server::SchedulerServer;
use std::{fs, io, sync::Arc, thread::JoinHandle, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};
use tonic::transport::Server;

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
    /// The metrics' socket.
    #[error(transparent)]
    Metrics(#[from] HttpError),
    /// Signals.
    #[error("watch for signals: {0}")]
    Signal(#[source] io::Error),
    /// The server.
    #[error("serve: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// Reflection.
    #[error("describe the service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The ledger's thread has ended by itself.
    #[error("serve: the ledger's thread has ended; its last words are in the log")]
    Ledger,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or it broke.
pub async fn run(options: Options) -> Result<(), ServeError> {
    let stop = stop_signals()?;
    // The ledger first: its lock is what keeps two schedulers of one folder apart.
    let store = FileStore::open(&options.state_dir, Lasting::Host)?;
    let metrics = match options.metrics {
        Some(address) => Some(http::listen(address).await?),
        None => None,
    };
    let incoming = listen::listen(&options.listen).await?;
    let (engine, ledger) = engine::start(Box::new(store), options.core())?;
    let served = serve(&options, engine.clone(), incoming, metrics, stop).await;
    if let Address::Unix(path) = &options.listen
        && let Err(error) = fs::remove_file(path)
    {
        tracing::warn!(socket = %path.display(), %error, "remove");
    }
    engine.stop().await;
    served.and(join(ledger).await)
}

async fn serve(
    options: &Options,
    engine: Engine,
    incoming: Incoming,
    metrics: Option<TcpListener>,
    stop: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<SchedulerServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(patina_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        // Guests that go away cancel their calls, many at once.
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(grpc::server(engine.clone()))
        .serve_with_incoming_shutdown(incoming, stopped(stop.clone()));
    let mut server = std::pin::pin!(server);
    let metrics = metrics.map(|listener| tokio::spawn(http::serve(listener, text_of(engine.clone()))));
    tracing::info!(listen = %options.listen, state = %options.state_dir.display(), "ready");
    notify::notify(notify::READY);
    tokio::select! {
        result = &mut server => result?,
        () = engine.stopped() => return Err(ServeError::Ledger),
        () = stopped(stop) => {
            notify::notify(notify::STOPPING);
            tracing::info!("stopping; what waits is refused");
            // What waits for the ledger would hold the server up for ever.
            engine.stop().await;
            if let Ok(result) = timeout(DRAIN, server).await {
                result?;
            }
        }
    }
    if let Some(metrics) = metrics {
        metrics.abort();
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
        Box::pin(async move { Arc::clone(engine.metrics()).text(&engine).await })
    }
}

async fn join(ledger: JoinHandle<()>) -> Result<(), ServeError> {
    match tokio::task::spawn_blocking(move || ledger.join()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(ServeError::Ledger),
    }
}

fn stop_signals() -> Result<watch::Receiver<bool>, ServeError> {
    let mut term = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    let mut int = signal(SignalKind::interrupt()).map_err(ServeError::Signal)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        sender.send_replace(true);
    });
    Ok(receiver)
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // The sender going away without a word means that the runtime ends: the same.
    if stop.wait_for(|stop| *stop).await.is_err() {
        tracing::debug!("signals are no longer watched");
    }
}
