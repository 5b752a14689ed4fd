//! Tells other hosts which VMs of a family run here, until they have heard it, and hears them.

use crate::{
    process::control_client::PATIENCE,
    vms::{
        error::Error,
        host::Host,
        members_data::{
            error::TellError,
            members::Members,
            told::{Came, Told, Version},
        },
    },
};
use patina_daemon::chain;
use patina_proto::v1::{FamilyMembers, TellFamilyRequest};
use scheduler::client::TargetError;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use uuid::Uuid;

/// How long a host may take to hear.
const HEAR_PATIENCE: Duration = Duration::from_secs(5);
/// How long after a host was not reached it is told again; each time in a row twice as long.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// How long a host may not know of VMs that others say it has: the clones may be on their way to
/// it.
const COMING_MAX: Duration = Duration::from_secs(30);
/// How long a host that does not answer is told that this one has no VM of the family any more.
const LEAVING_MAX: Duration = Duration::from_secs(600);
/// How often all is told again: whatever was missed, none stays wrong for longer.
const ALL_AGAIN: Duration = Duration::from_secs(60);

/// Why a host was not told.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("call it at {address:?}")]
    Address {
        address: String,
        #[source]
        source: TargetError,
    },
    #[error("it does not answer within {HEAR_PATIENCE:?}")]
    Silent,
    #[error("it refuses: {}", .0.message())]
    Refused(Box<tonic::Status>),
    #[error("its answer cannot be used")]
    Answer(#[source] TellError),
    #[error("another host answers: {0}")]
    Other(Uuid),
    #[error("clones are on their way to it")]
    Coming,
}

impl Host {
    /// Tells other hosts what there is of families that they have VMs of, as long as vmmd runs.
    pub fn keep_telling(self: &Arc<Self>) {
        if self.members.is_some() {
            tokio::spawn(Arc::clone(self).tell_for_ever());
        }
    }

    async fn tell_for_ever(self: Arc<Self>) {
        let Some(members) = &self.members else { return };
        // Nobody is told that VMs have ended of which it is not known yet whether they run.
        if self.adoption.subscribe().wait_for(|is_done| *is_done).await.is_err() {
            return;
        }
        let mut again = interval(ALL_AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = members.changed.notified() => {}
                _ = again.tick() => members.book().tell_again(),
            }
            let families = members.book().families();
            for (family, net) in families {
                let is_news = self.note_own(&mut members.book(), family, net);
                if is_news {
                    self.save_members(family).await;
                }
            }
            let to_tell = members.book().begin_telling();
            for (family, host) in to_tell {
                tokio::spawn(Arc::clone(&self).tell_host(family, host));
            }
        }
    }

    /// Tells one host of a family, until it knows all.
    async fn tell_host(self: Arc<Self>, family: Uuid, host: Uuid) {
        let Some(members) = &self.members else { return };
        let (mut wait, mut failing) = (AGAIN_FIRST, None);
        loop {
            let Some((address, told)) = members.book().next_for(family, host) else { return };
            let version = told.version;
            let since = *failing.get_or_insert_with(Instant::now);
            let answer = self.call_to_tell(&address, (family, host), &told, since).await;
            let error = match answer {
                Ok(answer) => {
                    self.hear_answer(&answer, version).await;
                    (wait, failing) = (AGAIN_FIRST, None);
                    continue;
                }
                Err(error) => error,
            };
            let is_first = wait == AGAIN_FIRST;
            if is_first {
                tracing::info!(%family, %host, error = %chain(&error), "a host is told again which VMs of a family run here");
            }
            if since.elapsed() > LEAVING_MAX && members.book().give_up(family, host) {
                tracing::warn!(%family, %host, "a host does not hear that no VM of the family runs here any more");
                self.save_members(family).await;
                return;
            }
            sleep(wait).await;
            wait = (wait * 2).min(AGAIN_MAX);
        }
    }

    async fn call_to_tell(
        &self,
        address: &str,
        (family, host): (Uuid, Uuid),
        told: &Told,
        since: Instant,
    ) -> Result<Told, CallError> {
        let client = self.settings.peers.client(address);
        let mut client =
            client.map_err(|source| CallError::Address { address: address.to_owned(), source })?;
        let request = TellFamilyRequest { members: Some(told.message()), to_host_id: host.to_string() };
        let answer = timeout(HEAR_PATIENCE, client.tell_family(request)).await;
        let answer = answer.map_err(|_| CallError::Silent)?;
        let answer = answer.map_err(|status| CallError::Refused(Box::new(status)))?.into_inner();
        let answer = Told::check(answer.members.unwrap_or_default()).map_err(CallError::Answer)?;
        if answer.speaker.host != host || answer.family != family {
            return Err(CallError::Other(answer.speaker.host));
        }
        let members = self.members.as_ref().filter(|_| since.elapsed() < COMING_MAX);
        let is_coming = |members: &Members| members.book().expects_more(family, host, &answer.speaker.vmids);
        if members.is_some_and(is_coming) { Err(CallError::Coming) } else { Ok(answer) }
    }

    async fn hear_answer(self: &Arc<Self>, answer: &Told, version: Version) {
        let Some(members) = &self.members else { return };
        let (family, host) = (answer.family, answer.speaker.host);
        let is_news = {
            let mut book = members.book();
            let heard = book.hear(answer, Came::AsAnswer);
            book.heard_by(family, host, version);
            heard
        };
        match is_news {
            Ok(true) => self.follow(family).await,
            Ok(false) => {}
            // It was forgotten meanwhile.
            Err(error) => tracing::debug!(%family, %host, error = %chain(&error), "an answer is not used"),
        }
        self.members_changed();
    }

    /// Another host says which VMs of a family run there. Returns what this one says.
    ///
    /// # Errors
    /// It may not say it, or it is not for this host.
    pub(crate) async fn hear(self: &Arc<Self>, told: Told, to_host: &str) -> Result<FamilyMembers, Error> {
        self.adopted(PATIENCE).await?;
        self.check_port(&told)?;
        let Some(members) = &self.members else { return Err(TellError::NoOverlay.into()) };
        if self.tickets.host_id() != to_host {
            let (wanted, own) = (to_host.chars().take(64).collect(), self.tickets.host_id().to_owned());
            return Err(TellError::OtherHost { wanted, own }.into());
        }
        let family = told.family;
        let is_news = {
            let mut book = members.book();
            match book.net(family) {
                Some(net) => {
                    self.note_own(&mut book, family, net);
                    book.hear(&told, Came::AsNews)?
                }
                // Who asks hears that nothing of it is here.
                None => false,
            }
        };
        if is_news {
            self.follow(family).await;
            self.members_changed();
        }
        Ok(members.book().tell(family).message())
    }
}
