//! Which peers may make which calls: one layer in front of all services of a daemon.

use crate::{
    peer::Peer,
    tls::{Identity, Role},
};
use futures::future::{Either, Ready, ready};
use std::{
    collections::HashMap,
    task::{Context, Poll},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{Request, Response},
};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::{Layer, Service};

/// The reason in the status of a call that the peer's role does not allow.
const REASON: &str = "ROLE";

/// Who may make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Everyone who is somebody: operators of any role, and hosts.
    All,
    /// Operators of this role or a higher one.
    Operators(Role),
    /// Operators of this role or a higher one, and hosts, on behalf of their guests.
    OperatorsAndHosts(Role),
    /// Hosts.
    Hosts,
}

impl Callers {
    fn include(self, peer: &Peer) -> bool {
        let is_host = matches!(peer, Peer::Certified(Identity::Host { .. }));
        let has = |least: Role| peer.role().is_some_and(|role| role >= least);
        match self {
            Self::All => is_host || has(Role::View),
            Self::Operators(least) => has(least),
            Self::OperatorsAndHosts(least) => is_host || has(least),
            // A vmmd of this machine calls on the Unix socket.
            Self::Hosts => is_host || matches!(peer, Peer::Anybody | Peer::Local { .. }),
        }
    }

    fn words(self) -> String {
        match self {
            Self::All => "operators and hosts".to_owned(),
            Self::Operators(role) => format!("operators with the role {}", role.name()),
            Self::OperatorsAndHosts(role) => format!("hosts and operators with the role {}", role.name()),
            Self::Hosts => "hosts".to_owned(),
        }
    }
}

/// The layer, with a function from a call's path (`/patina.v1.Vmmd/ListVms`) to those who may make
/// it.
#[derive(Debug, Clone, Copy)]
pub struct Roles(pub fn(&str) -> Callers);

impl<S> Layer<S> for Roles {
    type Service = Checked<S>;

    fn layer(&self, inner: S) -> Checked<S> {
        Checked { inner, callers: self.0 }
    }
}

/// A service behind the layer.
#[derive(Debug, Clone)]
pub struct Checked<S> {
    inner: S,
    callers: fn(&str) -> Callers,
}

impl<S, B> Service<Request<B>> for Checked<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        let callers = (self.callers)(path);
        match request.extensions().get::<Peer>() {
            Some(peer) if callers.include(peer) => Either::Left(self.inner.call(request)),
            peer => Either::Right(ready(Ok(refusal(path, peer, callers).into_http()))),
        }
    }
}

fn refusal(path: &str, peer: Option<&Peer>, callers: Callers) -> Status {
    let peer = peer.map_or_else(|| "nobody".to_owned(), Peer::to_string);
    tracing::info!(%peer, path, "a call is refused");
    let method = path.rsplit('/').next().unwrap_or(path);
    let message = format!("{method} is not allowed for {peer}; it is for {}", callers.words());
    denied(REASON, &message)
}

/// A refusal because of who the peer is.
#[must_use]
pub fn denied(reason: &str, message: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "patina", HashMap::new());
    Status::with_error_details(Code::PermissionDenied, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn each_peer_may_make_the_calls_of_its_role_and_no_others() {
        let operator = |role| Peer::Certified(Identity::Operator { name: "ada".into(), role });
        let host = Peer::Certified(Identity::Host { id: Uuid::from_u128(1) });
        let all = [
            Callers::All,
            Callers::Operators(Role::View),
            Callers::Operators(Role::Use),
            Callers::Operators(Role::Admin),
            Callers::OperatorsAndHosts(Role::Use),
            Callers::Hosts,
        ];
        for (peer, may) in [
            (Peer::Anybody, [true; 6]),
            (Peer::Local { uid: 0 }, [true; 6]),
            (Peer::Stranger { uid: 1000 }, [false; 6]),
            (host, [true, false, false, false, true, true]),
            (operator(Role::View), [true, true, false, false, false, false]),
            (operator(Role::Use), [true, true, true, false, true, false]),
            (operator(Role::Admin), [true, true, true, true, true, false]),
        ] {
            assert_eq!(all.map(|callers| callers.include(&peer)), may, "{peer}");
        }
    }

    #[tokio::test]
    async fn who_is_not_known_may_do_nothing() {
        let inner = tower::service_fn(|_: Request<()>| async {
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        let mut checked = Roles(|_| Callers::All).layer(inner);
        let request = || Request::builder().uri("/a.B/C");
        let refused = checked.call(request().body(()).unwrap()).await.unwrap();
        let status = Status::from_header_map(refused.headers()).unwrap();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.get_details_error_info().unwrap().reason, REASON);
        let known = request().extension(Peer::Anybody).body(()).unwrap();
        assert!(Status::from_header_map(checked.call(known).await.unwrap().headers()).is_none());
    }
}
