//! Requests for tickets, and what becomes of a grant that nobody wants any more.

use super::{Admission, anew};
use crate::client::calls::{Failed, answered};
use patina_daemon::chain;
use patina_proto::v1::{
    AdmitClonesRequest, FamilyVm, ListFamilyRequest, ReleaseTicketRequest, RequestTicketRequest,
    ReserveVmidsRequest, Ticket, TicketState, UnuseTicketRequest,
};
use std::{future::Future, time::Duration};
use tokio::runtime::Handle;
use tonic::Status;
use uuid::Uuid;

/// A request that nobody but the one who waits for it knows.
pub(super) struct Asking {
    admission: Admission,
    request: Option<Wanted>,
}

/// What was asked for.
pub(super) enum Wanted {
    /// A ticket.
    Ticket(RequestTicketRequest),
    /// A ticket that is used at once.
    Clones(AdmitClonesRequest),
}

impl Asking {
    pub(super) fn new(admission: &Admission, request: impl Into<Option<Wanted>>) -> Self {
        Self { admission: admission.clone(), request: request.into() }
    }

    /// The answer is here: whoever waits for it has what was granted.
    pub(super) fn over<T>(&mut self, answer: Result<T, Failed>) -> Result<T, Failed> {
        if !matches!(answer, Err(Failed::Unknown(_))) {
            self.request = None;
        }
        answer
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if let (Some(request), Ok(runtime)) = (self.request.take(), Handle::try_current()) {
            runtime.spawn(self.admission.clone().take_back(request));
        }
    }
}

impl Admission {
    /// Requests a ticket. One without a request id gets one, and nobody else will ask for it: what
    /// it is granted goes back if this is dropped, or fails, before that is known.
    ///
    /// # Errors
    /// It is refused, or the scheduler does not answer.
    pub async fn request(&self, request: RequestTicketRequest) -> Result<Ticket, Failed> {
        let is_own = request.request_id.is_empty();
        let request_id = if is_own { Uuid::new_v4().to_string() } else { request.request_id.clone() };
        let request = RequestTicketRequest { request_id, ..request };
        let mut asking = Asking::new(self, is_own.then(|| Wanted::Ticket(request.clone())));
        let ticket = answered(Duration::from_millis(request.timeout_ms), |left| {
            let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            self.once(RequestTicketRequest { timeout_ms, ..request.clone() })
        });
        asking.over(ticket.await)
    }

    /// Requests a ticket once.
    fn once(&self, request: RequestTicketRequest) -> impl Future<Output = Result<Ticket, Status>> + use<> {
        let mut client = self.client();
        async move { client.request_ticket(request).await.map(tonic::Response::into_inner) }
    }

    /// Requests clones once.
    pub(super) fn admit_once(
        &self,
        request: AdmitClonesRequest,
    ) -> impl Future<Output = Result<Ticket, Status>> + use<> {
        let mut client = self.host_client();
        async move { client.admit_clones(request).await.map(tonic::Response::into_inner) }
    }

    /// Nothing was made with a ticket that was used.
    pub(super) async fn unuse(&self, ticket: &Ticket) -> Result<(), Failed> {
        let request = UnuseTicketRequest {
            id: ticket.id.clone(),
            family: ticket.family.clone(),
            // If the answer is lost, and others use the ticket before this call is repeated, that
            // use does not count as this one.
            epoch: ticket.epoch,
            host_id: self.host_id().to_owned(),
        };
        let unused = answered(Duration::ZERO, |_| {
            let (mut client, request) = (self.host_client(), request.clone());
            async move { client.unuse_ticket(request).await.map(drop) }
        });
        unused.await
    }

    /// Gives a granted ticket back.
    ///
    /// # Errors
    /// It was used, or the scheduler does not answer.
    pub async fn release(&self, id: &str, family: &str) -> Result<(), Failed> {
        let request = ReleaseTicketRequest { id: id.to_owned(), family: family.to_owned() };
        let released = answered(Duration::ZERO, |_| {
            let (mut client, request) = (self.client(), request.clone());
            async move { client.release_ticket(request).await.map(drop) }
        });
        released.await
    }

    /// Reserves vmids of a family that no other host gets, none below `at_least`: the first of
    /// `count` that follow each other. The same `request_id` gets the same ones.
    ///
    /// # Errors
    /// The family has not so many left, or the scheduler does not answer.
    pub async fn reserve_vmids(
        &self,
        family: &str,
        count: u32,
        at_least: u32,
        request_id: Uuid,
    ) -> Result<u32, Failed> {
        let reserved = answered(Duration::ZERO, |_| async {
            let request = ReserveVmidsRequest {
                family: family.to_owned(),
                host_id: self.host_id().to_owned(),
                host_epoch: self.epoch().await,
                count,
                request_id: request_id.to_string(),
                at_least,
            };
            let reserved = self.host_client().reserve_vmids(request).await;
            reserved.map(|response| response.into_inner().first).map_err(anew)
        });
        reserved.await
    }

    /// The VMs of a family that live, on all hosts.
    ///
    /// # Errors
    /// The scheduler does not answer.
    pub async fn list_family(&self, family: &str) -> Result<Vec<FamilyVm>, Failed> {
        let request = ListFamilyRequest { family: family.to_owned(), host_id: self.host_id().to_owned() };
        let listed = answered(Duration::ZERO, |_| {
            let (mut client, request) = (self.host_client(), request.clone());
            async move { client.list_family(request).await.map(|response| response.into_inner().vms) }
        });
        listed.await
    }

    /// What a request was granted that nobody waits for any more goes back.
    async fn take_back(self, wanted: Wanted) {
        let (family, request_id) = match &wanted {
            Wanted::Ticket(request) => (request.family.clone(), request.request_id.clone()),
            Wanted::Clones(request) => (request.family.clone(), request.request_id.clone()),
        };
        let given = async {
            let ticket = match wanted {
                Wanted::Ticket(request) => {
                    let request = RequestTicketRequest { timeout_ms: 0, ..request };
                    answered(Duration::ZERO, |_| self.once(request.clone())).await?
                }
                Wanted::Clones(request) => {
                    // Not granted now, if it was not before: no registration has this epoch.
                    let request = AdmitClonesRequest { host_epoch: u64::MAX, ..request };
                    answered(Duration::ZERO, |_| self.admit_once(request.clone())).await?
                }
            };
            match ticket.state() {
                TicketState::Used if ticket.loose => self.unuse(&ticket).await,
                TicketState::Granted => self.release(&ticket.id, &ticket.family).await,
                _ => Ok(()),
            }
        };
        if let Err(error) = given.await {
            tracing::debug!(family, request = request_id, error = %chain(&error), "nothing is taken back");
        }
    }
}
