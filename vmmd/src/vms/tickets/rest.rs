//! Gives back what is not used of a ticket, also when the scheduler is away.

use super::Tickets;
use patina_daemon::chain;
use patina_proto::v1::ReleaseTicketRequest;
use scheduler::client::{Client, calls::is_away};
use std::time::Duration;
use uuid::Uuid;

/// How long a scheduler that is away is called: as long as a ticket usually may be unused.
const REST_PATIENCE: Duration = Duration::from_secs(600);

impl Tickets {
    /// What other hosts have of a ticket and did not use is not wanted any more. Until the
    /// scheduler knows, the ticket's clones wait for more to come. So one that is away is called
    /// again, and the caller does not wait for that.
    pub(in crate::vms) async fn release_rest(&self, id: Uuid, family: Uuid) {
        let request = ReleaseTicketRequest { id: id.to_string(), family: family.to_string() };
        let Err(failed) = self.0.admission.release(&request.id, &request.family).await else { return };
        let status = failed.into_status();
        if !is_away(&status) {
            tracing::debug!(ticket = %id, error = %chain(&status), "nothing of the ticket is left to release");
            return;
        }
        let tickets = self.clone();
        tokio::spawn(async move {
            let release = |mut client: Client, _| {
                let request = request.clone();
                async move { client.release_ticket(request).await }
            };
            let released = tickets.ask("release the rest of a ticket", REST_PATIENCE, release).await;
            if let Err(error) = released {
                tracing::warn!(ticket = %id, error = %chain(&error), "what is not used of a ticket stays until it expires");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_proto::v1::HostInfo;
    use std::{
        io::ErrorKind,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };
    use tokio::io::DuplexStream;

    #[tokio::test(start_paused = true)]
    async fn a_scheduler_that_is_away_is_told_later_what_is_not_used() {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        let connection = scheduler::client::over(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Err::<DuplexStream, _>(ErrorKind::NotConnected.into()) }
        });
        let tickets = Tickets::new(connection, HostInfo::default(), String::new());
        tickets.release_rest(Uuid::from_u128(1), Uuid::from_u128(2)).await;
        let before = calls.load(Ordering::Relaxed);
        assert!(before > 0);
        tokio::time::sleep(REST_PATIENCE / 2).await;
        assert!(calls.load(Ordering::Relaxed) > before, "nobody calls the scheduler any more");
        // Not for ever.
        tokio::time::sleep(REST_PATIENCE).await;
        let after = calls.load(Ordering::Relaxed);
        tokio::time::sleep(REST_PATIENCE).await;
        assert_eq!(calls.load(Ordering::Relaxed), after);
    }
}
