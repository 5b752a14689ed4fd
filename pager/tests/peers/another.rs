//! Another host takes the place of one that fails: a real pager, and two peers that the test plays.

use super::*;

pub const TESTS: [(&str, Test); 4] = named![
    what_a_dead_peer_did_not_answer_is_asked_of_another_one,
    a_peer_that_stalls_is_told_of_and_another_one_takes_over,
    a_peer_that_lies_is_replaced_and_nothing_is_lost,
    without_another_peer_a_lie_is_a_loss,
];

/// Connects the peer `near`, which the test plays, too.
fn second_peer(pager: &mut Pager) -> [Ends; 2] {
    let (demand, ahead) = (connection(), connection());
    let order = ToPeers::Connect { peer: id("near"), credential: CREDENTIAL.clone() };
    pager.peer.send(&ToPager::Peers(order), &[demand.0.as_fd(), ahead.0.as_fd()]);
    hear_about_peers(pager, |news| matches!(news, FromPeers::Connected { .. }).then_some(()));
    [demand.1, ahead.1].map(|stream| Ends::agreed(stream, true))
}

/// Has the layer read at the peer `near`, where it is the sixth.
fn replace(pager: &mut Pager, layer: &Layer) {
    let source = PeerLayer { peer: id("near"), number: 5 };
    let order = ToPeers::Replace { layer: layer.id.clone(), source };
    pager.peer.send(&ToPager::Peers(order), &[]);
    hear_about_peers(pager, |news| match news {
        FromPeers::Replaced { layer: of } if *of == layer.id => Some(()),
        FromPeers::Refused { reason, .. } => panic!("{reason}"),
        _ => None,
    });
}

fn forget_first(pager: &mut Pager) {
    pager.peer.send(&ToPager::Peers(ToPeers::Forget { peer: id("far") }), &[]);
    hear_about_peers(pager, |news| matches!(news, FromPeers::Forgotten { .. }).then_some(()));
}

fn failing(pager: &mut Pager) -> String {
    hear_about_peers(pager, |news| match news {
        FromPeers::Failing { peer, reason } if *peer == id("far") => Some(reason.clone()),
        _ => None,
    })
}

/// A peer that has all, and answers for its sixth layer only.
fn honest(ends: Ends, layer: &Layer) -> JoinHandle<Vec<u32>> {
    let content = layer.content.clone();
    play(ends, move |request| (request.layer == 5).then(|| run_of(&content, request)))
}

fn what_a_dead_peer_did_not_answer_is_asked_of_another_one() {
    let layer = Layer { fill: true, ..Layer::new("layer-a", pattern(64, |run| run == 1)) };
    let (layer, mut pager, [mut demand, mut ahead]) = played_with(layer);
    let vm = Vm::attach(&mut pager, "one", &layer);
    let reader = reads(&vm.view, 50);
    // Both kinds of requests are on their way when it dies.
    assert_eq!(Request::read(&mut demand.receiver).expect("a request").run, 50);
    assert_eq!(Request::read(&mut ahead.receiver).expect("a request").run, 0);
    drop((demand, ahead));
    hear_about_peers(&mut pager, |news| matches!(news, FromPeers::Lost { .. }).then_some(()));
    let [demand, ahead] = second_peer(&mut pager);
    let second = [demand, ahead].map(|ends| honest(ends, &layer));
    replace(&mut pager, &layer);
    forget_first(&mut pager);
    assert!(reader.join().expect("a reader") == expected(&layer, 50));
    pager.wait_for_completion(&layer);
    vm.check(&layer.content);
    let status = pager.status(&layer);
    assert_eq!((status.fetched, status.failed), (63, 0), "nothing is lost, and each run came once");
    drop(pager);
    let [demanded, ahead] = second.map(|peer| peer.join().expect("a peer"));
    assert_eq!((demanded, ahead.len()), (vec![50], 62));
}

fn a_peer_that_stalls_is_told_of_and_another_one_takes_over() {
    let (layer, mut pager, [mut demand, _ahead]) = played(8);
    let vm = Vm::attach(&mut pager, "one", &layer);
    let reader = reads(&vm.view, 4);
    let late = Request::read(&mut demand.receiver).expect("a request");
    assert!(failing(&mut pager).contains("does not answer"));
    let [second, _second_ahead] = second_peer(&mut pager);
    let second = honest(second, &layer);
    replace(&mut pager, &layer);
    assert!(reader.join().expect("a reader") == expected(&layer, 4));
    // What comes after all is not taken for an answer of the other one.
    demand.send(&run_of(&layer.content, Request { run: 3, ..late }));
    assert!(reads(&vm.view, 5).join().expect("a reader") == expected(&layer, 5));
    assert_eq!(pager.status(&layer).failed, 0);
    drop(pager);
    assert_eq!(second.join().expect("a peer"), [4, 5]);
}

/// A peer that sends a wrong byte, or says that it cannot read the run.
fn liar(demand: Ends, layer: &Layer) -> JoinHandle<Vec<u32>> {
    let content = layer.content.clone();
    play(demand, move |request| {
        let mut answer = run_of(&content, request);
        match request.run {
            4 => answer[HEADER_BYTES + 5000] ^= 1,
            5 => answer = Answer { number: request.number, kind: Kind::Refused, bytes: 0 }.encode().into(),
            _ => {}
        }
        Some(answer)
    })
}

fn a_peer_that_lies_is_replaced_and_nothing_is_lost() {
    let (layer, mut pager, [demand, _ahead]) = played(8);
    let first = liar(demand, &layer);
    let vm = Vm::attach(&mut pager, "one", &layer);
    let readers = [4, 5].map(|run| reads(&vm.view, run));
    let reason = failing(&mut pager);
    assert!(reason.contains("digest") || reason.contains("cannot read"), "{reason}");
    pager.wait_for_waiting(2);
    let [second, _second_ahead] = second_peer(&mut pager);
    let second = honest(second, &layer);
    replace(&mut pager, &layer);
    for (reader, run) in readers.into_iter().zip([4, 5]) {
        assert!(reader.join().expect("a reader") == expected(&layer, run));
    }
    assert!(reads(&vm.view, 6).join().expect("a reader") == expected(&layer, 6));
    assert_eq!(pager.status(&layer).failed, 0);
    drop(pager);
    assert!(!first.join().expect("a peer").contains(&6), "it is asked for nothing any longer");
    let mut second = second.join().expect("a peer");
    // Two readers begin at the same time.
    second.sort_unstable();
    assert_eq!(second, [4, 5, 6]);
}

fn without_another_peer_a_lie_is_a_loss() {
    let (layer, mut pager, [demand, _ahead]) = played(8);
    let _first = liar(demand, &layer);
    let vm = Vm::attach(&mut pager, "one", &layer);
    let reader = reads(&vm.view, 4);
    assert!(failing(&mut pager).contains("digest"));
    pager.peer.send(&ToPager::Peers(ToPeers::Alone { peer: id("far") }), &[]);
    hear_about_peers(&mut pager, |news| matches!(news, FromPeers::GivenUp { .. }).then_some(()));
    // Not only after the time that a run waits for another peer.
    pager.peer.send(&ToPager::Status, &[]);
    let waiting = pager.wait(|message| match message {
        FromPager::Status(status) => Some(status.waiting),
        _ => None,
    });
    assert_eq!(waiting, 0);
    let (reason, vms) = pager.wait_for_failure(&layer, 4);
    assert!(reason.contains("digest"), "{reason}");
    assert_eq!(vms, [("one".to_owned(), true)]);
    assert_eq!(reader.join().expect("a reader"), Err(libc::EFAULT));
    // A layer that nobody knows is refused.
    let order = ToPeers::Replace { layer: id("other"), source: PeerLayer { peer: id("near"), number: 0 } };
    pager.peer.send(&ToPager::Peers(order), &[]);
    let refused = hear_about_peers(&mut pager, |news| match news {
        FromPeers::Refused { name, reason } if *name == id("other") => Some(reason.clone()),
        _ => None,
    });
    assert!(refused.contains("none of this name"), "{refused}");
}
