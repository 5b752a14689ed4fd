//! Layers of other hosts: two and three real pagers with TCP between them, and peers that break,
//! lie and say nothing, which the test plays.

pub mod another;

use super::Test;
use super::host::sys::received;
use super::host::{Layer, Pager, Vm, id, pattern};
use super::sources::{RUN, expected, reads};
use patina_control::pager::{Credential, FromPager, FromPeers, LayerStatus, PeerLayer, ToPager, ToPeers};
use patina_pager::peer::tls::{self, Receiver, Sender};
use patina_pager::peer::wire::{Answer, HEADER_BYTES, Kind, Request};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub const TESTS: [(&str, Test); 15] = named![
    a_layer_of_another_host_is_served_and_crosses_once,
    a_host_that_fills_serves_others,
    a_layer_arrives_compressed_if_vmmd_says_so,
    a_peer_that_compresses_what_is_no_run_is_cut_off,
    what_two_vms_wait_for_is_asked_for_once,
    what_is_fetched_ahead_is_asked_for_many_runs_at_a_time,
    a_connection_that_breaks_is_replaced_and_nothing_is_lost,
    a_peer_that_lies_is_never_believed,
    a_peer_that_says_nothing_is_reported_with_layer_and_run,
    a_peer_that_sends_rubbish_is_cut_off,
    who_asks_for_what_it_may_not_have_gets_nothing,
    who_has_another_credential_gets_nothing,
    who_answers_with_another_credential_is_not_asked,
    an_end_and_a_connection_that_is_cut_are_told_apart,
    a_restarted_vmmd_hears_which_connections_are_served,
];

/// Two ends of a TCP connection.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let ours = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let theirs = listener.accept().expect("accepted").0;
    for stream in [&ours, &theirs] {
        stream.set_nodelay(true).expect("without delay");
    }
    (ours, theirs)
}

fn new_credential() -> Credential {
    patina_pki::credential().expect("a certificate")
}

/// What both sides know each other by.
static CREDENTIAL: LazyLock<Credential> = LazyLock::new(new_credential);

/// What the test has of a connection to a pager: it sends and receives as a pager does.
struct Ends {
    sender: Arc<Sender>,
    receiver: Receiver,
}

impl Ends {
    /// As a host that answers, or as one that asks.
    fn new(stream: TcpStream, credential: &Credential, answers: bool) -> Self {
        let stream = File::from(OwnedFd::from(stream));
        let make = if answers { tls::server } else { tls::client };
        let (sender, receiver) = make(stream, credential).expect("a connection");
        Self { sender, receiver }
    }

    /// One that has agreed on keys.
    fn agreed(stream: TcpStream, answers: bool) -> Self {
        let mut ends = Self::new(stream, &CREDENTIAL, answers);
        ends.receiver.handshake(soon()).expect("agreed");
        ends
    }

    fn send(&self, bytes: &[u8]) {
        self.sender.send(bytes).expect("sent");
    }

    /// Whether the other side has hung up, which sends nothing more.
    fn is_over(&mut self) -> bool {
        self.receiver.read(&mut [0; 1]).unwrap_or(0) == 0
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.sender.hang_up();
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// The layer as it is on another host: no file, and a memory of its own.
fn elsewhere(layer: &Layer) -> Layer {
    Layer::new(&layer.id.to_string(), layer.content.clone())
}

fn hear_about_peers<T>(pager: &mut Pager, select: impl Fn(&FromPeers) -> Option<T>) -> T {
    pager.wait(|message| match message {
        FromPager::Peers(news) => select(news),
        _ => None,
    })
}

/// Gives a pager connections to the peer `far`.
fn connect(pager: &mut Pager, streams: [&TcpStream; 2]) {
    let credential = CREDENTIAL.clone();
    let order = ToPager::Peers(ToPeers::Connect { peer: id("far"), credential });
    pager.peer.send(&order, &streams.map(AsFd::as_fd));
    hear_about_peers(pager, |news| matches!(news, FromPeers::Connected { .. }).then_some(()));
}

/// A layer that the peer `far` has, as its first.
fn add_remote(pager: &mut Pager, layer: &Layer) -> LayerStatus {
    let message = ToPager::AddLayer {
        layer: layer.id.clone(),
        bytes: layer.content.len() as u64,
        has_demand: false,
        fill: layer.fill,
        source: Some(PeerLayer { peer: id("far"), number: 0 }),
    };
    pager.peer.send(&message, &[layer.memfd.as_fd(), layer.digests.as_fd()]);
    pager.wait(|message| match message {
        FromPager::Layer(status) if status.layer == layer.id => Some(status.clone()),
        FromPager::LayerRefused { reason, .. } => panic!("{reason}"),
        _ => None,
    })
}

/// Has a pager serve a layer over a connection.
fn serve(pager: &mut Pager, name: &str, layer: &Layer, stream: &TcpStream) {
    serve_as(pager, name, layer, (stream, false));
}

/// The same, and compress it or not.
fn serve_as(pager: &mut Pager, name: &str, layer: &Layer, (stream, compress): (&TcpStream, bool)) {
    let (layers, credential) = (vec![layer.id.clone()], CREDENTIAL.clone());
    let order = ToPeers::Serve { connection: id(name), layers, credential, compress };
    pager.peer.send(&ToPager::Peers(order), &[stream.as_fd()]);
    hear_about_peers(pager, |news| matches!(news, FromPeers::Serving { .. }).then_some(()));
}

/// Connects a pager to another one that serves a layer.
fn join(near: &mut Pager, far: &mut Pager, layer: &Layer) {
    let (demand, ahead) = (connection(), connection());
    serve(far, "demand", layer, &demand.1);
    serve(far, "ahead", layer, &ahead.1);
    connect(near, [&demand.0, &ahead.0]);
}

fn a_layer_of_another_host_is_served_and_crosses_once() {
    let layer = Layer::new("a", pattern(64, |run| run % 5 == 0));
    let (mut far, mut near) = (Pager::start(), Pager::start());
    far.add(&layer).expect("a layer");
    join(&mut near, &mut far, &layer);
    let copy = elsewhere(&layer);
    let status = add_remote(&mut near, &copy);
    assert_eq!((status.runs, status.present), (64, 13));
    for name in ["one", "two"] {
        Vm::attach(&mut near, name, &copy).check(&layer.content);
    }
    let status = near.status(&copy);
    assert_eq!((status.present, status.fetched, status.failed), (64, 51, 0));
    let status = far.status(&layer);
    assert_eq!((status.present, status.fetched, status.failed), (64, 51, 0), "what it serves, it has");
    near.wait_for_completion(&copy);
}

fn a_host_that_fills_serves_others() {
    let layer = Layer::new("a", pattern(64, |run| run == 7));
    let mut pagers = [Pager::start(), Pager::start(), Pager::start()];
    let [first, second, third] = &mut pagers;
    first.add(&layer).expect("a layer");
    join(second, first, &layer);
    let middle = elsewhere(&layer);
    add_remote(second, &middle);
    let (vm, last) = (Vm::attach(second, "one", &middle), Layer { fill: true, ..elsewhere(&layer) });
    // A VM of the second host and the third host want the same runs at the same time.
    let reader = thread::spawn({
        let (vm, content) = (vm, layer.content.clone());
        move || vm.check(&content)
    });
    join(third, second, &middle);
    add_remote(third, &last);
    Vm::attach(third, "two", &last).check(&layer.content);
    reader.join().expect("a reader");
    third.wait_for_completion(&last);
    for (pager, layer) in pagers.iter_mut().zip([&layer, &middle, &last]) {
        assert_eq!(pager.status(layer).fetched, 63, "each run crosses once");
    }
}

/// Memory as programs have it: it can be compressed, and each run is another one.
fn text(runs: usize) -> Vec<u8> {
    let line = |number: usize| format!("{number}: the quick brown fox jumps over the lazy dog\n");
    (0..).flat_map(|number| line(number).into_bytes()).take(runs * RUN).collect()
}

fn a_layer_arrives_compressed_if_vmmd_says_so() {
    const RUNS: usize = 32;
    // One run is as short as it can be.
    let content = [text(RUNS), pattern(1, |_| false)].concat();
    let layer = Layer::new("a", content);
    for compress in [true, false] {
        let (mut far, mut near) = (Pager::start(), Pager::start());
        far.add(&layer).expect("a layer");
        let (demand, ahead) = (connection(), connection());
        for (name, stream) in [("demand", &demand.1), ("ahead", &ahead.1)] {
            serve_as(&mut far, name, &layer, (stream, compress));
        }
        connect(&mut near, [&demand.0, &ahead.0]);
        let copy = elsewhere(&layer);
        add_remote(&mut near, &copy);
        Vm::attach(&mut near, "one", &copy).check(&layer.content);
        let came = received(&demand.0).expect("bytes") as usize;
        assert_eq!(came < RUNS * RUN / 2, compress, "{came} bytes of {} came", RUNS * RUN);
    }
}

fn a_peer_that_compresses_what_is_no_run_is_cut_off() {
    let block = |run: &[u8]| {
        let mut block = vec![0; lz4_flex::block::get_maximum_output_size(run.len())];
        let length = lz4_flex::block::compress_into(run, &mut block).expect("room");
        block.truncate(length);
        block
    };
    let right = text(8);
    let shorter = block(&right[RUN..2 * RUN - 1]);
    let longer = block(&right[RUN..2 * RUN + 1]);
    let longest = block(&vec![0; 64 << 20])[..RUN - 1].to_vec();
    for wrong in [vec![0xff; 100], shorter, longer, longest] {
        let (layer, mut pager, [mut demand, ahead]) = played_with(Layer::new("layer-a", right.clone()));
        let vm = Vm::attach(&mut pager, "one", &layer);
        let reader = reads(&vm.view, 1);
        let request = Request::read(&mut demand.receiver).expect("a request");
        let head = Answer { number: request.number, kind: Kind::Lz4, bytes: wrong.len() as u32 };
        demand.send(&[&head.encode()[..], &wrong].concat());
        let reason = hear_about_peers(&mut pager, |news| match news {
            FromPeers::Lost { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        assert!(!reason.is_empty() && demand.is_over(), "{reason}");
        // Over the next connection it comes as it should, compressed.
        let [(near_demand, demand), (near_ahead, _ahead)] = [connection(), connection()];
        connect(&mut pager, [&near_demand, &near_ahead]);
        let mut demand = Ends::agreed(demand, true);
        let request = Request::read(&mut demand.receiver).expect("it is asked again");
        let right_block = block(&right[RUN..2 * RUN]);
        let head = Answer { number: request.number, kind: Kind::Lz4, bytes: right_block.len() as u32 };
        demand.send(&[&head.encode()[..], &right_block].concat());
        assert!(reader.join().expect("a reader") == expected(&layer, 1));
        drop((vm, pager, ahead));
    }
}

/// A peer that the test plays: what it was asked for until the connection ended, run by run. For
/// each request `answer` says what to send, or that it hangs up.
fn play(
    mut ends: Ends,
    answer: impl Fn(Request) -> Option<Vec<u8>> + Send + 'static,
) -> JoinHandle<Vec<u32>> {
    thread::spawn(move || {
        let mut asked = Vec::new();
        while let Ok(request) = Request::read(&mut ends.receiver) {
            asked.push(request.run);
            let Some(bytes) = answer(request) else { break };
            ends.send(&bytes);
        }
        asked
    })
}

fn answer_with(request: Request, bytes: &[u8]) -> Vec<u8> {
    let head = Answer { number: request.number, kind: Kind::Bytes, bytes: bytes.len() as u32 };
    [&head.encode()[..], bytes].concat()
}

fn run_of(content: &[u8], request: Request) -> Vec<u8> {
    answer_with(request, &content[request.run as usize * RUN..][..RUN])
}

/// A pager whose layer a played peer has: the layer, the pager, and the peer's end of the
/// connection for demands.
fn played(runs: usize) -> (Layer, Pager, [Ends; 2]) {
    played_with(Layer::new("layer-a", pattern(runs, |run| run == 1)))
}

fn played_with(layer: Layer) -> (Layer, Pager, [Ends; 2]) {
    let mut pager = Pager::start();
    let (demand, ahead) = (connection(), connection());
    connect(&mut pager, [&demand.0, &ahead.0]);
    add_remote(&mut pager, &layer);
    (layer, pager, [demand.1, ahead.1].map(|stream| Ends::agreed(stream, true)))
}

fn what_two_vms_wait_for_is_asked_for_once() {
    let (layer, mut pager, [mut demand, ahead]) = played(8);
    let vms = ["one", "two"].map(|name| Vm::attach(&mut pager, name, &layer));
    let readers = vms.each_ref().map(|vm| reads(&vm.view, 4));
    let request = Request::read(&mut demand.receiver).expect("a request");
    pager.wait_for_waiting(2);
    demand.send(&run_of(&layer.content, request));
    for reader in readers {
        assert!(reader.join().expect("a reader") == expected(&layer, 4));
    }
    drop((vms, pager, ahead));
    assert!(demand.is_over(), "nothing else was asked");
}

fn what_is_fetched_ahead_is_asked_for_many_runs_at_a_time() {
    let layer = Layer { fill: true, ..Layer::new("layer-a", pattern(64, |run| run == 1)) };
    let (layer, mut pager, [mut demand, mut ahead]) = played_with(layer);
    let mut requests: Vec<Request> =
        (0..32).map(|_| Request::read(&mut ahead.receiver).expect("a request")).collect();
    let runs: Vec<u32> = requests.iter().map(|request| request.run).collect();
    assert_eq!(runs, [0].into_iter().chain(2..33).collect::<Vec<_>>());
    // What a VM waits for does not wait behind them.
    let vm = Vm::attach(&mut pager, "one", &layer);
    let reader = reads(&vm.view, 50);
    let request = Request::read(&mut demand.receiver).expect("a request");
    demand.send(&run_of(&layer.content, request));
    assert!(reader.join().expect("a reader") == expected(&layer, 50));
    // It is a window: each answer makes room for one more. They may come in any order.
    for _ in 33..63 {
        let request = requests.pop().expect("a request");
        ahead.send(&run_of(&layer.content, request));
        requests.push(Request::read(&mut ahead.receiver).expect("a request"));
    }
    for request in requests {
        ahead.send(&run_of(&layer.content, request));
    }
    pager.wait_for_completion(&layer);
    assert_eq!(pager.status(&layer).fetched, 63, "each run once");
}

fn a_connection_that_breaks_is_replaced_and_nothing_is_lost() {
    let (layer, mut pager, [demand, _ahead]) = played(32);
    let vm = Vm::attach(&mut pager, "one", &layer);
    let content = layer.content.clone();
    // Ten answers; the next run is asked for, and never comes over this connection.
    let first = play(demand, move |request| (request.run < 11).then(|| run_of(&content, request)));
    let reader = thread::spawn({
        let content = layer.content.clone();
        move || vm.check(&content)
    });
    let reason = hear_about_peers(&mut pager, |news| match news {
        FromPeers::Lost { peer, reason } if *peer == id("far") => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(reason, "it has closed the connection");
    let [(near_demand, demand), (near_ahead, _ahead)] = [connection(), connection()];
    connect(&mut pager, [&near_demand, &near_ahead]);
    // The pager's own are the last ones: with the pager the connection ends.
    drop((near_demand, near_ahead));
    let content = layer.content.clone();
    let second = play(Ends::agreed(demand, true), move |request| Some(run_of(&content, request)));
    reader.join().expect("a reader");
    drop(pager);
    let asked = [first, second].map(|peer| peer.join().expect("a peer"));
    let runs = |range: std::ops::Range<u32>| range.filter(|run| *run != 1).collect::<Vec<_>>();
    assert_eq!(asked, [runs(0..12), runs(11..32)]);
}

fn a_peer_that_lies_is_never_believed() {
    let (layer, mut pager, [demand, _ahead]) = played(8);
    let content = layer.content.clone();
    let peer = play(demand, move |request| {
        let mut answer = run_of(&content, request);
        if request.run == 4 {
            answer[HEADER_BYTES + 5000] ^= 1;
        }
        Some(answer)
    });
    let vm = Vm::attach(&mut pager, "one", &layer);
    assert_eq!(reads(&vm.view, 4).join().expect("a reader"), Err(libc::EFAULT));
    let (reason, vms) = pager.wait_for_failure(&layer, 4);
    assert!(reason.contains("digest"), "{reason}");
    assert_eq!(vms, [("one".to_owned(), true)]);
    assert_eq!(layer.used(), 0, "nothing of it is in the memfd");
    assert!(reads(&vm.view, 5).join().expect("a reader") == expected(&layer, 5));
    drop(pager);
    assert_eq!(peer.join().expect("a peer"), [4, 5]);
}

fn a_peer_that_says_nothing_is_reported_with_layer_and_run() {
    let (layer, mut pager, [demand, _ahead]) = played(8);
    let content = layer.content.clone();
    let peer = play(demand, move |request| match request.run {
        4 => Some(Vec::new()),
        5 => Some(Answer { number: request.number, kind: Kind::Refused, bytes: 0 }.encode().into()),
        _ => Some(run_of(&content, request)),
    });
    let vm = Vm::attach(&mut pager, "one", &layer);
    let silent = reads(&vm.view, 4);
    // It holds up nobody else.
    assert!(reads(&vm.view, 6).join().expect("a reader") == expected(&layer, 6));
    assert_eq!(reads(&vm.view, 5).join().expect("a reader"), Err(libc::EFAULT));
    let (reason, _) = pager.wait_for_failure(&layer, 5);
    assert!(reason.contains("cannot read the run"), "{reason}");
    assert_eq!(silent.join().expect("a reader"), Err(libc::EFAULT));
    let (reason, vms) = pager.wait_for_failure(&layer, 4);
    assert!(reason.contains("the host that has the layer does not answer"), "{reason}");
    assert_eq!(vms, [("one".to_owned(), true)]);
    // Without the peer there is no source.
    let order = ToPager::Peers(ToPeers::Forget { peer: id("far") });
    pager.peer.send(&order, &[]);
    hear_about_peers(&mut pager, |news| matches!(news, FromPeers::Forgotten { .. }).then_some(()));
    assert_eq!(reads(&vm.view, 7).join().expect("a reader"), Err(libc::EFAULT));
    let (reason, _) = pager.wait_for_failure(&layer, 7);
    assert!(reason.contains("no connection"), "{reason}");
    let mut asked = peer.join().expect("a peer");
    // Two readers begin at the same time.
    asked.sort_unstable();
    assert_eq!(asked, [4, 5, 6], "it was hung up on");
}

fn a_peer_that_sends_rubbish_is_cut_off() {
    let mut too_long = Answer { number: 0, kind: Kind::Bytes, bytes: 1 }.encode();
    too_long[11] = 0x7f;
    let other_length = |request| answer_with(request, &[7; 4096]);
    let rubbish: [fn(Request) -> Vec<u8>; 2] = [|_| vec![0xff; 4096], other_length];
    for (number, answer) in rubbish.into_iter().enumerate() {
        let (layer, mut pager, [demand, _ahead]) = played(8);
        let vm = Vm::attach(&mut pager, "one", &layer);
        let peer = play(demand, move |request| Some(answer(request)));
        let reader = reads(&vm.view, 4);
        hear_about_peers(&mut pager, |news| matches!(news, FromPeers::Lost { .. }).then_some(()));
        assert_eq!(peer.join().expect("a peer"), [4], "peer {number}");
        assert_eq!(reader.join().expect("a reader"), Err(libc::EFAULT));
        let (reason, _) = pager.wait_for_failure(&layer, 4);
        assert!(reason.contains("no connection"), "{reason}");
        assert!(reads(&vm.view, 1).join().expect("a reader") == expected(&layer, 1), "zeros need no source");
    }
    // More than a run is not even waited for.
    assert!(Answer::read(&mut &too_long[..]).is_err());
}

fn who_asks_for_what_it_may_not_have_gets_nothing() {
    let layer = Layer::new("a", pattern(8, |_| false));
    let secret = Layer::new("secret", pattern(8, |_| false));
    let mut pager = Pager::start();
    pager.add(&secret).expect("a layer");
    pager.add(&layer).expect("a layer");
    let (ours, theirs) = connection();
    serve(&mut pager, "one", &layer, &theirs);
    let mut ours = Ends::agreed(ours, false);
    for (number, (of, run)) in (0..).zip([(1, 0), (u32::MAX, 0), (0, 8), (0, u32::MAX)]) {
        ours.send(&Request { number, layer: of, run }.encode());
        let answer = Answer::read(&mut ours.receiver).expect("an answer");
        assert_eq!(answer, Answer { number, kind: Kind::Refused, bytes: 0 }, "layer {of}, run {run}");
    }
    ours.send(&Request { number: 9, layer: 0, run: 7 }.encode());
    let answer = Answer::read(&mut ours.receiver).expect("an answer");
    assert_eq!(answer, Answer { number: 9, kind: Kind::Bytes, bytes: RUN as u32 });
    let mut run = vec![0; RUN];
    ours.receiver.read_exact(&mut run).expect("the run");
    assert!(run == layer.content[7 * RUN..]);
    assert_eq!(pager.status(&secret).present, 0);
    // What is no request ends the connection, and only that.
    ours.send(&[0xff; HEADER_BYTES]);
    let reason = hear_about_peers(&mut pager, |news| match news {
        FromPeers::Ended { connection, reason, is_done: false } if *connection == id("one") => {
            Some(reason.clone())
        }
        _ => None,
    });
    assert!(reason.contains("reserved"), "{reason}");
    assert!(ours.is_over(), "it is closed");
    // The name is free again.
    let (_ours, theirs) = connection();
    serve(&mut pager, "one", &layer, &theirs);
}

fn ended(pager: &mut Pager) -> (String, bool) {
    hear_about_peers(pager, |news| match news {
        FromPeers::Ended { reason, is_done, .. } => Some((reason.clone(), *is_done)),
        _ => None,
    })
}

fn who_has_another_credential_gets_nothing() {
    let layer = Layer::new("a", pattern(8, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let (ours, theirs) = connection();
    serve(&mut pager, "one", &layer, &theirs);
    let mut ours = Ends::new(ours, &new_credential(), false);
    assert!(ours.receiver.handshake(soon()).is_err(), "the certificates of both sides differ");
    let (reason, is_done) = ended(&mut pager);
    assert!(!is_done && reason.contains("alert"), "{reason}");
    let (mut ours, theirs) = connection();
    serve(&mut pager, "one", &layer, &theirs);
    // Nor who speaks without TLS.
    ours.write_all(&Request { number: 1, layer: 0, run: 7 }.encode()).expect("sent");
    let (reason, is_done) = ended(&mut pager);
    assert!(!is_done && !reason.is_empty(), "{reason}");
    assert_eq!(pager.status(&layer).present, 0, "nothing was read for it");
}

fn who_answers_with_another_credential_is_not_asked() {
    let layer = Layer::new("layer-a", pattern(8, |_| false));
    let mut pager = Pager::start();
    let (demand, ahead) = (connection(), connection());
    connect(&mut pager, [&demand.0, &ahead.0]);
    add_remote(&mut pager, &layer);
    let vm = Vm::attach(&mut pager, "one", &layer);
    let reader = reads(&vm.view, 4);
    let mut other = Ends::new(demand.1, &new_credential(), true);
    assert!(other.receiver.handshake(soon()).is_err(), "it hears that it is not the right one");
    let reason = hear_about_peers(&mut pager, |news| match news {
        FromPeers::Lost { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("certificate"), "{reason}");
    assert_eq!(reader.join().expect("a reader"), Err(libc::EFAULT));
}

fn an_end_and_a_connection_that_is_cut_are_told_apart() {
    let layer = Layer::new("a", pattern(8, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    for is_done in [true, false] {
        let (ours, theirs) = connection();
        serve(&mut pager, "one", &layer, &theirs);
        drop(theirs);
        let ours = Ends::agreed(ours, false);
        if is_done {
            ours.sender.close();
        }
        drop(ours);
        assert_eq!(ended(&mut pager).1, is_done);
    }
}

fn a_restarted_vmmd_hears_which_connections_are_served() {
    let layer = Layer::new("a", pattern(8, |_| false));
    let mut pager = Pager::start();
    pager.add(&layer).expect("a layer");
    let (ours, theirs) = connection();
    serve(&mut pager, "one", &layer, &theirs);
    let mut ours = Ends::agreed(ours, false);
    pager.reconnect();
    let served = hear_about_peers(&mut pager, |news| match news {
        FromPeers::Serving { connection } => Some(connection.clone()),
        _ => None,
    });
    assert_eq!(served, id("one"));
    // Nobody holds the layer for it any longer, and it is read all the same.
    let order = ToPager::DropLayer { layer: layer.id.clone() };
    pager.peer.send(&order, &[]);
    pager.wait(|message| matches!(message, FromPager::LayerDropped { .. }).then_some(()));
    ours.send(&Request { number: 1, layer: 0, run: 7 }.encode());
    let answer = Answer::read(&mut ours.receiver).expect("an answer");
    assert_eq!(answer, Answer { number: 1, kind: Kind::Bytes, bytes: RUN as u32 });
}
