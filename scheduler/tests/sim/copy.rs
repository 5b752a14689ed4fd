//! A daemon with the host id of another machine: its state folder was copied. It tries to register
//! whatever happens to the first one. Once it was, somebody sees that, and ends it.

use crate::{
    cluster::{ACTIVE, LOST_AFTER_MS},
    dice::Dice,
    facts::Shared,
    network,
};
use patina_proto::v1::{
    HostIdentity, HostInfo, HostMessage, Register, host_message::Message, host_order::Order,
};
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

/// Whose copy it is.
pub const OF: usize = 0;
/// Where it is: not where the first one is.
pub const MACHINE: &str = "the copy's machine";
/// How long the scheduler may take to answer it.
const PATIENCE: Duration = Duration::from_secs(3);

pub async fn work(facts: Shared, mut dice: Dice) -> turmoil::Result {
    // The first one is there before it.
    sleep(dice.ms(400, 1_500)).await;
    while turmoil::sim_elapsed().unwrap_or_default() < ACTIVE {
        match timeout(PATIENCE, register(&facts)).await {
            Ok(Ok(())) => {
                facts.log("the copy is registered");
                let now_ms = u64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_millis())?;
                let mut facts = facts.get();
                facts.sums.copies_taken += 1;
                facts.copy_is_taken(OF, now_ms, LOST_AFTER_MS);
                break;
            }
            Ok(Err(status)) if status.code() == Code::AlreadyExists => {
                facts.get().sums.copies_refused += 1;
                if !status.message().contains("delete the file host-id") {
                    facts.wrong(format_args!("the copy is not told what to do: {status}"));
                }
            }
            Ok(Err(_)) | Err(_) => {}
        }
        sleep(dice.ms(100, 1_000)).await;
    }
    std::future::pending().await
}

/// Registers without any clone; its registration is over when this returns.
async fn register(facts: &Shared) -> Result<(), Status> {
    let (id, cpus) = {
        let machine = &facts.get().machines[OF];
        (machine.id, machine.cpus)
    };
    let identity = HostIdentity {
        instance: "the copy".into(),
        boot: "the copy's boot".into(),
        machine: MACHINE.into(),
        folder: "folder".into(),
    };
    let info = HostInfo {
        id: id.to_string(),
        name: "copy".into(),
        address: "nowhere".into(),
        cpus,
        memory_mib: 1,
        identity: Some(identity),
        ..HostInfo::default()
    };
    let (messages, outgoing) = mpsc::channel(1);
    let register = Register { info: Some(info), ..Register::default() };
    messages.try_send(HostMessage { message: Some(Message::Register(register)) }).ok();
    let mut client = network::connection().host_client();
    let mut orders = client.register_host(ReceiverStream::new(outgoing)).await?.into_inner();
    match orders.message().await?.and_then(|order| order.order) {
        Some(Order::Registered(_)) => Ok(()),
        other => Err(Status::internal(format!("the first order is {other:?}"))),
    }
}
