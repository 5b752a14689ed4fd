use super::*;
use crate::control::mailbox::{Mailbox, mailbox};
use crate::control::vm::{Failure, Reply, VmControl};
use patina_abi::ABI;
use patina_abi::link::{Identity, Vmcoreinfo};
use patina_control::config::Member;
use patina_control::messages::Frozen;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Echoes what it was asked.
struct Echo;

impl Connections for Echo {
    fn ready(&self) {}
    fn dial(&self, port: u32, mut stream: UnixStream) {
        assert!(answer(&stream, &Opened::Ok));
        stream.write_all(format!("port {port}\n").as_bytes()).expect("write");
    }
    fn console(&self, mut stream: UnixStream) {
        stream.write_all(b"the console\n").expect("write");
    }
    fn attach(&self, _: OwnedFd, stream: UnixStream) {
        assert!(answer(&stream, &Opened::Ok));
    }
}

type Clock = fn() -> Instant;

/// Is frozen or refuses, in turns: yes first. Copies a page where others are held.
#[derive(Default)]
struct Icebox {
    freezes: u64,
    readies: u64,
    /// A freeze says that it has begun, and goes on at a word: as one whose guest waits for a page.
    gate: Option<(Sender<()>, Receiver<()>)>,
    /// A clock, and who hears until when the pause must come.
    late: Option<(Clock, Sender<Option<Instant>>)>,
}

impl VmControl for Icebox {
    fn freeze(&mut self, is_held: bool, until: Option<Instant>) -> Result<Reply, Failure> {
        if let Some((now, untils)) = &self.late {
            untils.send(until).expect("whoever looks");
            if until.is_some_and(|until| now() >= until) {
                let message = "too late".into();
                return Err(Failure::NotPrepared(CallError { code: libc::ETIMEDOUT, message }));
            }
        }
        self.freezes += 1;
        if let Some((begun, go_on)) = &self.gate {
            begun.send(()).expect("whoever waits for it");
            go_on.recv().ok();
        }
        if self.freezes.is_multiple_of(2) {
            return Err(Failure::Refused("cold".into()));
        }
        let frozen = Frozen {
            pause_us: self.freezes,
            copied_pages: is_held.into(),
            copied_beside_pages: 0,
            agent_abi: 0,
            number: 0,
        };
        Ok(Reply { opened: Opened::Frozen(frozen), files: Vec::new() })
    }

    fn start(
        &mut self,
        descriptors: Vec<OwnedFd>,
        _: Vec<u8>,
        _: Option<Box<Member>>,
    ) -> Result<Reply, Failure> {
        if let Some((begun, go_on)) = &self.gate {
            begun.send(()).expect("whoever waits for it");
            go_on.recv().ok();
        }
        Ok(Reply { opened: Opened::Started { entered_ns: descriptors.len() as u64 }, files: Vec::new() })
    }

    fn started(&mut self) {}

    fn ready(&mut self) {
        self.readies += 1;
    }

    fn prefault_list(&mut self) -> Result<Reply, Failure> {
        Err(Failure::Refused(format!("ready {} times", self.readies)))
    }

    fn free_pages(&mut self, frozen: u64, note: Option<Vmcoreinfo>) -> Result<Reply, Failure> {
        Err(Failure::Refused(format!("{frozen} at {:?}", note.map(|note| note.address))))
    }

    fn finish(&mut self) {}
}

/// The server's clock stands still.
const STARTED_AT: Clock = || {
    static AT: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *AT.get_or_init(Instant::now)
};

struct Vmm {
    path: PathBuf,
    mailbox: Mailbox,
    thread: JoinHandle<End>,
    _dir: tempfile::TempDir,
}

fn vmm() -> Vmm {
    vmm_started_by(patina_control::VERSION)
}

/// As a vmmd of this version starts it.
fn vmm_started_by(vmmd: u32) -> Vmm {
    vmm_of(vmmd, Icebox::default())
}

fn vmm_of(vmmd: u32, icebox: Icebox) -> Vmm {
    vmm_with(vmmd, icebox, |_| {})
}

fn vmm_with(vmmd: u32, icebox: Icebox, set: impl FnOnce(&mut Server<Echo>)) -> Vmm {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("vmm.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (mailbox, inbox) = mailbox().expect("a mailbox");
    let session = Session::new(Identity {
        vmid: 0,
        family: "f".into(),
        ip: std::net::Ipv4Addr::LOCALHOST,
        prefix: 20,
        gateway: std::net::Ipv4Addr::LOCALHOST,
        mac: String::new(),
        hostname: "a".into(),
        clock_ns: 0,
        seed: String::new(),
        ticket: String::new(),
    });
    let mut server = Server::new(listener, inbox, Echo, session, vmmd, (Instant::now(), State::Booting))
        .expect("a server");
    let own = mailbox.clone();
    server.now = STARTED_AT;
    set(&mut server);
    let thread = std::thread::spawn(move || {
        let orders = Orders::start(icebox, own).expect("a thread");
        let end = server.run(&orders).expect("served");
        orders.finish(Duration::from_millis(10));
        server.farewell(&end);
        end
    });
    Vmm { path, mailbox, thread, _dir: dir }
}

fn hello() -> String {
    format!(r#"{{"t":"hello","abi":{ABI},"agent":"test"}}"#)
}

const PREPARE: &str = r#"{"freeze":{"prepare":{"ask":{"hold":true}}}}"#;
const PREPARED: &str = r#"{"t":"prepared","ok":null}"#;

/// With the others held.
fn frozen(pause_us: u64) -> String {
    format!(
        r#"{{"frozen":{{"pause_us":{pause_us},"copied_pages":1,"copied_beside_pages":0,"agent_abi":{ABI},"number":0}}}}"#
    )
}

fn frozen_unheld(pause_us: u64) -> String {
    frozen(pause_us).replace("pages\":1", "pages\":0")
}

fn resumed(cloned: bool) -> String {
    format!(r#"{{"t":"resumed","cloned":{cloned}}}"#)
}

struct Peer(BufReader<UnixStream>);

impl Peer {
    fn new(stream: UnixStream) -> Self {
        // Longer than anything takes on a busy machine: a test that waits so long has failed.
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        Self(BufReader::new(stream))
    }

    /// A greeted agent.
    fn agent(vmm: &Vmm) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        assert!(vmm.mailbox.send_link(ours, Origin::default()));
        let mut agent = Self::new(theirs);
        agent.say(&hello());
        assert!(agent.line().starts_with(r#"{"t":"identity""#));
        agent
    }
    fn open(vmm: &Vmm, open: &str) -> Self {
        let mut peer = Self::new(UnixStream::connect(&vmm.path).expect("connect"));
        peer.say(open);
        peer
    }
    fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).expect("write");
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }
}

#[test]
fn a_vm_boots_is_asked_and_killed() {
    let vmm = vmm();
    let mut vmmd = Peer::open(&vmm, r#""control""#);
    let booting = serde_json::to_string(&FromVmm::State(State::Booting)).expect("a state");
    let version = format!(r#"{{"t":"hello","version":{}}}"#, patina_control::VERSION);
    assert_eq!((vmmd.line(), vmmd.line(), vmmd.line()), (r#""ok""#.to_owned(), version, booting));
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    assert!(vmm.mailbox.send_link(ours, Origin::default()));
    let mut agent = Peer::new(theirs);
    agent.say(&hello());
    assert!(agent.line().starts_with(r#"{"t":"identity","vmid":0"#));
    agent.say(r#"{"t":"ready","vmid":0}"#);
    assert!(vmmd.line().contains("ready"));
    agent.say(r#"{"t":"request","id":9,"verb":"list"}"#);
    assert!(vmmd.line().contains(r#""id":1,"verb":"list""#));
    vmmd.say(r#"{"t":"guest_reply","id":1,"ok":[]}"#);
    assert_eq!(agent.line(), r#"{"t":"reply","id":9,"ok":[]}"#);
    vmmd.say(r#"{"t":"kill","reason":"enough"}"#);
    assert!(vmmd.line().contains(r#""reason":"enough""#));
    assert_eq!(vmm.thread.join().expect("the end").kind, EndKind::Killed);
}

#[test]
fn a_second_vmmd_takes_over_and_who_waits_for_the_first_is_told() {
    let vmm = vmm();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut first = Peer::open(&vmm, r#""control""#);
    first.line();
    assert!(vmm.mailbox.send_link(ours, Origin::default()));
    let mut agent = Peer::new(theirs);
    agent.say(&hello());
    agent.line();
    agent.say(r#"{"t":"request","id":9,"verb":"list"}"#);
    first.line();
    first.line();
    assert!(first.line().contains("guest_request"));
    let mut second = Peer::open(&vmm, r#""control""#);
    assert_eq!(second.line(), r#""ok""#);
    assert!(agent.line().contains(r#""error":{"code":111"#));
    assert_eq!(first.line(), "", "closed");
    vmm.mailbox.send(Event::End(End { kind: EndKind::PoweredOff, reason: "off".into() }));
    assert_eq!(vmm.thread.join().expect("the end").reason, "off");
}

#[test]
fn other_connections_reach_the_guest_and_rubbish_is_answered() {
    let vmm = vmm();
    let mut dial = Peer::open(&vmm, r#"{"dial":{"port":1025}}"#);
    assert_eq!((dial.line().as_str(), dial.line().as_str()), (r#""ok""#, "port 1025"));
    let mut console = Peer::open(&vmm, r#""console""#);
    assert_eq!((console.line().as_str(), console.line().as_str()), (r#""ok""#, "the console"));
    assert!(Peer::open(&vmm, "rubbish").line().starts_with(r#"{"error":"the first line is invalid"#));
    assert!(Peer::open(&vmm, &"x".repeat(2000)).line().contains("too long"));
    vmm.mailbox.send(Event::End(End { kind: EndKind::PoweredOff, reason: "off".into() }));
    vmm.thread.join().expect("the end");
}

impl Vmm {
    fn end(self) {
        self.mailbox.send(Event::End(End { kind: EndKind::PoweredOff, reason: "off".into() }));
        self.thread.join().expect("the end");
    }
}

#[test]
fn a_freeze_that_the_guest_asked_for_is_at_once_and_the_agent_hears_of_it() {
    let vmm = vmm();
    let mut agent = Peer::agent(&vmm);
    let freeze = r#"{"freeze":{"prepare":null}}"#;
    assert_eq!(Peer::open(&vmm, freeze).line(), frozen(1));
    assert_eq!(agent.line(), resumed(true));
    assert_eq!(Peer::open(&vmm, freeze).line(), r#"{"error":"cold"}"#);
    assert_eq!(agent.line(), resumed(false));
    vmm.end();
}

#[test]
fn an_agent_does_not_hear_of_a_freeze_that_it_has_no_part_in() {
    let vmm = vmm();
    let mut agent = Peer::agent(&vmm);
    // It has prepared for a freeze of its own, which comes next.
    assert_eq!(Peer::open(&vmm, r#"{"freeze":{"prepare":"not"}}"#).line(), frozen_unheld(1));
    assert_eq!(Peer::open(&vmm, r#"{"freeze":{"prepare":null}}"#).line(), r#"{"error":"cold"}"#);
    assert_eq!(agent.line(), resumed(false), "the first thing that it hears");
    vmm.end();
}

#[test]
fn a_vm_ends_whose_agent_cannot_be_ready() {
    let vmm = vmm();
    Peer::agent(&vmm).say(r#"{"t":"not_ready","reason":"identity: set the MAC address: no"}"#);
    let end = vmm.thread.join().expect("the end");
    assert_eq!(end.kind, EndKind::VmmError);
    assert!(end.reason.ends_with("stayed closed: identity: set the MAC address: no"), "{}", end.reason);
}

#[test]
fn a_freeze_from_outside_waits_for_the_agent() {
    let vmm = vmm();
    let refusal = Peer::open(&vmm, PREPARE).line();
    assert!(
        refusal.starts_with(r#"{"not_prepared":{"code":107,"message":"the guest's agent does not answer: "#)
    );
    let mut agent = Peer::agent(&vmm);
    for (outcome, cloned) in [(frozen(1), true), (r#"{"error":"cold"}"#.to_owned(), false)] {
        let mut vmmd = Peer::open(&vmm, PREPARE);
        assert_eq!(agent.line(), r#"{"t":"prepare","hold":true}"#);
        assert!(Peer::open(&vmm, PREPARE).line().contains("another freeze of this VM"));
        agent.say(PREPARED);
        assert_eq!((vmmd.line(), vmmd.line()), (outcome, String::new()));
        assert_eq!(agent.line(), resumed(cloned));
    }
    let mut vmmd = Peer::open(&vmm, PREPARE);
    agent.line();
    agent.say(r#"{"t":"prepared","error":{"code":5,"message":"pre-clone: exit code 1"}}"#);
    assert_eq!(vmmd.line(), r#"{"not_prepared":{"code":5,"message":"pre-clone: exit code 1"}}"#);
    // The next one finds nothing in its way.
    let mut vmmd = Peer::open(&vmm, PREPARE);
    agent.line();
    agent.say(PREPARED);
    assert_eq!(vmmd.line(), frozen(3));
    vmm.end();
}

#[test]
fn a_link_that_breaks_while_the_agent_prepares_is_told() {
    let vmm = vmm();
    let broken = r#"{"not_prepared":{"code":107,"message":"the link to its agent broke; try again"}}"#;
    // It closes; it is replaced by a new one; it says what it must not.
    for how in ["close", "replace", "rubbish"] {
        let mut agent = Peer::agent(&vmm);
        let mut vmmd = Peer::open(&vmm, PREPARE);
        assert_eq!(agent.line(), r#"{"t":"prepare","hold":true}"#);
        let _other = match how {
            "close" => {
                drop(agent);
                None
            }
            "replace" => Some((Peer::agent(&vmm), agent)),
            _ => {
                agent.say("rubbish");
                assert_eq!(agent.line(), "", "closed");
                None
            }
        };
        assert_eq!(vmmd.line(), broken, "{how}");
    }
    vmm.end();
}

#[test]
fn nothing_is_frozen_for_one_who_has_gone() {
    let vmm = vmm();
    let mut agent = Peer::agent(&vmm);
    let vmmd = Peer::open(&vmm, PREPARE);
    agent.line();
    drop(vmmd);
    agent.say(PREPARED);
    assert_eq!(agent.line(), resumed(false));
    let mut vmmd = Peer::open(&vmm, PREPARE);
    agent.line();
    agent.say(PREPARED);
    assert_eq!(vmmd.line(), frozen(1), "the first of all");
    vmm.end();
}

#[test]
fn a_freeze_that_comes_20_s_after_the_agent_has_prepared_is_refused() {
    let freeze_at = |now: Clock| {
        let (untils, until) = channel();
        let vmm = vmm_of(patina_control::VERSION, Icebox { late: Some((now, untils)), ..Icebox::default() });
        let mut agent = Peer::agent(&vmm);
        // An operator's request, then the guest's own.
        let mut vmmd = Peer::open(&vmm, PREPARE);
        agent.line();
        agent.say(PREPARED);
        let first = (vmmd.line(), agent.line());
        let mut control = Peer::open(&vmm, r#""control""#);
        (0..3).for_each(|_| drop(control.line()));
        agent.say(r#"{"t":"request","id":9,"verb":"clone"}"#);
        assert!(control.line().contains(r#""verb":"clone""#));
        let second = (Peer::open(&vmm, r#"{"freeze":{"prepare":null}}"#).line(), agent.line());
        vmm.end();
        let expected = Some(STARTED_AT() + Duration::from_secs(20));
        assert_eq!([until.recv(), until.recv()], [Ok(expected), Ok(expected)]);
        [first, second]
    };
    let late = r#"{"not_prepared":{"code":110,"message":"too late"}}"#.to_owned();
    assert_eq!(
        freeze_at(|| STARTED_AT() + Duration::from_secs(20)),
        [(late.clone(), resumed(false)), (late, resumed(false))]
    );
    assert_eq!(
        freeze_at(|| STARTED_AT() + Duration::from_millis(19_999)),
        [(frozen(1), resumed(true)), (r#"{"error":"cold"}"#.to_owned(), resumed(false))]
    );
}

/// A VM whose freeze or start begins and does not end, since it waits for a page, until the word.
fn vmm_that_freezes() -> (Vmm, Receiver<()>, Sender<()>) {
    let ((begun, has_begun), (go_on, word)) = (channel(), channel());
    let icebox = Icebox { gate: Some((begun, word)), ..Icebox::default() };
    (vmm_of(patina_control::VERSION, icebox), has_begun, go_on)
}

#[test]
fn a_link_that_opens_before_the_start_is_heard_of_has_the_clones_identity() {
    let (vmm, begun, go_on) = vmm_that_freezes();
    let mut started = Peer::open(&vmm, r#"{"start":{"ticket":"t"}}"#);
    begun.recv().expect("a start");
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    assert!(vmm.mailbox.send_link(ours, Origin { is_carried_on: true, ..Origin::default() }));
    // After this answer the server has taken the link.
    let mut dial = Peer::open(&vmm, r#"{"dial":{"port":5}}"#);
    assert_eq!((dial.line().as_str(), dial.line().as_str()), (r#""ok""#, "port 5"));
    go_on.send(()).expect("a word");
    assert!(started.line().contains("started"));
    let identity = Peer::new(theirs).line();
    assert!(identity.starts_with(r#"{"t":"identity""#) && identity.contains(r#""ticket":"t""#), "{identity}");
    vmm.end();
}

#[test]
fn another_pager_is_attached_during_a_freeze_that_waits_for_a_page() {
    let (vmm, begun, go_on) = vmm_that_freezes();
    let mut agent = Peer::agent(&vmm);
    let mut frozen_for = Peer::open(&vmm, r#"{"freeze":{"prepare":null}}"#);
    begun.recv().expect("a freeze");
    let stream = UnixStream::connect(&vmm.path).expect("connect");
    let (pager, _theirs) = UnixStream::pair().expect("a pair");
    patina_control::rights::send(&stream, b"\"pager\"\n", &[pager.as_fd()]).expect("sent");
    assert_eq!(Peer::new(stream).line(), r#""ok""#);
    // One without a pager, a program that wants in, and a call of the guest are answered as well.
    assert!(Peer::open(&vmm, r#""pager""#).line().contains("the request has no descriptor"));
    let mut dial = Peer::open(&vmm, r#"{"dial":{"port":5}}"#);
    assert_eq!((dial.line().as_str(), dial.line().as_str()), (r#""ok""#, "port 5"));
    agent.say(r#"{"t":"request","id":3,"verb":"list"}"#);
    assert!(agent.line().contains(r#""id":3,"error""#));
    go_on.send(()).expect("a word");
    assert_eq!(frozen_for.line(), frozen(1));
    assert_eq!(agent.line(), resumed(true));
    vmm.end();
}

#[test]
fn a_vm_is_killed_during_a_freeze_that_waits_for_a_page() {
    let (vmm, begun, _go_on) = vmm_that_freezes();
    let mut frozen_for = Peer::open(&vmm, r#"{"freeze":{"prepare":"not"}}"#);
    begun.recv().expect("a freeze");
    let mut next = Peer::open(&vmm, r#""touched""#);
    let mut vmmd = Peer::open(&vmm, r#""control""#);
    assert_eq!(vmmd.line(), r#""ok""#);
    vmmd.say(r#"{"t":"kill","reason":"enough"}"#);
    assert_eq!(vmm.thread.join().expect("the end").kind, EndKind::Killed);
    let told = r#"{"error":"the VM has ended: enough"}"#;
    assert_eq!((frozen_for.line().as_str(), next.line().as_str()), (told, told));
}

#[test]
fn a_freeze_that_comes_during_another_one_asks_the_agent_when_that_has_ended() {
    let (vmm, begun, go_on) = vmm_that_freezes();
    let mut agent = Peer::agent(&vmm);
    let mut first = Peer::open(&vmm, r#"{"freeze":{"prepare":null}}"#);
    begun.recv().expect("a freeze");
    let mut second = Peer::open(&vmm, PREPARE);
    // It has been read when a later one is answered.
    let mut dial = Peer::open(&vmm, r#"{"dial":{"port":5}}"#);
    assert_eq!((dial.line().as_str(), dial.line().as_str()), (r#""ok""#, "port 5"));
    go_on.send(()).expect("a word");
    assert_eq!(first.line(), frozen(1));
    assert_eq!(agent.line(), resumed(true), "before it is asked again");
    assert_eq!(agent.line(), r#"{"t":"prepare","hold":true}"#);
    agent.say(PREPARED);
    begun.recv().expect("a freeze");
    go_on.send(()).expect("a word");
    assert_eq!(second.line(), r#"{"error":"cold"}"#);
    assert_eq!(agent.line(), resumed(false));
    vmm.end();
}

#[test]
fn a_link_that_is_made_during_a_freeze_does_not_hear_of_it() {
    let (vmm, begun, go_on) = vmm_that_freezes();
    let _before = Peer::agent(&vmm);
    let mut frozen_for = Peer::open(&vmm, r#"{"freeze":{"prepare":null}}"#);
    begun.recv().expect("a freeze");
    let mut agent = Peer::agent(&vmm);
    go_on.send(()).expect("a word");
    assert_eq!(frozen_for.line(), frozen(1));
    // The first thing that it hears.
    let mut second = Peer::open(&vmm, PREPARE);
    assert_eq!(agent.line(), r#"{"t":"prepare","hold":true}"#);
    agent.say(PREPARED);
    begun.recv().expect("a freeze");
    go_on.send(()).expect("a word");
    assert_eq!(second.line(), r#"{"error":"cold"}"#);
    vmm.end();
}

#[test]
fn an_agent_that_prepares_unasked_loses_its_link() {
    let vmm = vmm();
    let mut agent = Peer::agent(&vmm);
    agent.say(PREPARED);
    assert_eq!(agent.line(), "", "closed");
    vmm.end();
}

#[test]
fn a_clone_and_an_agent_that_is_known_hear_who_they_are_unasked() {
    let vmm = vmm();
    let connect = || {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        assert!(vmm.mailbox.send_link(ours, Origin::default()));
        Peer::new(theirs)
    };
    assert!(Peer::open(&vmm, r#"{"start":{"ticket":"t"}}"#).line().contains("started"));
    let mut agent = connect();
    let identity = agent.line();
    assert!(identity.starts_with(r#"{"t":"identity""#) && identity.contains(r#""ticket":"t""#), "{identity}");
    let prefault_list = r#""touched""#;
    assert_eq!(Peer::open(&vmm, prefault_list).line(), r#"{"error":"ready 0 times"}"#);
    let mut vmmd = Peer::open(&vmm, r#""control""#);
    vmmd.line();
    vmmd.line();
    vmmd.line();
    agent.say(r#"{"t":"ready","vmid":0}"#);
    assert!(vmmd.line().contains("ready"));
    assert_eq!(Peer::open(&vmm, prefault_list).line(), r#"{"error":"ready 1 times"}"#);
    // Its next link, and one of an agent that has been started again: a hello needs no answer.
    let mut agent = connect();
    assert!(agent.line().starts_with(r#"{"t":"identity""#));
    agent.say(&hello());
    agent.say(r#"{"t":"request","id":3,"verb":"list"}"#);
    assert!(vmmd.line().contains(r#""verb":"list""#));
    vmmd.say(r#"{"t":"guest_reply","id":1,"ok":[]}"#);
    assert_eq!(agent.line(), r#"{"t":"reply","id":3,"ok":[]}"#);
    // One that speaks another language is not kept.
    agent.say(r#"{"t":"hello","abi":99,"agent":"x"}"#);
    assert_eq!(agent.line(), "", "closed");
    vmm.end();
}

#[test]
fn connections_beyond_the_room_wait_until_there_is_some() {
    let vmm = vmm();
    let connect = || Peer::new(UnixStream::connect(&vmm.path).expect("connect"));
    // One that says nothing for as long as the VM lives, as vmmd's for the next freeze.
    let mut spare = connect();
    let mut peers: Vec<Peer> = (0..40).map(|_| connect()).collect();
    for (port, peer) in peers.iter_mut().enumerate() {
        peer.say(&format!(r#"{{"dial":{{"port":{port}}}}}"#));
    }
    for (port, peer) in peers.iter_mut().enumerate() {
        assert_eq!((peer.line(), peer.line()), (r#""ok""#.to_owned(), format!("port {port}")));
    }
    spare.say(r#"{"dial":{"port":7}}"#);
    assert_eq!(spare.line(), r#""ok""#);
    let mut vmmd = Peer::open(&vmm, r#""control""#);
    vmmd.say(r#"{"t":"kill","reason":"done"}"#);
    assert_eq!(vmm.thread.join().expect("the thread").kind, EndKind::Killed);
}

/// It takes a hello for a fault and makes the connection anew, for ever.
#[test]
fn a_vmmd_that_is_older_than_versions_gets_no_hello_from_the_vmm_it_started() {
    let vmm = vmm_started_by(0);
    for _ in 0..2 {
        let mut vmmd = Peer::open(&vmm, r#""control""#);
        assert_eq!(vmmd.line(), r#""ok""#);
        assert_eq!(vmmd.line(), r#"{"t":"state","booting":null}"#);
    }
    let mut vmmd = Peer::open(&vmm, r#""control""#);
    vmmd.say(r#"{"t":"kill","reason":"done"}"#);
    assert_eq!(vmm.thread.join().expect("the thread").kind, EndKind::Killed);
}

/// Of a vmmd that is newer than this vmm.
#[test]
fn what_a_newer_vmmd_says_is_ignored_or_refused_and_the_connection_stays() {
    let vmm = vmm();
    let mut vmmd = Peer::open(&vmm, r#""control""#);
    assert_eq!([vmmd.line(), vmmd.line(), vmmd.line()].map(|line| line.contains("error")), [false; 3]);
    vmmd.say(r#"{"t":"pause","for_ms":5}"#);
    vmmd.say(r#"{"t":"guest_reply","id":77,"ok":null,"cost":1}"#);
    vmmd.say("rubbish");
    for unknown in [r#"{"migrate":{"to":"x"}}"#, r#"{"freeze":{"prepare":"dance"}}"#, r#""fly""#] {
        let mut other = Peer::open(&vmm, unknown);
        let told = other.line();
        assert!(told.starts_with(r#"{"error":"the first line is invalid"#), "{told}");
        assert!(told.contains("control version") && told.contains("unknown variant"), "{told}");
    }
    // A field more changes nothing.
    vmmd.say(r#"{"t":"kill","reason":"enough","by":"x"}"#);
    assert!(vmmd.line().contains(r#""reason":"enough""#), "the same connection");
    assert_eq!(vmm.thread.join().expect("the end").kind, EndKind::Killed);
}

#[test]
fn a_vm_whose_agent_is_too_old_for_what_it_is_frozen_for_is_not_frozen() {
    let vmm = vmm();
    let ask =
        |oldest: u32| PREPARE.replace(r#""hold":true"#, &format!(r#""hold":true,"agent_abi_min":{oldest}"#));
    // No agent has said yet how old it is.
    assert!(Peer::open(&vmm, &ask(ABI)).line().starts_with(r#"{"not_prepared":{"code":107"#));
    let mut agent = Peer::agent(&vmm);
    let refused = Peer::open(&vmm, &ask(ABI + 1)).line();
    assert_eq!(refused, format!(r#"{{"old_agent":{{"abi":{ABI}}}}}"#));
    let mut client = Peer::open(&vmm, &ask(ABI));
    // The first that the agent hears is of this one.
    assert!(agent.line().starts_with(r#"{"t":"prepare""#));
    agent.say(PREPARED);
    assert_eq!(client.line(), frozen(1), "the first freeze that there was");
}

/// Which connections are refused for want of descriptors, and how often that was tried.
mod descriptors {
    use super::*;
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    static LEFT: AtomicUsize = AtomicUsize::new(3);
    static TRIED: AtomicUsize = AtomicUsize::new(0);
    static LATER_MS: AtomicU64 = AtomicU64::new(0);

    fn accept(listener: &UnixListener) -> std::io::Result<UnixStream> {
        let taken = |left: usize| left.checked_sub(1);
        let (stream, _) = match LEFT.load(Ordering::SeqCst) {
            0 => {
                TRIED.fetch_add(1, Ordering::SeqCst);
                return Err(std::io::Error::from_raw_os_error(libc::EMFILE));
            }
            _ => listener.accept()?,
        };
        LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, taken).expect("one was left");
        Ok(stream)
    }

    #[test]
    fn without_descriptors_connections_are_not_looked_at_again_and_again() {
        let vmm = vmm_with(patina_control::VERSION, Icebox::default(), |server| {
            server.accept = accept;
            server.now = || STARTED_AT() + Duration::from_millis(LATER_MS.load(Ordering::SeqCst));
        });
        let connect = || Peer::new(UnixStream::connect(&vmm.path).expect("connect"));
        let early: Vec<_> = (0..3).map(|_| connect()).collect();
        let mut late = connect();
        late.say(r#"{"dial":{"port":9}}"#);
        // Each is a turn of the server, in which it could try again.
        for mut peer in early {
            peer.say(r#"{"dial":{"port":7}}"#);
            assert_eq!((peer.line(), peer.line()), (r#""ok""#.to_owned(), "port 7".to_owned()));
        }
        assert!(TRIED.load(Ordering::SeqCst) <= 1, "its clock stands still");
        LEFT.store(9, Ordering::SeqCst);
        LATER_MS.store(1000, Ordering::SeqCst);
        assert_eq!((late.line(), late.line()), (r#""ok""#.to_owned(), "port 9".to_owned()));
    }
}
