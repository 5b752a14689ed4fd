//! `WatchEvents` and `ListUsage`: events, and the resources that VMs use.

use super::{Answers, Permit, STREAM_QUEUE};
use crate::vms::{Host, table::Entry};
use patina_control::monotonic_ns;
use patina_proto::v1::{self, Event};
use std::sync::Arc;
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    mpsc,
};
use tonic::Status;

/// Sends a client what it watches, until it goes away.
pub fn events(host: &Arc<Host>, permit: Permit, request: v1::WatchEventsRequest) -> Answers<Event> {
    let (past, future) = host.events.watch();
    let past = if request.past || request.past_only { past } else { Vec::new() };
    let future = (!request.past_only).then_some(future);
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    tokio::spawn(hand_on(past, future, request.family, sender));
    permit.answers(receiver)
}

async fn hand_on(
    past: Vec<Event>,
    future: Option<Receiver<Event>>,
    family: String,
    sender: mpsc::Sender<Result<Event, Status>>,
) {
    let is_wanted = |event: &Event| family.is_empty() || event.family == family;
    for event in past.into_iter().filter(is_wanted) {
        if sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
    let Some(mut future) = future else { return };
    loop {
        let next = tokio::select! {
            next = future.recv() => next,
            () = sender.closed() => return,
        };
        let event = match next {
            Ok(event) if is_wanted(&event) => event,
            Ok(_) => continue,
            Err(RecvError::Lagged(missed)) => Event { missed, ..Event::default() },
            Err(RecvError::Closed) => return,
        };
        if sender.send(Ok(event)).await.is_err() {
            return;
        }
    }
}

/// What the running VMs of a page take now. At most `size` VMs are looked at, so that a page takes
/// bounded time.
pub fn usage(host: &Host, page_token: &str, size: usize) -> v1::ListUsageResponse {
    let of = |vm: &Arc<crate::vms::Vm>| {
        let (usage, is_uncloned) = host.usage(vm)?;
        Some(v1::Usage {
            name: vm.record.name.clone(),
            cpu_us: usage.cpu_us,
            private_kib: usage.private_kib(is_uncloned),
            shared_kib: usage.shared_kib(is_uncloned),
            minor_faults: usage.minor_faults,
            major_faults: usage.major_faults,
        })
    };
    let (entries, more) = host.table.page(page_token, size);
    let next_page_token = entries.last().filter(|_| more).map(|entry| entry.name().to_owned());
    let vms = entries.iter().filter_map(|entry| match entry {
        Entry::Vm(vm) => of(vm),
        Entry::Adopting(_) | Entry::Broken(..) => None,
    });
    v1::ListUsageResponse {
        monotonic_us: monotonic_ns() / 1000,
        vms: vms.collect(),
        next_page_token: next_page_token.unwrap_or_default(),
    }
}
