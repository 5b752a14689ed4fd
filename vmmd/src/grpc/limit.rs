//! Limits the calls that are answered at the same time. Calls that wait for a VM do not count:
//! otherwise a thousand waiting operators would leave no room for the calls that end their wait.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::Semaphore;
use tonic::{
    Status,
    codegen::{
        Service,
        http::{Request, Response},
    },
    server::NamedService,
};
use tower::Layer;

/// The call that waits for a VM.
const WAIT_VM: &str = "/patina.v1.Vmmd/WaitVm";
/// Most calls that wait for a VM; one more is refused.
pub const WAITS_MAX: usize = 16_384;

/// Lets so many calls through at once; the next ones wait.
#[derive(Debug, Clone)]
pub struct CallLimit {
    calls: Arc<Semaphore>,
    waits: Arc<Semaphore>,
}

/// A service with a [`CallLimit`].
#[derive(Debug, Clone)]
pub struct Limited<S> {
    limit: CallLimit,
    service: S,
}

impl CallLimit {
    /// At most `calls` at once, and [`WAITS_MAX`] that wait for a VM.
    #[must_use]
    pub fn new(calls: usize) -> Self {
        Self { calls: Arc::new(Semaphore::new(calls)), waits: Arc::new(Semaphore::new(WAITS_MAX)) }
    }
}

impl<S> Layer<S> for CallLimit {
    type Service = Limited<S>;

    fn layer(&self, service: S) -> Limited<S> {
        Limited { limit: self.clone(), service }
    }
}

impl<S: NamedService> NamedService for Limited<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B, R> Service<Request<B>> for Limited<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let clone = self.service.clone();
        // The one that is ready is used, not its copy.
        let mut service = std::mem::replace(&mut self.service, clone);
        let limit = self.limit.clone();
        Box::pin(async move {
            let permit = if request.uri().path() == WAIT_VM {
                limit.waits.try_acquire_owned().ok()
            } else {
                limit.calls.acquire_owned().await.ok()
            };
            let Some(_permit) = permit else {
                let text = format!("wait for a VM: {WAITS_MAX} calls wait, the most; end some of them");
                return Ok(Status::resource_exhausted(text).into_http());
            };
            service.call(request).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use tower::service_fn;

    #[tokio::test]
    async fn however_many_wait_for_vms_other_calls_are_answered() {
        let answer = |request: Request<()>| async move {
            if request.uri().path() == WAIT_VM {
                std::future::pending::<()>().await;
            }
            Ok::<_, ()>(Response::new(()))
        };
        let mut service = CallLimit::new(1).layer(service_fn(answer));
        let request = |path: &str| Request::builder().uri(path).body(()).unwrap();
        let mut waits: Vec<_> = (0..WAITS_MAX).map(|_| service.call(request(WAIT_VM))).collect();
        assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()));
        assert!(service.call(request("/patina.v1.Vmmd/KillVm")).now_or_never().is_some());
        let refused = service.call(request(WAIT_VM)).now_or_never().unwrap().unwrap();
        assert_eq!(refused.headers()["grpc-status"], "8");
    }
}
