//! Stands in for `vmm` in this crate's tests: speaks the control socket, boots no guest, needs no
//! KVM. What it does is chosen by words on the VM's kernel command line:
//!
//! - `slow`: is never ready; `deaf`: ignores a kill; `crash`: aborts as soon as it is ready;
//!   `forbidden`: its system call filter kills it then; `off`: powers off then; `hang-up`: closes
//!   its first control connection before it has said anything; `long=BYTES`: its agent does not
//!   prepare, with so many newlines for words; `mute`: closes the connection when it is to freeze;
//!   `unprepared=CODE`: its agent does not prepare; `wait`: it freezes when somebody has written
//!   into the pipe `go` in the VM's folder; `abi=N`: its agent speaks that ABI; `forbidden-freeze`:
//!   its system call filter kills it when it is to freeze.
//!
//! - `older`: it says no hello, as before there were versions; `version=N`: it says another
//!   version; `strange`: it says more than is known, on each control connection. One whose name
//!   begins with `replaced.` is of version 9.
//!
//! A warm one reads its parent's words from the generation's state from where its file position
//! stands, and prints the first line of the RAM's last file and the prefault list on its console.
//! The words that only clones heed:
//!
//! - `refuse=VMID`, `die=VMID`, `forbidden=VMID`: the clone with that vmid says no to its
//!   generation, aborts over it, or is killed by its system call filter.
//!
//! `hold-freeze=PATH`, `hold-start=PATH` and `hold-hello=PATH`: before it answers that it is
//! frozen, or has started, or says the first line of a control connection, it leaves the file
//! `PATH.VMID` and goes on when nobody has PATH locked.
//!
//! As an agent it runs `echo ARGS`, `cat`, `fail CODE`, `ask VERB JSON` (a guest's call),
//! `drop VERB JSON PATH` (one that the guest does not wait for once there is a file PATH),
//! `hang-up` (until the control connection is another one) and `hang`; all else is not found.
#![allow(unsafe_code, reason = "takes over inherited descriptors by number")]
#![allow(clippy::unwrap_used, reason = "a test's helper: a failure is a failed test")]

use patina_abi::{
    exec::{Exit, FrameType, HEADER_BYTES, Start, header, parse_header},
    link::{Answer, CallError},
};
use patina_control::{
    VERSION,
    config::{Start as Origin, VmConfig},
    end::{End, EndKind},
    messages::{FromVmm, Frozen, Open, Opened, Prepare, State, ToVmm},
    rights,
};
use rustix::fs::{FlockOperation, MemfdFlags, SealFlags, fcntl_add_seals, flock, ftruncate, memfd_create};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Read, Seek, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

const FROZEN: Frozen = Frozen { pause_us: 250, copied_pages: 3, copied_beside_pages: 5, agent_abi: 4 };

/// What only a newer vmm says.
const STRANGE: &str = concat!(
    "{\"t\":\"heat\",\"celsius\":90}\n",
    "{\"t\":\"state\",\"paused\":{\"since\":1}}\n",
    "{\"t\":\"guest_cancel\",\"id\":99,\"why\":\"x\"}\n",
    "rubbish\n"
);

struct Vm {
    config: VmConfig,
    words: Mutex<String>,
    console: Mutex<File>,
    state: Mutex<State>,
    control: Mutex<Option<UnixStream>>,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
    controls: AtomicU32,
}

/// # Safety
/// Nothing else in this process owns `fd`.
unsafe fn owned<T: FromRawFd>(fd: RawFd) -> T {
    // SAFETY: the caller's promise.
    unsafe { T::from_raw_fd(fd) }
}

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("--check-host") => {
            return std::io::stdout().write_all(b"{\"pagemap_fault\":null}\n").unwrap();
        }
        option => assert_eq!(option, Some("--config-fd")),
    }
    let fd: RawFd = args.next().unwrap().parse().unwrap();
    // SAFETY: each descriptor was inherited for this process and is taken once.
    let mut file: File = unsafe { owned(fd) };
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let config: VmConfig = serde_json::from_str(&text).unwrap();
    // SAFETY: as above.
    let (listener, mut console): (UnixListener, File) =
        unsafe { (owned(config.control_fd), owned(config.console_fd)) };
    writeln!(console, "stand-in console of {}", config.name).unwrap();
    patina_daemon::say!("begun at nice {}", rustix::process::getpriority_process(None).unwrap());
    patina_daemon::say!("stand-in of {}", config.name);
    let (words, state) = match &config.start {
        Origin::Boot { cmdline, .. } => (cmdline.clone(), State::Booting),
        Origin::Warm => (String::new(), State::Warm),
    };
    let vm = Arc::new(Vm {
        state: Mutex::new(state.clone()),
        control: Mutex::new(None),
        waiting: Mutex::new(HashMap::new()),
        controls: AtomicU32::new(0),
        console: Mutex::new(console),
        words: Mutex::new(words),
        config,
    });
    if state == State::Booting && !vm.has("slow") {
        vm.set(State::Ready { after_us: 1234 });
    }
    for stream in listener.incoming() {
        let (vm, stream) = (Arc::clone(&vm), stream.unwrap());
        thread::spawn(move || vm.serve(stream));
    }
}

impl Vm {
    fn has(&self, word: &str) -> bool {
        self.words.lock().unwrap().split(' ').any(|w| w == word)
    }

    fn number(&self, word: &str) -> Option<i32> {
        let words = self.words.lock().unwrap();
        let value = words.split(' ').find_map(|w| w.strip_prefix(word)?.strip_prefix('='));
        value.map(|number| number.parse().unwrap())
    }

    fn hold(&self, word: &str) {
        let words = self.words.lock().unwrap().clone();
        let Some(path) = words.split(' ').find_map(|w| w.strip_prefix(word)?.strip_prefix('=')) else {
            return;
        };
        File::create(format!("{path}.{}", self.config.identity.vmid)).unwrap();
        flock(File::open(path).unwrap(), FlockOperation::LockShared).unwrap();
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap() = state;
    }

    fn end(&self, kind: EndKind, reason: &str) -> ! {
        let end = End { kind, reason: reason.to_owned() };
        // SAFETY: taken once, the process ends here.
        let mut file: File = unsafe { owned(self.config.end_fd) };
        file.write_all(&serde_json::to_vec(&end).unwrap()).unwrap();
        std::process::exit(0)
    }

    fn serve(&self, mut stream: UnixStream) {
        // The first line and its descriptors come in one piece; nothing follows before they are
        // answered.
        let (line, descriptors) = receive(&stream);
        let Some(line) = line else { return };
        let reader = BufReader::new(stream.try_clone().unwrap());
        match serde_json::from_slice(&line).unwrap() {
            Open::Freeze { .. } if self.has("mute") => {}
            Open::Freeze { prepare } => {
                self.freeze(&mut stream, matches!(prepare, Some(Prepare::Ask { .. })))
            }
            Open::Start { ticket, .. } => self.start(&mut stream, &ticket, descriptors),
            Open::PrefaultList => {
                let list = [0, 4096, self.config.identity.vmid.into()].map(u64::to_le_bytes).concat();
                send(&stream, &Opened::Ok, &[memfd("list", &list, 0).into()]);
            }
            Open::Pager => say(&mut stream, &Opened::Ok),
            Open::Control => {
                say(&mut stream, &Opened::Ok);
                self.control(reader, stream);
            }
            Open::Dial { .. } => {
                say(&mut stream, &Opened::Ok);
                self.agent(reader, stream);
            }
            Open::Console => {
                say(&mut stream, &Opened::Ok);
                let mut reader = reader;
                let mut byte = [0; 1];
                while reader.read(&mut byte).unwrap_or(0) > 0 {
                    stream.write_all(&byte.map(|b| b.to_ascii_uppercase())).unwrap();
                }
            }
        }
    }

    fn control(&self, reader: BufReader<UnixStream>, mut stream: UnixStream) {
        if self.controls.fetch_add(1, Ordering::Relaxed) == 0 && self.has("hang-up") {
            return;
        }
        self.hold("hold-hello");
        let mut control = self.control.lock().unwrap();
        // An older vmm says no hello; a newer one says it with its version, and more that nobody
        // knows here.
        if !self.has("older") {
            let is_replaced = self.config.name.starts_with("replaced.");
            let ours = if is_replaced { 9 } else { VERSION };
            let version = self.number("version").map_or(ours, i32::cast_unsigned);
            say(&mut stream, &FromVmm::Hello { version });
        }
        if self.has("strange") {
            stream.write_all(STRANGE.as_bytes()).unwrap();
        }
        say(&mut stream, &FromVmm::State(self.state.lock().unwrap().clone()));
        *control = Some(stream);
        drop(control);
        self.live();
        for line in reader.lines().map_while(Result::ok) {
            match serde_json::from_str(&line).unwrap() {
                ToVmm::Kill { .. } if self.has("deaf") => {}
                ToVmm::Kill { reason } => self.end(EndKind::Killed, &reason),
                ToVmm::GuestReply { id, answer } => {
                    if let Some(waiting) = self.waiting.lock().unwrap().remove(&id) {
                        waiting.send(answer).unwrap();
                    }
                }
            }
        }
    }

    /// What it does when it is ready and vmmd listens.
    fn live(&self) {
        if !matches!(*self.state.lock().unwrap(), State::Ready { .. }) {
            return;
        }
        if self.has("crash") {
            patina_daemon::say!("about to abort");
            std::process::abort();
        }
        if self.has("forbidden") {
            do_what_is_forbidden();
        }
        if self.has("off") {
            self.end(EndKind::PoweredOff, "the guest powered off");
        }
    }

    fn freeze(&self, stream: &mut UnixStream, prepare: bool) {
        if let (true, Some(code)) = (prepare, self.number("unprepared")) {
            let message = "the pre-clone hook says no".into();
            return say(stream, &Opened::NotPrepared(CallError { code, message }));
        }
        if let (true, Some(bytes)) = (prepare, self.number("long")) {
            let message = "\n".repeat(bytes.unsigned_abs() as usize);
            return say(stream, &Opened::NotPrepared(CallError { code: 125, message }));
        }
        if self.has("wait") {
            std::fs::read(Path::new(&std::env::var("PATINA_VM_DIR").unwrap()).join("go")).unwrap();
        }
        if self.has("forbidden-freeze") {
            do_what_is_forbidden();
        }
        self.hold("hold-freeze");
        let state = memfd("generation-state", format!("state {}", self.words.lock().unwrap()).as_bytes(), 0);
        let bytes = u64::from(self.config.memory_mib) << 20;
        // A generation of a clone is made of its own file and of those that it was made from.
        let layers = if self.config.identity.vmid == 0 { 1 } else { 2 };
        let line = format!("of {}\n", self.config.name);
        let mut sent: Vec<OwnedFd> = vec![state.into()];
        sent.extend((0..layers).map(|_| memfd("generation-ram", line.as_bytes(), bytes).into()));
        let agent_abi = self.number("abi").map_or(FROZEN.agent_abi, i32::cast_unsigned);
        send(stream, &Opened::Frozen(Frozen { agent_abi, ..FROZEN }), &sent);
    }

    fn start(&self, stream: &mut UnixStream, ticket: &str, descriptors: Vec<OwnedFd>) {
        assert_eq!(*self.state.lock().unwrap(), State::Warm);
        let mut files = descriptors.into_iter().map(File::from);
        let (mut state, mut prefault_list) = (files.next().unwrap(), files.next().unwrap());
        let mut words = String::new();
        state.read_to_string(&mut words).unwrap();
        assert!(words.starts_with("state"), "read whole: {words:?}");
        *self.words.lock().unwrap() = words;
        let vmid = Some(self.config.identity.vmid.cast_signed());
        if self.number("refuse") == vmid {
            return say(stream, &Opened::Error("restore the vCPU: no".into()));
        }
        if self.number("die") == vmid {
            patina_daemon::say!("cannot restore, giving up");
            std::process::abort();
        }
        if self.number("forbidden") == vmid {
            do_what_is_forbidden();
        }
        self.hold("hold-start");
        let (mut line, mut list) = (String::new(), Vec::new());
        BufReader::new(files.next_back().unwrap()).read_line(&mut line).unwrap();
        prefault_list.read_to_end(&mut list).unwrap();
        let mut console = self.console.lock().unwrap();
        write!(console, "ram: {line}prefault_list: {list:?}\nticket: {ticket}\n").unwrap();
        drop((console, files, state, prefault_list));
        let entered_ns = patina_control::monotonic_ns();
        // Whether anybody hears it or not, it runs.
        try_say(stream, &Opened::Started { entered_ns });
        let states = [Some(State::Booting), (!self.has("slow")).then_some(State::Ready { after_us: 567 })];
        let mut control = self.control.lock().unwrap();
        for state in states.into_iter().flatten() {
            self.set(state.clone());
            if let Some(control) = control.as_mut() {
                try_say(control, &FromVmm::State(state));
            }
        }
        drop(control);
        self.live();
    }

    fn ask(&self, verb: &str, args: &str) -> String {
        let answer = self.begin(verb, args).1.recv_timeout(Duration::from_secs(20)).unwrap();
        serde_json::to_string(&answer).unwrap()
    }

    fn begin(&self, verb: &str, args: &str) -> (u64, mpsc::Receiver<Answer>) {
        let (sender, receiver) = mpsc::channel();
        // One of a session's own, whatever other sessions ask.
        let id = u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs()) << 32
            | self.waiting.lock().unwrap().len() as u64;
        self.waiting.lock().unwrap().insert(id, sender);
        let args = serde_json::from_str(args).unwrap();
        let request = FromVmm::GuestRequest { id, verb: verb.into(), args };
        self.tell(&request);
        (id, receiver)
    }

    fn cancel(&self, verb: &str, args: &str, path: &str) {
        let (id, _answer) = self.begin(verb, args);
        while !Path::new(path).exists() {
            thread::sleep(Duration::from_millis(5));
        }
        self.waiting.lock().unwrap().remove(&id);
        self.tell(&FromVmm::GuestCancel { id });
    }

    /// Says a line on the control connection. A vmmd that was just started again may not have made
    /// one yet, and what is here is that of the vmmd that was killed: then it waits for the new
    /// one.
    fn tell(&self, line: &FromVmm) {
        while !self.control.lock().unwrap().as_mut().is_some_and(|control| try_say(control, line)) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Breaks the control connection under a call that is not answered, and waits until there is
    /// another; the call is one that waits.
    fn hang_up(&self) {
        let before = self.controls.load(Ordering::Relaxed);
        self.control.lock().unwrap().take().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
        while self.controls.load(Ordering::Relaxed) == before || self.control.lock().unwrap().is_none() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn agent(&self, mut reader: BufReader<UnixStream>, mut stream: UnixStream) {
        let (kind, start) = frame(&mut reader).unwrap();
        assert_eq!(kind, FrameType::Start);
        let start: Start = serde_json::from_slice(&start).unwrap();
        let words: Vec<&str> = start.argv.iter().map(String::as_str).collect();
        let mut exit = Exit { code: Some(0), ..Exit::default() };
        match words.as_slice() {
            ["echo", words @ ..] => put(&mut stream, FrameType::Stdout, words.join(" ").as_bytes()),
            ["ask", verb, args] => put(&mut stream, FrameType::Stdout, self.ask(verb, args).as_bytes()),
            ["drop", verb, args, path] => self.cancel(verb, args, path),
            ["hang-up"] => self.hang_up(),
            ["fail", code] => exit.code = Some(code.parse().unwrap()),
            ["cat"] => {
                while let Some((FrameType::Stdin, bytes)) = frame(&mut reader).filter(|f| !f.1.is_empty()) {
                    put(&mut stream, FrameType::Stdout, &bytes);
                }
            }
            ["hang"] => {
                put(&mut stream, FrameType::Stdout, b"hanging");
                while frame(&mut reader).is_some() {}
                patina_daemon::say!("session closed");
                return;
            }
            _ => exit = Exit { error: Some("not found".into()), ..Exit::default() },
        }
        put(&mut stream, FrameType::Exit, &serde_json::to_vec(&exit).unwrap());
    }
}

/// Makes a system call that a filter of its own does not allow, as a jailed vmm may: the kernel
/// kills the process with SIGSYS.
fn do_what_is_forbidden() -> ! {
    let mut kill = libc::sock_filter {
        code: u16::try_from(libc::BPF_RET | libc::BPF_K).unwrap(),
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_KILL_PROCESS,
    };
    let program = libc::sock_fprog { len: 1, filter: &raw mut kill };
    patina_daemon::say!("about to make a system call that is not allowed");
    // SAFETY: the kernel copies the program of one instruction, which is live; from then on it
    // allows no system call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
        libc::getppid();
    }
    unreachable!("the filter allows no system call")
}

fn memfd(name: &str, content: &[u8], bytes: u64) -> File {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    file.write_all(content).unwrap();
    if bytes > 0 {
        ftruncate(&file, bytes).unwrap();
    }
    file.rewind().unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
    file
}

/// A line and what came with it; None when the connection was closed first.
fn receive(stream: &UnixStream) -> (Option<Vec<u8>>, Vec<OwnedFd>) {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    while line.last() != Some(&b'\n') {
        let mut byte = [0; 1];
        let (length, more) = rights::receive(stream, &mut byte).unwrap();
        if length == 0 {
            return (None, descriptors);
        }
        line.push(byte[0]);
        descriptors.extend(more);
    }
    (Some(line), descriptors)
}

fn send(stream: &UnixStream, opened: &Opened, descriptors: &[OwnedFd]) {
    let mut line = serde_json::to_vec(opened).unwrap();
    line.push(b'\n');
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    rights::send(stream, &line, &descriptors).unwrap();
}

fn say<T: serde::Serialize>(stream: &mut UnixStream, line: &T) {
    assert!(try_say(stream, line), "the peer listens");
}

/// Whether it could be said.
fn try_say<T: serde::Serialize>(stream: &mut UnixStream, line: &T) -> bool {
    let mut bytes = serde_json::to_vec(line).unwrap();
    bytes.push(b'\n');
    stream.write_all(&bytes).is_ok()
}

fn frame(reader: &mut impl Read) -> Option<(FrameType, Vec<u8>)> {
    let mut bytes = [0; HEADER_BYTES];
    reader.read_exact(&mut bytes).ok()?;
    let (kind, length) = parse_header(bytes).unwrap();
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).ok()?;
    Some((kind, payload))
}

fn put(stream: &mut UnixStream, kind: FrameType, payload: &[u8]) {
    stream.write_all(&header(kind, u32::try_from(payload.len()).unwrap())).unwrap();
    stream.write_all(payload).unwrap();
}
