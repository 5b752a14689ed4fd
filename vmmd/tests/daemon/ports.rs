//! Ports that are published, or not any longer, while VMs run.

use crate::{
    adopt::fill,
    bench::{Client, get, kill, ready, tell, vm},
    clones::clones,
};
use patina_proto::v1::{self, PublishedPort};
use rustix::process::Signal;
use std::{
    fs,
    net::{TcpListener, TcpStream},
};
use tonic::{Code, Status};

// Nobody else is in the test's network namespace.
fn port(host_port: u32) -> PublishedPort {
    PublishedPort { host_port, guest_port: 80, host_address: "127.0.0.1".into() }
}

async fn publish(client: &mut Client, name: &str, ports: Vec<PublishedPort>) -> Result<v1::Vm, Status> {
    let request = v1::PublishPortsRequest { name: name.into(), ports };
    client.publish_ports(request).await.map(tonic::Response::into_inner)
}

async fn unpublish(client: &mut Client, name: &str, ports: Vec<PublishedPort>) -> Result<v1::Vm, Status> {
    let request = v1::UnpublishPortsRequest { name: name.into(), ports };
    client.unpublish_ports(request).await.map(tonic::Response::into_inner)
}

fn listens(host_port: u32) -> bool {
    TcpStream::connect(("127.0.0.1", host_port as u16)).is_ok()
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn ports_that_cannot_be_published_or_closed_change_nothing() {
    tell(|mut bench| async move {
        bench.small_state();
        let mut client = bench.start().await;
        let before =
            ready(&mut client, v1::CreateVmRequest { ports: vec![port(1000)], ..vm("web", "") }).await;
        let code = |answer: Result<v1::Vm, Status>| answer.unwrap_err().code();
        for (name, ports, wanted) in [
            ("web", vec![], Code::InvalidArgument),
            ("web", vec![port(1001), port(1001)], Code::InvalidArgument),
            ("web", vec![port(1001), port(1000)], Code::AlreadyExists),
            ("web", (1001..1065).map(port).collect(), Code::ResourceExhausted),
            ("nobody", vec![port(1001)], Code::NotFound),
        ] {
            let what = format!("{name} {ports:?}");
            assert_eq!(code(publish(&mut client, name, ports).await), wanted, "{what}");
            assert!(!listens(1001), "{what}");
        }
        for (ports, wanted) in [
            (vec![], Code::InvalidArgument),
            (vec![port(0)], Code::InvalidArgument),
            (vec![port(1000), port(1001)], Code::NotFound),
            (vec![PublishedPort { host_address: "0.0.0.0".into(), ..port(1000) }], Code::NotFound),
        ] {
            assert_eq!(code(unpublish(&mut client, "web", ports.clone()).await), wanted, "{ports:?}");
        }
        // What the next vmmd would not know is not changed.
        fill(&bench.path("state/full"));
        assert_eq!(code(publish(&mut client, "web", vec![port(1001)]).await), Code::Internal);
        assert_eq!(code(unpublish(&mut client, "web", vec![port(1000)]).await), Code::Internal);
        assert!(listens(1000) && !listens(1001));
        fs::remove_file(bench.path("state/full")).unwrap();
        assert_eq!(get(&mut client, "web").await, before);

        // Of two calls at once for one port, one has it. When a call is answered, a port is free.
        for _ in 0..20 {
            let (mut one, mut other) = (client.clone(), client.clone());
            let both = tokio::join!(
                publish(&mut one, "web", vec![port(1001)]),
                publish(&mut other, "web", vec![port(1001)])
            );
            let both = if both.0.is_ok() { both } else { (both.1, both.0) };
            let (Ok(vm), Err(refused)) = both else { panic!("{both:?}") };
            assert_eq!((vm.ports, refused.code()), (vec![port(1000), port(1001)], Code::AlreadyExists));
            let closed = unpublish(&mut client, "web", vec![port(1001)]).await.unwrap();
            assert!(closed.ports == [port(1000)] && listens(1000) && !listens(1001));
        }
        kill(&mut client, "web").await;
        assert_eq!(code(publish(&mut client, "web", vec![port(1001)]).await), Code::FailedPrecondition);
        assert_eq!(code(unpublish(&mut client, "web", vec![port(1000)]).await), Code::FailedPrecondition);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn the_next_daemon_publishes_what_it_can() {
    tell(|mut bench| async move {
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        publish(&mut client, "web", vec![port(1000), port(1001)]).await.unwrap();
        // A clone has none of its parent's, and its own.
        assert!(clones(&mut client, "web", 1).await[0].ports.is_empty());
        publish(&mut client, "web.1", vec![port(1002), port(1003)]).await.unwrap();
        unpublish(&mut client, "web.1", vec![port(1002)]).await.unwrap();
        bench.stop(Signal::KILL);
        let other = TcpListener::bind(("127.0.0.1", 1000)).unwrap();

        let mut client = bench.start().await;
        assert_eq!(get(&mut client, "web.1").await.ports, [port(1003)]);
        assert_eq!(get(&mut client, "web").await.ports, [port(1000), port(1001)]);
        assert_eq!([1001, 1002, 1003].map(listens), [true, false, true]);
        // The one that is in use can be had later.
        let refused = publish(&mut client, "web", vec![port(1000)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);
        drop(other);
        assert!(!listens(1000));
        let vm = publish(&mut client, "web", vec![port(1000)]).await.unwrap();
        assert_eq!(vm.ports, [port(1001), port(1000)]);
        unpublish(&mut client, "web", vec![port(1000)]).await.unwrap();
        assert_eq!([1000, 1001].map(listens), [false, true]);
        kill(&mut client, "web").await;
        kill(&mut client, "web.1").await;
        assert_eq!([1000, 1001, 1002, 1003].map(listens), [false; 4]);
    });
}
