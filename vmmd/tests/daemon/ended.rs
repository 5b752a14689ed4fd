//! Clones that have ended are kept up to a number; masters until somebody removes them.

use crate::{
    bench::{Client, kill, ready, tell, vm},
    clones::{clones, remove, sorted},
};
use patina_proto::v1::{self, Event};
use rustix::process::Signal;
use std::time::Duration;

/// The next `count` VMs that are removed.
async fn removed(client: &mut Client, count: usize) -> Vec<Event> {
    let request = v1::WatchEventsRequest { past: true, ..Default::default() };
    let mut events = client.watch_events(request).await.unwrap().into_inner();
    let mut removed = Vec::new();
    let watch = async {
        while removed.len() < count {
            let event = events.message().await.unwrap().expect("vmmd runs");
            if event.kind() == v1::EventKind::Removed {
                removed.push(event);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), watch).await.expect("they are removed");
    removed
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn the_oldest_clones_that_have_ended_are_removed_and_masters_stay() {
    tell(|mut bench| async move {
        bench.more = vec!["--keep-ended", "2"];
        let mut client = bench.start().await;
        ready(&mut client, vm("old", "")).await;
        kill(&mut client, "old").await;
        ready(&mut client, vm("web", "")).await;
        clones(&mut client, "web", 5).await;
        // Not in the order of their vmids.
        for name in ["web.3", "web.1", "web.2", "web.4"] {
            kill(&mut client, name).await;
        }
        let events = removed(&mut client, 2).await;
        let names: Vec<_> = events.iter().map(|event| event.vm.as_str()).collect();
        assert_eq!(names, ["web.3", "web.1"]);
        assert!(events[0].text.contains("more than 2 clones that have ended"), "{events:?}");
        assert_eq!(sorted(bench.vm_folders()), ["old", "web", "web.2", "web.4", "web.5"]);

        // A vmmd that is to keep fewer forgets the others when it starts.
        bench.stop(Signal::KILL);
        bench.more = vec!["--keep-ended", "1"];
        let mut client = bench.start().await;
        assert_eq!(removed(&mut client, 1).await[0].vm, "web.2");
        assert_eq!(sorted(bench.vm_folders()), ["old", "web", "web.4", "web.5"]);
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_clone_that_is_removed_while_it_runs_may_go_by_itself() {
    tell(|mut bench| async move {
        bench.more = vec!["--keep-ended", "0"];
        let mut client = bench.start().await;
        ready(&mut client, vm("web", "")).await;
        for clone in clones(&mut client, "web", 6).await {
            // Whoever is faster: the operator, or vmmd that keeps none.
            remove(&mut client, &clone.name).await;
        }
        removed(&mut client, 6).await;
        assert_eq!(bench.vm_folders(), ["web"]);
    });
}
