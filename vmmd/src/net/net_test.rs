//! Runs in a new network namespace, so that the machine's own is never changed.
#![allow(unsafe_code, reason = "entering a network namespace")]

use super::*;
use crate::plan::address::Range;
use rtnetlink::packet_route::neighbour::NeighbourAttribute;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::path::PathBuf;

/// Runs a test on a thread of its own in a network namespace of its own.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: only the network namespace of this thread changes; no memory or descriptor table
        // is affected.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

fn family(index: u16) -> FamilyNet {
    "100.64.0.0/10".parse::<Range>().unwrap().family(index).unwrap()
}

fn open(state: &str) -> Net {
    Net::open(Owner::of(&PathBuf::from(state))).unwrap()
}

async fn names(net: &Net) -> Vec<String> {
    let links: Vec<LinkMessage> = net.handle.link().get().execute().try_collect().await.unwrap();
    let name = |link: &LinkMessage| {
        link.attributes.iter().find_map(|a| match a {
            LinkAttribute::IfName(name) if name.starts_with("pt") => Some(name.clone()),
            _ => None,
        })
    };
    links.iter().filter_map(name).collect()
}

/// The addresses that bridges were told of, with the interface of each.
async fn forwarded(net: &Net) -> Vec<(u32, Vec<u8>)> {
    let mut request = net.handle.neighbours().get();
    request.message_mut().header.family = rtnetlink::packet_route::AddressFamily::Bridge;
    let all: Vec<_> = request.execute().try_collect().await.unwrap();
    let told = all.into_iter().filter(|entry| entry.header.state == NeighbourState::Noarp);
    let address = |attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(address) => Some(address),
        _ => None,
    };
    told.map(|entry| (entry.header.ifindex, entry.attributes.into_iter().find_map(address).unwrap()))
        .collect()
}

#[test]
#[ignore = "needs root: makes interfaces in a network namespace of its own"]
fn a_bridge_and_a_tap_are_made_and_gone() {
    in_namespace(|| async {
        let net = open("/state");
        net.claim(family(3), "f").await.unwrap();
        let tap = net.tap(family(3), 0).await.unwrap();
        assert_eq!(names(&net).await, ["pt3", "pt3.0"]);
        // The host's address answers: something can listen on it.
        std::net::TcpListener::bind((family(3).gateway(), 0)).unwrap();
        let bridge = net.index_of("pt3").await.unwrap();
        let link = net.link("pt3.0").await.unwrap().unwrap();
        assert!(link.attributes.contains(&LinkAttribute::Controller(bridge.unwrap())));
        assert_eq!(forwarded(&net).await, [(link.header.index, vec![2, 0x70, 0, 3, 0, 0])]);
        drop(tap);
        assert_eq!(names(&net).await, ["pt3"]);
        assert_eq!(forwarded(&net).await, [], "it goes with the tap");
        net.release(family(3)).await.unwrap();
        net.release(family(3)).await.unwrap();
        assert!(names(&net).await.is_empty());
    });
}

#[test]
#[ignore = "needs root: makes interfaces in a network namespace of its own"]
fn one_number_has_one_owner_and_reaping_keeps_others_bridges() {
    in_namespace(|| async {
        let (ours, theirs) = (open("/ours"), open("/theirs"));
        theirs.claim(family(0), "f").await.unwrap();
        let error = ours.claim(family(0), "f").await.unwrap_err();
        assert!(error.exists(), "{error}");
        ours.release(family(0)).await.unwrap();
        ours.claim(family(1), "g").await.unwrap();
        ours.claim(family(2), "h").await.unwrap();
        assert_eq!(ours.reap(&[2]).await.unwrap(), [1]);
        assert_eq!(names(&ours).await, ["pt0", "pt2"]);
    });
}

#[test]
#[ignore = "needs root: makes interfaces in a network namespace of its own"]
fn a_tap_of_a_taken_name_is_refused() {
    in_namespace(|| async {
        let net = open("/state");
        net.claim(family(0), "f").await.unwrap();
        let _tap = net.tap(family(0), 0).await.unwrap();
        let error = net.tap(family(0), 0).await.unwrap_err();
        assert!(matches!(error, NetError::Tap { .. }), "{error}");
    });
}

/// Making a tap waits for the kernel's lock of all interfaces, which others of the host may hold
/// for long: calls and beats go on.
#[test]
#[ignore = "needs root: makes interfaces in a network namespace of its own"]
fn a_tap_is_made_where_work_may_block() {
    let thread = std::thread::spawn(|| {
        // SAFETY: only the network namespace of this thread and of those that it starts changes.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().max_blocking_threads(1).build().unwrap().block_on(async {
            let net = open("/state");
            net.claim(family(0), "f").await.unwrap();
            // The one place for such work is taken: no tap can be made, and all else goes on.
            let (free, taken) = std::sync::mpsc::channel::<()>();
            let taken = spawn_blocking(move || taken.recv());
            let mut tap = std::pin::pin!(net.tap(family(0), 0));
            tokio::select! {
                biased;
                _ = &mut tap => panic!("it was made by a thread that answers calls"),
                names = names(&net) => assert_eq!(names, ["pt0"]),
            }
            free.send(()).unwrap();
            taken.await.unwrap().unwrap();
            let _tap = tap.await.unwrap();
            assert_eq!(names(&net).await, ["pt0", "pt0.0"]);
        });
    });
    thread.join().unwrap();
}

#[tokio::test]
async fn without_rights_the_error_says_what_to_do() {
    let source = io::Error::from(io::ErrorKind::PermissionDenied);
    let error = NetError::Tap { name: "pt0.0".into(), source };
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
}
