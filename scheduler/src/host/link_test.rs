use super::*;
use crate::client;
use patina_daemon::server;
use tokio::io::{DuplexStream, duplex};

/// A host without clones.
struct Idle;

impl Clones for Idle {
    fn present(&self) -> Present {
        Present::default()
    }
    fn kill(&self, _order: KillClones) {}
}

/// A scheduler that has no `HostScheduler`, as those of before it.
async fn serve_without_hosts(stream: DuplexStream) {
    let server = server::builder().add_routes(tonic::service::Routes::default());
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream));
    server.serve_with_incoming(incoming).await.unwrap();
}

#[tokio::test]
async fn a_scheduler_of_another_release_is_told_with_what_to_update() {
    let (ours, theirs) = duplex(1 << 16);
    tokio::spawn(serve_without_hosts(theirs));
    let ours = Mutex::new(Some(ours));
    let connection = client::over(move || {
        let stream = ours.lock().unwrap().take();
        async move { stream.ok_or_else(|| std::io::Error::other("once")) }
    });
    let link = HostLink::start(connection.host_client(), HostInfo::default(), Arc::new(Idle));
    let mut registration = link.registration();
    let away =
        registration.wait_for(|now| !matches!(now, Registration::Away { why } if why == "not asked yet"));
    let Registration::Away { why } = away.await.unwrap().clone() else { panic!("it is registered") };
    assert!(why.contains("it is of an earlier release; update it"), "{why}");
}
