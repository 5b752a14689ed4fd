//! A host's stream. The host registers, sends heartbeats and reports ended clones; it receives the
//! clones that must end. The registration ends with the stream.

use super::{access, check, status};
use crate::core::api::CoreError;
use crate::{
    core::ticket::HostId,
    engine::{Engine, KillOrder, Refusal},
};
use patina_daemon::peer::Peer;
use patina_proto::v1::{
    HostMessage, HostOrder, KillClones, Registered, host_message::Message, host_order::Order,
};
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};

/// For the first message, and for an order to be taken.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) type Out = mpsc::Sender<Result<HostOrder, Status>>;

/// Until the stream, the registration or the scheduler ends.
pub(super) async fn serve(engine: Engine, peer: Option<Peer>, messages: Streaming<HostMessage>, out: Out) {
    let Err(status) = session(&engine, peer, messages, &out).await else { return };
    tracing::info!(code = ?status.code(), error = status.message(), "a host's connection ends");
    if timeout(PATIENCE, out.send(Err(status))).await.is_err() {
        tracing::debug!("the host does not take the reason");
    }
}

/// A registration that is over when this is dropped.
struct Registration<'a> {
    engine: &'a Engine,
    host: HostId,
    epoch: u64,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.engine.host_down(self.host, self.epoch);
    }
}

async fn session(
    engine: &Engine,
    peer: Option<Peer>,
    mut messages: Streaming<HostMessage>,
    out: &Out,
) -> Result<(), Status> {
    let first = timeout(PATIENCE, messages.message()).await;
    let first = first.map_err(|_| first_message("it did not come in time"))??;
    let Some(HostMessage { message: Some(Message::Register(register)) }) = first else {
        return Err(first_message("it is another one"));
    };
    let (info, present) = check::register(register)?;
    access::speaks_for(peer.as_ref(), info.id)?;
    let (host, name, clones) = (info.id, info.name.clone(), present.running.len());
    let (epoch, mut orders) = engine.host_up(info, present).await?;
    let registration = Registration { engine, host, epoch };
    tracing::info!(%host, name, epoch, clones, "host registered");
    let lease_ms = engine.options().lease_ms;
    order(out, Order::Registered(Registered { epoch, lease_ms })).await?;
    loop {
        tokio::select! {
            biased;
            kill = orders.recv() => match kill {
                Some(kill) => order(out, Order::Kill(kill_clones(kill))).await?,
                None if engine.is_stopped() => return Err(Refusal::Stopped.into()),
                None => return Err(Refusal::Core(CoreError::StaleHost { host, given: epoch }).into()),
            },
            message = messages.message() => match message? {
                Some(message) => hear(&registration, message, out).await?,
                None => return Ok(()),
            },
            () = out.closed() => return Ok(()),
        }
    }
}

async fn hear(registration: &Registration<'_>, message: HostMessage, out: &Out) -> Result<(), Status> {
    let Registration { engine, host, epoch } = *registration;
    match message.message {
        Some(Message::Beat(beat)) => Ok(engine.host_beat(host, epoch, check::beat(beat)?).await?),
        Some(Message::Ended(ended)) => {
            let check::Ended { clones, masters } = check::ended(&ended)?;
            engine.ended(host, epoch, clones, masters).await?;
            order(out, Order::EndedNoted(ended.serial)).await
        }
        Some(Message::Register(_)) => {
            Err(status::invalid(vec![("register".into(), "once a stream: begin another one".into())]))
        }
        // A newer host may say more.
        None => Ok(()),
    }
}

fn kill_clones(order: KillOrder) -> KillClones {
    let KillOrder { family, ticket, epoch, vmids, reason } = order;
    KillClones { family: family.to_string(), vmids, reason, ticket: ticket.to_string(), epoch }
}

fn first_message(problem: &str) -> Status {
    status::invalid(vec![("register".into(), format!("it must be the stream's first message; {problem}"))])
}

async fn order(out: &Out, order: Order) -> Result<(), Status> {
    match timeout(PATIENCE, out.send(Ok(HostOrder { order: Some(order) }))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("the host has gone")),
        Err(_) => Err(Status::deadline_exceeded("the host does not take its orders")),
    }
}
