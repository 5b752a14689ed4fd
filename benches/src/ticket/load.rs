//! Grants over gRPC.

use super::{daemon::Daemon, us};
use patina_proto::v1::{ReleaseTicketRequest, RequestTicketRequest};
use scheduler::client::Client;
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tonic::Status;
use uuid::Uuid;

/// How many ask at once.
pub const CALLERS: usize = 128;
/// And over how many connections: as if each were a host.
pub const CONNECTIONS: usize = 4;
/// One sample of the rate.
pub const WINDOW: Duration = Duration::from_millis(250);
/// Calls before anything counts.
const WARM_UP: usize = 100;

fn request(family: &str) -> RequestTicketRequest {
    RequestTicketRequest {
        family: family.to_owned(),
        max_cpus: 4,
        min_vms: 4,
        min_cpus_per_vm: 1,
        vcpus: 1,
        memory_mib: 256,
        ..RequestTicketRequest::default()
    }
}

async fn grant(client: &mut Client, family: &str) -> Result<String, Status> {
    Ok(client.request_ticket(request(family)).await?.into_inner().id)
}

async fn release(client: &mut Client, id: String, family: &str) -> Result<(), Status> {
    client.release_ticket(ReleaseTicketRequest { id, family: family.to_owned() }).await.map(drop)
}

/// From request to reply, microseconds; released in between.
pub async fn one_after_another(daemon: &Daemon, count: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    let (mut client, family) = (daemon.client()?, Uuid::new_v4().to_string());
    let mut samples = Vec::with_capacity(count);
    for number in 0..WARM_UP + count {
        let started = Instant::now();
        let id = grant(&mut client, &family).await?;
        if number >= WARM_UP {
            samples.push(us(started));
        }
        release(&mut client, id, &family).await?;
    }
    Ok(samples)
}

/// What many callers saw.
pub struct Load {
    /// From request to reply, microseconds.
    pub grants_us: Vec<f64>,
    /// Grants and releases of each window, a second.
    pub per_s: Vec<f64>,
}

/// All callers ask and release as fast as they are answered.
pub async fn many_at_once(daemon: &Daemon, duration: Duration) -> Result<Load, Box<dyn Error>> {
    let done = Arc::new(AtomicU64::new(0));
    let clients = (0..CONNECTIONS).map(|_| daemon.client()).collect::<Result<Vec<_>, _>>()?;
    let until = Instant::now() + duration;
    let mut callers = JoinSet::new();
    for client in clients.iter().cycle().take(CALLERS) {
        callers.spawn(caller(client.clone(), Arc::clone(&done), until));
    }
    let (mut per_s, mut windows) = (Vec::new(), interval(WINDOW));
    windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
    windows.tick().await;
    let (mut before, mut began) = (done.load(Ordering::Relaxed), Instant::now());
    while Instant::now() + WINDOW < until {
        windows.tick().await;
        let (now, seconds) = (done.load(Ordering::Relaxed), began.elapsed().as_secs_f64());
        #[allow(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        per_s.push((now - before) as f64 / seconds);
        (before, began) = (now, Instant::now());
    }
    let mut grants_us = Vec::new();
    while let Some(caller) = callers.join_next().await {
        grants_us.extend(caller??);
    }
    // The first windows have the connections' beginning in them.
    Ok(Load { grants_us, per_s: per_s.split_off(per_s.len().min(2)) })
}

async fn caller(mut client: Client, done: Arc<AtomicU64>, until: Instant) -> Result<Vec<f64>, Status> {
    let (family, mut samples) = (Uuid::new_v4().to_string(), Vec::new());
    while Instant::now() < until {
        let started = Instant::now();
        let id = grant(&mut client, &family).await?;
        samples.push(us(started));
        done.fetch_add(1, Ordering::Relaxed);
        release(&mut client, id, &family).await?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(samples)
}
