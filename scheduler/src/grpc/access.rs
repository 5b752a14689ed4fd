//! Who may make which call.

use crate::{core::api::Named, engine::Engine};
use patina_daemon::{
    peer::Peer,
    roles::{Callers, denied},
    tls::{Identity, Role},
};
use tonic::{Request, Status};
use uuid::Uuid;

/// By the path of a call: of the scheduler's services, and of those that each daemon has. What is
/// not listed is for operators who may do everything.
#[must_use]
pub fn callers(path: &str) -> Callers {
    match path.trim_start_matches('/').split_once('/') {
        Some(("patina.v1.Scheduler", method)) => scheduler(method),
        Some(("patina.v1.HostScheduler", _)) => Callers::Hosts,
        Some(("grpc.health.v1.Health" | "grpc.reflection.v1.ServerReflection", _)) => Callers::All,
        _ => Callers::Operators(Role::Admin),
    }
}

/// Hosts call for their guests.
fn scheduler(method: &str) -> Callers {
    match method {
        "GetTicket" | "ListTickets" | "WatchTickets" | "ListHosts" => Callers::OperatorsAndHosts(Role::View),
        "RequestTicket" | "ReleaseTicket" | "Sync" | "Join" | "GetJoinData" | "Kill" => {
            Callers::OperatorsAndHosts(Role::Use)
        }
        // SetHostScheduling, FenceHost.
        _ => Callers::Operators(Role::Admin),
    }
}

/// The caller of a request.
pub(super) fn peer<T>(request: &Request<T>) -> Option<Peer> {
    request.extensions().get::<Peer>().cloned()
}

/// Refuses a peer that speaks for a host that it is not. Without a peer the caller is this process.
///
/// # Errors
/// It is another host, or none.
pub fn speaks_for(peer: Option<&Peer>, host: Uuid) -> Result<(), Status> {
    match peer {
        Some(peer) if !peer.is_host(host) => {
            tracing::warn!(%peer, %host, "a peer speaks for another host, and is refused");
            let message = format!(
                "the certificate is of {peer}, not of host {host}; a host needs the certificate that was made for its id: `vmctl pki host NAME --id {host}`"
            );
            Err(denied("FOREIGN_HOST", &message))
        }
        _ => Ok(()),
    }
}

/// Refuses a host that calls for a family whose VMs are on other hosts only. Others are judged by
/// their role alone.
///
/// # Errors
/// It is such a host, or the scheduler stops.
pub(super) async fn speaks_for_family(
    engine: &Engine,
    peer: Option<&Peer>,
    family: Uuid,
) -> Result<(), Status> {
    let Some(peer @ Peer::Certified(Identity::Host { id })) = peer else { return Ok(()) };
    if engine.may_speak(*id, family).await? {
        return Ok(());
    }
    tracing::warn!(%peer, %family, "a host calls for a family of other hosts, and is refused");
    Err(foreign_family(&format!(
        "the certificate is of {peer}, and family {family} has VMs on other hosts only; a host calls for its own VMs' families"
    )))
}

/// The same, for whoever names a ticket. A ticket that is not known is for the call itself to
/// refuse.
///
/// # Errors
/// As [`speaks_for_family`].
pub(super) async fn speaks_for_ticket(
    engine: &Engine,
    peer: Option<&Peer>,
    named: Named,
) -> Result<(), Status> {
    if !matches!(peer, Some(Peer::Certified(Identity::Host { .. }))) {
        return Ok(());
    }
    let family = match named.family {
        // The call refuses it if the ticket is of another family.
        Some(family) => family,
        None => engine.ticket(named).await?.ticket.family,
    };
    speaks_for_family(engine, peer, family).await
}

/// Refuses a host that asks for what is of all families.
///
/// # Errors
/// It is a host.
pub(super) fn speaks_for_all(peer: Option<&Peer>) -> Result<(), Status> {
    match peer {
        Some(peer @ Peer::Certified(Identity::Host { .. })) => Err(foreign_family(&format!(
            "the certificate is of {peer}, and the call is for all families; name the family"
        ))),
        _ => Ok(()),
    }
}

fn foreign_family(message: &str) -> Status {
    denied("FOREIGN_FAMILY", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_reserving_and_operating_are_for_different_roles() {
        let of = |path: &str| callers(path);
        assert_eq!(of("/patina.v1.Scheduler/ListHosts"), Callers::OperatorsAndHosts(Role::View));
        assert_eq!(of("/patina.v1.Scheduler/Kill"), Callers::OperatorsAndHosts(Role::Use));
        for admin in ["/patina.v1.Scheduler/FenceHost", "/patina.v1.Scheduler/New", "/x.Y/Z", "", "/", "x"] {
            assert_eq!(of(admin), Callers::Operators(Role::Admin), "{admin}");
        }
        for call in ["RegisterHost", "UseTicket", "ReserveVmids"] {
            assert_eq!(of(&format!("/patina.v1.HostScheduler/{call}")), Callers::Hosts);
        }
    }

    #[test]
    fn a_certificate_speaks_for_its_own_host_alone() {
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let host = Peer::Certified(Identity::Host { id: own });
        assert!(speaks_for(Some(&host), own).is_ok());
        let refused = speaks_for(Some(&host), other).unwrap_err();
        assert!(refused.message().contains(&other.to_string()), "{refused}");
        let operator = Peer::Certified(Identity::Operator { name: "a".into(), role: Role::Admin });
        assert!(speaks_for(Some(&operator), own).is_err());
        assert!(speaks_for(Some(&Peer::Local { uid: 0 }), own).is_ok() && speaks_for(None, own).is_ok());
    }
}
