use super::*;
use crate::control::mailbox::{Mailbox, mailbox};
use patina_abi::link::Identity;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Echoes what the doors were asked.
struct Echo;

impl Doors for Echo {
    fn ready(&self) {}
    fn dial(&self, port: u32, mut stream: UnixStream) {
        assert!(answer(&stream, &Opened::Ok));
        stream.write_all(format!("port {port}\n").as_bytes()).expect("write");
    }
    fn console(&self, stream: UnixStream) {
        answer(&stream, &Opened::Error("no console".into()));
    }
}

/// Is never frozen here.
struct Frozen;

impl Freezer for Frozen {
    fn freeze(&mut self, stream: UnixStream) -> Option<End> {
        answer(&stream, &Opened::Error("cold".into()));
        None
    }
}

struct Vmm {
    path: PathBuf,
    mailbox: Mailbox,
    thread: JoinHandle<End>,
    _dir: tempfile::TempDir,
}

fn vmm() -> Vmm {
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
    });
    let mut server = Server::new(listener, inbox, Echo, session, Instant::now()).expect("a server");
    let thread = std::thread::spawn(move || {
        let end = server.run(&mut Frozen).expect("served");
        server.farewell(&end);
        end
    });
    Vmm { path, mailbox, thread, _dir: dir }
}

struct Peer(BufReader<UnixStream>);

impl Peer {
    fn open(vmm: &Vmm, open: &str) -> Self {
        let mut peer = Self(BufReader::new(UnixStream::connect(&vmm.path).expect("connect")));
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
    assert_eq!((vmmd.line(), vmmd.line()), (r#""ok""#.to_owned(), booting));
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    assert!(vmm.mailbox.send_link(ours));
    let mut agent = Peer(BufReader::new(theirs));
    agent.say(r#"{"t":"hello","abi":1,"agent":"test"}"#);
    assert!(agent.line().starts_with(r#"{"t":"identity","vmid":0"#));
    agent.say(r#"{"t":"ready"}"#);
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
    assert!(vmm.mailbox.send_link(ours));
    let mut agent = Peer(BufReader::new(theirs));
    agent.say(r#"{"t":"hello","abi":1,"agent":"test"}"#);
    agent.line();
    agent.say(r#"{"t":"request","id":9,"verb":"list"}"#);
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
fn other_connections_go_through_their_doors_and_rubbish_is_answered() {
    let vmm = vmm();
    let mut dial = Peer::open(&vmm, r#"{"dial":{"port":1025}}"#);
    assert_eq!((dial.line().as_str(), dial.line().as_str()), (r#""ok""#, "port 1025"));
    assert_eq!(Peer::open(&vmm, r#""console""#).line(), r#"{"error":"no console"}"#);
    assert_eq!(Peer::open(&vmm, r#""freeze""#).line(), r#"{"error":"cold"}"#);
    assert!(Peer::open(&vmm, "rubbish").line().starts_with(r#"{"error":"the first line is not understood"#));
    assert!(Peer::open(&vmm, &"x".repeat(2000)).line().contains("too long"));
    vmm.mailbox.send(Event::End(End { kind: EndKind::PoweredOff, reason: "off".into() }));
    vmm.thread.join().expect("the end");
}
