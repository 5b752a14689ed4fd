//! Stands in for `vmm` in this crate's tests: speaks the control socket, boots no guest, needs no KVM. What it does is
//! chosen by words on the VM's kernel command line:
//!
//! - `slow`: is never ready; `deaf`: ignores a kill; `crash`: aborts as soon as it is ready; `off`: powers off then;
//!   `mute`: closes the connection when it is to freeze.
//!
//! It can be frozen once. A clone reads its parent's words from the generation's state from where its file position stands, and
//! prints the RAM's first line on its console.
//!
//! As an agent it runs `echo ARGS`, `cat`, `fail CODE`, `members` (asks `list`) and `hang`; all else is not found.
#![allow(unsafe_code, reason = "takes over inherited descriptors by number")]
#![allow(clippy::unwrap_used, reason = "a test's helper: a failure is a failed test")]

use patina_abi::{
    exec::{Exit, FrameType, HEADER_BYTES, Start, header, parse_header},
    link::Answer,
};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, IoSlice, Read, Seek, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, FromRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};
use vmm::api::{
    config::{Start as Origin, VmConfig},
    control::{FromVmm, Open, Opened, State, ToVmm},
    end::{End, EndKind},
};

struct Vm {
    config: VmConfig,
    words: String,
    frozen: Mutex<bool>,
    state: Mutex<State>,
    control: Mutex<Option<UnixStream>>,
    waiting: Mutex<HashMap<u64, mpsc::Sender<Answer>>>,
}

/// # Safety
/// Nothing else in this process owns `fd`.
unsafe fn owned<T: FromRawFd>(fd: RawFd) -> T {
    // SAFETY: the caller's promise.
    unsafe { T::from_raw_fd(fd) }
}

fn main() {
    let mut args = std::env::args().skip(1);
    assert_eq!(args.next().as_deref(), Some("--config-fd"));
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
    eprintln!("stand-in of {}", config.name);
    let words = match &config.start {
        Origin::Boot { cmdline, .. } => cmdline.clone(),
        Origin::Generation { state_fd, memory_fd } => {
            // SAFETY: as above.
            let (mut state, memory): (File, File) = unsafe { (owned(*state_fd), owned(*memory_fd)) };
            let mut line = String::new();
            BufReader::new(memory).read_line(&mut line).unwrap();
            write!(console, "ram: {line}").unwrap();
            let mut words = String::new();
            state.read_to_string(&mut words).unwrap();
            assert!(words.starts_with("state"), "read whole: {words:?}");
            words
        }
    };
    let vm = Arc::new(Vm {
        state: Mutex::new(State::Booting),
        control: Mutex::new(None),
        waiting: Mutex::new(HashMap::new()),
        frozen: Mutex::new(false),
        words,
        config,
    });
    if !vm.has("slow") {
        vm.set(State::Ready { after_us: 1234 });
    }
    for stream in listener.incoming() {
        let (vm, stream) = (Arc::clone(&vm), stream.unwrap());
        thread::spawn(move || vm.serve(stream));
    }
}

impl Vm {
    fn has(&self, word: &str) -> bool {
        self.words.split(' ').any(|w| w == word)
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

    fn serve(&self, stream: UnixStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let open = serde_json::from_str(&line).unwrap();
        if open != Open::Freeze {
            say(&mut stream, &Opened::Ok);
        }
        match open {
            Open::Freeze if self.has("mute") => {}
            Open::Freeze => self.freeze(&mut stream),
            Open::Control => self.control(reader, stream),
            Open::Dial { .. } => self.agent(reader, stream),
            Open::Console => {
                let mut byte = [0; 1];
                while reader.read(&mut byte).unwrap_or(0) > 0 {
                    stream.write_all(&byte.map(|b| b.to_ascii_uppercase())).unwrap();
                }
            }
        }
    }

    fn control(&self, reader: BufReader<UnixStream>, mut stream: UnixStream) {
        say(&mut stream, &FromVmm::State(self.state.lock().unwrap().clone()));
        *self.control.lock().unwrap() = Some(stream);
        if self.has("crash") {
            eprintln!("about to abort");
            std::process::abort();
        }
        if self.has("off") {
            self.end(EndKind::PoweredOff, "the guest powered off");
        }
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

    fn freeze(&self, stream: &mut UnixStream) {
        if std::mem::replace(&mut *self.frozen.lock().unwrap(), true) {
            return say(stream, &Opened::Error("freeze the VM: it was frozen before".into()));
        }
        let memfd = || {
            File::from(memfd_create("generation", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap())
        };
        let (mut state, mut memory) = (memfd(), memfd());
        write!(state, "state {}", self.words).unwrap();
        writeln!(memory, "of {}", self.config.name).unwrap();
        ftruncate(&memory, u64::from(self.config.memory_mib) << 20).unwrap();
        fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
        let descriptors = [state.as_fd(), memory.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&descriptors));
        let line = b"\"ok\"\n";
        assert_eq!(sendmsg(stream, &[IoSlice::new(line)], &mut rights, SendFlags::empty()), Ok(line.len()));
    }

    fn members(&self) -> String {
        let (sender, receiver) = mpsc::channel();
        self.waiting.lock().unwrap().insert(1, sender);
        let request = FromVmm::GuestRequest { id: 1, verb: "list".into(), args: serde_json::Value::Null };
        say(self.control.lock().unwrap().as_mut().unwrap(), &request);
        serde_json::to_string(&receiver.recv_timeout(Duration::from_secs(10)).unwrap()).unwrap()
    }

    fn agent(&self, mut reader: BufReader<UnixStream>, mut stream: UnixStream) {
        let (kind, start) = frame(&mut reader).unwrap();
        assert_eq!(kind, FrameType::Start);
        let start: Start = serde_json::from_slice(&start).unwrap();
        let words: Vec<&str> = start.argv.iter().map(String::as_str).collect();
        let mut exit = Exit { code: Some(0), ..Exit::default() };
        match words.as_slice() {
            ["echo", words @ ..] => put(&mut stream, FrameType::Stdout, words.join(" ").as_bytes()),
            ["members"] => put(&mut stream, FrameType::Stdout, self.members().as_bytes()),
            ["fail", code] => exit.code = Some(code.parse().unwrap()),
            ["cat"] => {
                while let Some((FrameType::Stdin, bytes)) = frame(&mut reader).filter(|f| !f.1.is_empty()) {
                    put(&mut stream, FrameType::Stdout, &bytes);
                }
            }
            ["hang"] => {
                put(&mut stream, FrameType::Stdout, b"hanging");
                while frame(&mut reader).is_some() {}
                eprintln!("session closed");
                return;
            }
            _ => exit = Exit { error: Some("not found".into()), ..Exit::default() },
        }
        put(&mut stream, FrameType::Exit, &serde_json::to_vec(&exit).unwrap());
    }
}

fn say<T: serde::Serialize>(stream: &mut UnixStream, line: &T) {
    let mut bytes = serde_json::to_vec(line).unwrap();
    bytes.push(b'\n');
    stream.write_all(&bytes).unwrap();
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
