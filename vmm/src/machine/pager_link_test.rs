use super::*;
use crate::memory::layers::new_layer;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Receiver;

const LAYER: u64 = 1 << 20;

/// A link with two layers that wait, whose mappings are nowhere.
fn link() -> (PagerLink, Vec<Arc<Layer>>) {
    let userfault = Userfault::open().expect("Linux 6.7 or later, and the right to make a userfaultfd");
    let link = PagerLink::new(Some(Arc::new(userfault)));
    let layers: Vec<_> = (0..2).map(|_| Layer::new(new_layer(LAYER).expect("a layer"), true)).collect();
    let mapping =
        |layer: u32| Mapping { address: LAYER * u64::from(layer + 1), bytes: LAYER, offset: 0, layer };
    let lazy =
        (0..).zip(&layers).map(|(number, layer)| LazyLayer::new(Arc::clone(layer), vec![mapping(number)]));
    lock(&link.0.state).layers = lazy.collect();
    (link, layers)
}

/// The pager's end.
struct Peer(BufReader<UnixStream>);

impl Peer {
    /// Attaches; what it was told, with the outcome to come.
    fn attach(link: &PagerLink) -> (Self, VmToPager, Receiver<Result<(), LazyError>>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (sender, outcome) = channel();
        link.attach(ours, Box::new(move |attached| drop(sender.send(attached))));
        let peer = Self(BufReader::new(theirs));
        let told = peer.told();
        (peer, told, outcome)
    }

    /// What comes with a userfaultfd and a list.
    fn told(&self) -> VmToPager {
        let mut line = [0; 1024];
        let (length, descriptors): (usize, Vec<OwnedFd>) =
            rights::receive(self.0.get_ref(), &mut line).expect("a line");
        assert_eq!(descriptors.len(), 2);
        serde_json::from_slice(&line[..length]).expect("a message")
    }

    fn say(&mut self, message: &PagerToVm) {
        let mut line = serde_json::to_vec(message).expect("a line");
        line.push(b'\n');
        self.0.get_mut().write_all(&line).expect("sent");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }
}

fn complete(layer: u32, is_unregistered: bool) -> PagerToVm {
    PagerToVm::Complete { layer, is_unregistered }
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn another_pager_is_attached_while_a_thread_waits_for_the_one_before() {
    let (link, layers) = link();
    let (mut first, told, outcome) = Peer::attach(&link);
    assert_eq!(told, VmToPager::Attach { version: VERSION, tracks_writes: false });
    first.say(&PagerToVm::Attached);
    assert!(outcome.recv().expect("an outcome").is_ok());
    // The thread of the VM waits for an answer that the first pager never gives.
    let waits = link.clone();
    let waiting = std::thread::spawn(move || waits.expect_tracking());
    assert_eq!(first.line(), r#"{"t":"track_writes"}"#);
    let (mut second, told, outcome) = Peer::attach(&link);
    assert_eq!(told, VmToPager::Attach { version: VERSION, tracks_writes: true });
    assert!(waiting.join().expect("it waits").is_ok(), "the second pager knows it from the start");
    assert_eq!(first.line(), "", "the first one is left");
    // What a pager says before its answer, and what the left one says, is the same as ever.
    second.say(&complete(1, false));
    second.say(&PagerToVm::Attached);
    assert!(outcome.recv().expect("an outcome").is_ok());
    assert!(layers[0].is_filling() && !layers[1].is_filling() && link.waits());
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn the_link_ends_with_the_last_layer_and_then_no_pager_is_attached() {
    let (link, layers) = link();
    let (mut pager, _, outcome) = Peer::attach(&link);
    // A pager that has found all of it at once. A layer that it does not have is nothing.
    for message in [complete(0, true), complete(9, true), complete(1, true)] {
        pager.say(&message);
    }
    assert!(outcome.recv().expect("an outcome").is_ok());
    assert_eq!(pager.line(), "", "closed");
    assert!(!link.waits() && layers.iter().all(|layer| !layer.is_filling()));
    let (ours, _theirs) = UnixStream::pair().expect("a pair");
    let (sender, outcome) = channel();
    link.attach(ours, Box::new(move |attached| drop(sender.send(attached))));
    assert!(matches!(outcome.recv(), Ok(Err(LazyError::Nothing))));
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn a_pager_that_refuses_or_goes_is_told_and_the_next_one_serves() {
    let (link, _) = link();
    let (mut pager, _, outcome) = Peer::attach(&link);
    pager.say(&PagerToVm::Refused { reason: "no room".into() });
    assert!(matches!(outcome.recv(), Ok(Err(LazyError::Refused(reason))) if reason == "no room"));
    let (pager, _, outcome) = Peer::attach(&link);
    drop(pager);
    assert!(matches!(outcome.recv(), Ok(Err(LazyError::Pager(_)))));
    // Nothing unregisters ranges, so there is nobody to wait for.
    assert!(link.expect_tracking().is_ok());
    let (mut pager, _, outcome) = Peer::attach(&link);
    pager.say(&PagerToVm::Attached);
    assert!(outcome.recv().expect("an outcome").is_ok());
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn another_pager_with_the_same_socket_is_told_what_the_one_before_was() {
    let (link, layers) = link();
    let (mut pager, told, outcome) = Peer::attach(&link);
    // The one that has read this is gone before it has answered.
    pager.say(&PagerToVm::AttachAgain);
    assert_eq!(pager.told(), told);
    pager.say(&complete(0, true));
    pager.say(&PagerToVm::Attached);
    assert!(outcome.recv().expect("an outcome").is_ok());
    // And this one after it.
    let waits = link.clone();
    let waiting = std::thread::spawn(move || waits.expect_tracking());
    assert_eq!(pager.line(), r#"{"t":"track_writes"}"#);
    pager.say(&PagerToVm::AttachAgain);
    assert_eq!(pager.told(), VmToPager::Attach { version: VERSION, tracks_writes: true });
    assert!(waiting.join().expect("it waits").is_ok(), "that pager knows it");
    pager.say(&PagerToVm::Attached);
    // Nothing waits for a pager any longer: the socket ends.
    pager.say(&complete(1, true));
    assert_eq!(pager.line(), "");
    assert!(!link.waits() && layers.iter().all(|layer| !layer.is_filling()));
}
