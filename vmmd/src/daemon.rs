//! The life of the daemon: lock the state folder, adopt running VMs, serve, stop. VMs outlive it.

use crate::{
    cluster::{Cluster, ClusterError},
    grpc::{
        MESSAGE_MAX_BYTES, access,
        facts::{self, Facts},
        limit::CallLimit,
        peer_service::PeerService,
        service::Service,
    },
    metrics::Metrics,
    net,
    options::Options,
    plan::spec::DefaultImages,
    process::{host_check, spawn},
    store::{StateDir, StoreError, VmDir},
    vms::{
        Host, Settings, error::Error as HostError, gauges::Gauges, guest::Answers, remote_data::peers::Peers,
        remove,
    },
};
use patina_daemon::{
    chain,
    http::{self, HttpError},
    listen::{self, Aside, Incoming, ListenError},
    notify,
    server::{self, DescribeError},
    stop::{SignalError, Stop},
    tls::{Security, TlsError},
};
use patina_proto::v1::{host_peer_server::HostPeerServer, vmmd_server::VmmdServer};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scheduler::engine::Refusal;
use std::{
    env, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tonic::{server::NamedService, service::LayerExt as _};

/// Most calls of operators that are being answered; the next ones wait. `WaitVm`, which takes as
/// long as a VM lives, has a limit of its own. What guests and hosts want of the scheduler that is
/// built in waits on the same connections, in any number, and has limits of its own.
const CALLS_MAX: usize = 4096;
/// Most connections that are not for gRPC and that nobody has looked at yet.
const ASIDES_MAX: usize = 64;
/// How long vmmd may take over what runs before it says that it is ready.
const READY_PATIENCE: Duration = Duration::from_secs(1);
/// How long calls that run may take to finish once vmmd is to stop; streams are cut then.
const DRAIN: Duration = Duration::from_secs(2);
/// A client on the other side of a dead network is let go after this.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why vmmd does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No `vmm`.
    #[error("find the vmm program {path}; install it beside vmmd, or name it with --vmm")]
    Vmm {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The state folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The VMs.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The scheduler.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Signals.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// The server.
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] HttpError),
    /// Reflection.
    #[error(transparent)]
    Reflection(#[from] DescribeError),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or the server broke.
pub async fn run(options: Options) -> Result<(), DaemonError> {
    let stop = Stop::at_signals()?;
    raise_descriptor_limit();
    let security = Security::new(options.tls_dir.as_deref(), options.insecure)?;
    let settings = settings(&options, &security)?;
    host_check::run(&settings.vmm).await;
    let state = StateDir::open(&options.state_dir)?;
    // Before anything is taken over: one who cannot serve leaves all as it is.
    let (asides, for_pages) = mpsc::channel(ASIDES_MAX);
    let incoming = listen::listen(&options.listen, &security, Some(asides)).await?;
    let served = serve(&options, settings, state, &security, (incoming, for_pages), stop).await;
    options.listen.remove();
    served
}

async fn serve(
    options: &Options,
    settings: Settings,
    state: StateDir,
    security: &Security,
    (incoming, for_pages): (Incoming, mpsc::Receiver<Aside>),
    stop: Stop,
) -> Result<(), DaemonError> {
    let cluster = Cluster::open(options, &state, security)?;
    let range = options.network;
    tokio::spawn(async move { net::warn_of_conflicts(&range).await });
    let host = Host::new(settings, state, cluster.tickets(), Box::new(Answers))?;
    keep_going(&host, for_pages);
    // Whatever ends this: VMs run on with their memory.
    let _left = host.pager.left_when_dropped();
    let mut taking_over = tokio::spawn(take_over(Arc::clone(&host), host.find_folders()?));
    let service =
        VmmdServer::new(Service::new(Arc::clone(&host))).max_decoding_message_size(MESSAGE_MAX_BYTES);
    let service = CallLimit::new(CALLS_MAX).named_layer(service);
    let for_hosts =
        HostPeerServer::new(PeerService::new(Arc::clone(&host))).max_decoding_message_size(MESSAGE_MAX_BYTES);
    let for_hosts = CallLimit::new(CALLS_MAX).named_layer(for_hosts);
    let metrics = metrics(options, &host, &cluster).await?;
    let server = server::builder().http2_keepalive_interval(Some(KEEPALIVE));
    let scheduler = cluster.service();
    let mut names = vec![VmmdServer::<Service>::NAME, HostPeerServer::<PeerService>::NAME];
    names.extend(scheduler.iter().map(name_of));
    let server = server::described(server, access::callers, patina_proto::DESCRIPTORS, &names)
        .await?
        .add_service(service)
        .add_service(for_hosts)
        .add_optional_service(scheduler)
        .serve_with_incoming_shutdown(incoming, stop.clone().told());
    let mut server = std::pin::pin!(server);
    let told = stop.clone().told();
    let mut told = std::pin::pin!(told);
    tokio::select! {
        result = &mut server => return Ok(result?),
        // Those who wait for vmmd find the earlier VMs, unless taking them over takes long.
        taken = timeout(READY_PATIENCE, &mut taking_over) => if taken.is_err() {
            tracing::warn!("not all that runs is taken over yet; what is can be used");
        },
        () = &mut told => {}
    }
    tracing::info!(listen = %options.listen, state = %host.state().path().display(), "ready");
    notify::notify(notify::READY);
    let watchdog = watchdog(&host, &cluster);
    tokio::select! {
        result = &mut server => result?,
        () = stop.told() => {
            notify::notify(notify::STOPPING);
            tracing::info!(vms = running(&host), "stopping; VMs keep running and are taken over by the next vmmd");
            if let Some(result) = drain(&host, server).await {
                result?;
            }
        }
    }
    for task in [metrics, watchdog].into_iter().flatten() {
        task.abort();
    }
    host.stop_lending();
    host.pager.end_if_idle().await;
    cluster.stop().await;
    Ok(())
}

/// Gives calls some time, and ends the vmms that are no VM's. What came of the server, if it ended
/// in time: streams that go on for ever must not hold it up.
async fn drain<T>(host: &Host, server: impl Future<Output = T>) -> Option<T> {
    let mut pools = std::pin::pin!(host.end_pools());
    let (drained, ended) = tokio::join!(timeout(DRAIN, server), timeout(DRAIN, pools.as_mut()));
    // Calls that make clones have had their time: what is still being made is ended.
    let rest = async {
        host.end_making().await;
        if ended.is_err() {
            pools.await;
        }
    };
    if timeout(DRAIN, rest).await.is_err() {
        tracing::warn!("the next vmmd ends what is warm");
    }
    drained.ok()
}

/// Begins what a host does as long as it lives.
fn keep_going(host: &Arc<Host>, for_pages: mpsc::Receiver<Aside>) {
    host.keep_evicting();
    host.keep_spares();
    host.keep_telling();
    host.find_holders_from_now_on();
    host.keep_looking_at_images();
    tokio::spawn(Arc::clone(host).serve_pages(for_pages));
    if let Err(error) = spawn::open_kvm() {
        // Not the end: what runs is looked after, and `vmctl doctor` can ask.
        tracing::error!(error = %chain(&error), "no VM can be made on this host");
    }
}

/// Takes over what an earlier `vmmd` left, then registers this host.
async fn take_over(host: Arc<Host>, found: Vec<(String, VmDir)>) {
    let adopted = host.adopt(found).await;
    // Only now: the ledger follows what this host says that it has.
    host.register().await;
    tracing::info!(adopted.running, adopted.ended, adopted.reaped, adopted.broken, "state taken over");
}

/// Serves metrics, if they are wanted: this host's, and those of the scheduler that is built in.
async fn metrics(
    options: &Options,
    host: &Arc<Host>,
    cluster: &Cluster,
) -> Result<Option<JoinHandle<()>>, DaemonError> {
    let Some(address) = options.metrics else { return Ok(None) };
    let listener = http::listen(address).await?;
    let registry = Arc::new(host.metrics.registry(Box::new(Gauges::new(host))));
    let engine = cluster.embedded().map(|embedded| embedded.engine().clone());
    let text = move || {
        let (registry, engine) = (Arc::clone(&registry), engine.clone());
        async move {
            let scheduler = match engine {
                Some(engine) => Some(engine.metrics_text().await?),
                None => None,
            };
            Ok::<_, Refusal>(Metrics::text(registry, scheduler).await)
        }
    };
    Ok(Some(tokio::spawn(http::serve(listener, text))))
}

/// The daemon is alive while its table of VMs and the ledger of the scheduler that is built in
/// answer.
fn watchdog(host: &Arc<Host>, cluster: &Cluster) -> Option<JoinHandle<()>> {
    let (host, engine) = (Arc::clone(host), cluster.embedded().map(|embedded| embedded.engine().clone()));
    notify::watchdog(move || {
        let (host, engine) = (Arc::clone(&host), engine.clone());
        async move {
            running(&host);
            match engine {
                Some(engine) => engine.is_alive().await,
                None => true,
            }
        }
    })
}

fn running(host: &Host) -> usize {
    use crate::plan::lifecycle::Phase;
    host.table.all().iter().filter(|vm| !matches!(vm.status().phase, Phase::Ended(_))).count()
}

fn settings(options: &Options, security: &Security) -> Result<Settings, DaemonError> {
    let vmm = match &options.vmm {
        Some(path) => path.clone(),
        None => beside_this_program("vmm"),
    };
    let vmm = vmm.canonicalize().map_err(|source| DaemonError::Vmm { path: vmm, source })?;
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let pager = options.pager.clone().unwrap_or_else(|| beside_this_program("pager"));
    let pager = pager.canonicalize().unwrap_or_else(|error| {
        // Only VMs whose memory arrives while they run need it.
        tracing::warn!(path = %pager.display(), error = %chain(&error), "no pager program; install it beside vmmd, or name it with --pager");
        absolute(&pager)
    });
    Ok(Settings {
        vmm,
        pager,
        images: DefaultImages {
            kernel: absolute(&options.default_kernel()),
            rootfs: absolute(&options.default_rootfs()),
        },
        range: options.network,
        hostname: Facts::gather().hostname,
        warm: usize::from(options.warm),
        spares: usize::from(options.spare),
        keep_ended: remove::keep_ended(options),
        image_cache: options.image_cache(),
        fetched_bytes_max: options.fetched_size.saturating_mul(1 << 20),
        host_kind: facts::kind_of_host(),
        peers: Peers::new(options.own_address(), security.clone()),
        overlay: options.overlay,
        compress_pages: options.compress_pages,
        ticket_hosts: options.tickets,
    })
}

fn beside_this_program(name: &str) -> PathBuf {
    env::current_exe().map_or_else(|_| PathBuf::from(name), |own| own.with_file_name(name))
}

/// A connection of a published port takes two descriptors: the usual soft limit is soon reached.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(error = %chain(&error), "raise the limit of open files");
    }
}

fn name_of<S: NamedService>(_service: &S) -> &'static str {
    S::NAME
}
