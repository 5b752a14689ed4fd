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
//!   generation, aborts over it, or is killed by its system call filter. `spare-dies`: a spare
//!   aborts over it.
//! - `reads-first`: it reads its RAM before it says that it has started, even if that is to arrive.
//!
//! `hold-freeze=PATH`, `hold-attach=PATH`, `hold-start=PATH` and `hold-hello=PATH`: before it
//! answers that it is frozen, or asks the pager to serve it, or answers that it has started, or
//! says the first line of a control connection, it leaves the file `PATH.VMID` and goes on when
//! nobody has PATH locked. One that is warm does so before its first line with the file `hold-warm`
//! beside the state folder, if there is one: it has no words yet.
//!
//! - `other-kvm`: its state needs another kind of KVM than there is; `other-release`: its state is
//!   of another format; `other-section`: it has a section of another version; `damaged-section`: it
//!   has one whose checksum is wrong.
//!
//! `ram=RUNS`: its generation has so many runs of 64 KiB that are not zero; without it, one.
//!
//! A generation whose layers are still being filled is served by the pager, as for a real vmm: what
//! it reads of its RAM, it waits for.
//!
//! As an agent it runs `echo ARGS`, `cat`, `fail CODE`, `ask VERB JSON` (a guest's call),
//! `drop VERB JSON PATH` (one that the guest does not wait for once there is a file PATH),
//! `read RUN` (the first line of that run of its RAM's last file; nobody reaches it meanwhile),
//! `hang-up` (until the control connection is another one) and `hang`; all else is not found.
#![allow(clippy::unwrap_used, reason = "a test's helper: a failure is a failed test")]

mod agent;
mod ram;
mod state;
mod sys;
#[path = "../../tests/pager/sys.rs"]
mod view;
mod wire;

use patina_abi::link::{Answer, CallError, Identity};
use patina_control::{
    VERSION,
    config::{HostCheck, KVM_KIND_VARIABLE, Member, Start as Origin, VmConfig},
    end::{End, EndKind},
    messages::{FromVmm, Frozen, Open, Opened, Prepare, State, ToVmm},
    pager::RUN_BYTES,
};
use patina_snapshot::layout;
use ram::Ram;
use rustix::fs::{FlockOperation, MemfdFlags, SealFlags, fcntl_add_seals, flock, ftruncate, memfd_create};
use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader, Read, Seek, Write},
    os::{
        fd::{OwnedFd, RawFd},
        unix::{
            fs::FileExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
};
use sys::{do_what_is_forbidden, taken};
use vmmd::process::spawn::DIR_VARIABLE;
use wire::{receive, say, send, try_say};

const FROZEN: Frozen =
    Frozen { pause_us: 250, copied_pages: 3, copied_beside_pages: 5, agent_abi: 4, number: FREE_IN };
/// [`Frozen::number`] of every generation.
const FREE_IN: u64 = 7;

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
    /// Of one that has started from a generation.
    ram: OnceLock<Ram>,
    /// Its only vCPU: while that reads RAM, nobody reaches the agent.
    vcpu: Mutex<()>,
    /// Of a spare that has started: who its VM is.
    member: OnceLock<Member>,
}

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("--check-host") => {
            let kind = std::env::var(KVM_KIND_VARIABLE).ok();
            let kind = kind.map(|kind| serde_json::from_value(kind.into()).unwrap());
            let facts = Some(layout::to_bytes(&state::facts(kind)));
            let check = HostCheck { pagemap_fault: None, facts };
            return std::io::stdout().write_all(&serde_json::to_vec(&check).unwrap()).unwrap();
        }
        option => assert_eq!(option, Some("--config-fd")),
    }
    let fd: RawFd = args.next().unwrap().parse().unwrap();
    let mut file: File = taken(fd);
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let config: VmConfig = serde_json::from_str(&text).unwrap();
    let (listener, mut console): (UnixListener, File) = (taken(config.control_fd), taken(config.console_fd));
    writeln!(console, "stand-in console of {}", config.name).unwrap();
    patina_daemon::say!("begun at nice {}", rustix::process::getpriority_process(None).unwrap());
    patina_daemon::say!("stand-in of {}", config.name);
    let (words, state) = match &config.start {
        Origin::Boot { cmdline, .. } => (cmdline.clone(), State::Booting),
        Origin::Warm => (hold_warm(), State::Warm),
    };
    let vm = Arc::new(Vm {
        state: Mutex::new(state.clone()),
        control: Mutex::new(None),
        waiting: Mutex::new(HashMap::new()),
        controls: AtomicU32::new(0),
        console: Mutex::new(console),
        words: Mutex::new(words),
        ram: OnceLock::new(),
        vcpu: Mutex::default(),
        member: OnceLock::new(),
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

/// The words of a warm one: to hold, if any.
fn hold_warm() -> String {
    let folder = PathBuf::from(std::env::var_os(DIR_VARIABLE).unwrap());
    let path = folder.ancestors().nth(3).unwrap().join("hold-warm");
    if path.exists() { format!("hold-hello={}", path.display()) } else { String::new() }
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

    fn identity(&self) -> &Identity {
        let told = self.member.get().map(|member| &member.identity);
        told.or(self.config.identity.as_ref()).expect("a spare has no guest")
    }

    fn vmid(&self) -> u32 {
        self.identity().vmid
    }

    fn name(&self) -> &str {
        &self.identity().hostname
    }

    fn hold(&self, word: &str) {
        let words = self.words.lock().unwrap().clone();
        let Some(path) = words.split(' ').find_map(|w| w.strip_prefix(word)?.strip_prefix('=')) else {
            return;
        };
        let vmid = self.config.identity.as_ref().map_or(0, |_| self.vmid());
        File::create(format!("{path}.{vmid}")).unwrap();
        flock(File::open(path).unwrap(), FlockOperation::LockShared).unwrap();
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap() = state;
    }

    fn end(&self, kind: EndKind, reason: &str) -> ! {
        let end = End { kind, reason: reason.to_owned() };
        let mut file: File = taken(self.config.end_fd);
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
            Open::Freeze { prepare: Some(Prepare::Ask { agent_abi_min, .. }) }
                if (1..agent_abi_min).contains(&self.agent_abi()) =>
            {
                say(&mut stream, &Opened::OldAgent { abi: self.agent_abi() });
            }
            Open::Freeze { prepare } => {
                self.freeze(&mut stream, matches!(prepare, Some(Prepare::Ask { .. })))
            }
            Open::Start { ticket, filling, member } => {
                assert_eq!(self.config.identity.is_none(), member.is_some(), "who it is is said once");
                if let Some(member) = member {
                    self.member.set(*member).unwrap();
                    let mut console = self.console.lock().unwrap();
                    writeln!(console, "a spare becomes {}", self.name()).unwrap();
                }
                self.start(&mut stream, (&ticket, &filling), descriptors);
            }
            Open::PrefaultList => {
                let list = [0, 4096, self.vmid().into()].map(u64::to_le_bytes).concat();
                send(&stream, &Opened::Ok, &[memfd("list", &list, 0).into()]);
            }
            // Of the run of data of each layer, the second page and what follows it.
            Open::FreePages { frozen } if frozen == FREE_IN && self.has("free") => {
                let list = [4096u64, 15 * 4096].map(u64::to_le_bytes).concat();
                send(&stream, &Opened::Ok, &[memfd("list", &list, 0).into()]);
            }
            Open::FreePages { .. } => say(&mut stream, &Opened::Error("it is not known".into())),
            Open::Pager => {
                let served = self.ram.get().ok_or_else(|| "it has not started".to_owned());
                let served = served.and_then(|ram| ram.attach(descriptors.into_iter().next().unwrap()));
                // Whoever sent it may be gone.
                try_say(&mut stream, &served.map_or_else(Opened::Error, |()| Opened::Ok));
            }
            Open::Control => {
                say(&mut stream, &Opened::Ok);
                self.control(reader, stream);
            }
            Open::Dial { .. } => {
                drop(self.vcpu.lock().unwrap());
                // Who dialed may be gone.
                try_say(&mut stream, &Opened::Ok);
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
        let state = state::write(&self.words.lock().unwrap(), self.config.kvm_kind);
        let state = memfd("generation-state", &state, 0);
        let bytes = u64::from(self.config.memory_mib) << 20;
        // A generation of a clone is made of its own file and of those that it was made from.
        let layers = if self.vmid() == 0 { 1 } else { 2 };
        let line = format!("of {}\n", self.name());
        let mut sent: Vec<OwnedFd> = vec![state.into()];
        let runs = self.number("ram").map_or(1, i32::cast_unsigned);
        sent.extend((0..layers).map(|_| ram_file(&line, runs, bytes).into()));
        send(stream, &Opened::Frozen(Frozen { agent_abi: self.agent_abi(), ..FROZEN }), &sent);
    }

    fn agent_abi(&self) -> u32 {
        self.number("abi").map_or(FROZEN.agent_abi, i32::cast_unsigned)
    }

    fn start(&self, stream: &mut UnixStream, (ticket, filling): (&str, &[u8]), descriptors: Vec<OwnedFd>) {
        assert_eq!(*self.state.lock().unwrap(), State::Warm);
        let mut files: Vec<File> = descriptors.into_iter().map(File::from).collect();
        let pager = (!filling.is_empty()).then(|| files.pop().unwrap());
        let layers = files.split_off(2);
        let (mut prefault_list, mut state) = (files.pop().unwrap(), files.pop().unwrap());
        let mut bytes = Vec::new();
        state.read_to_end(&mut bytes).unwrap();
        *self.words.lock().unwrap() = state::read(&bytes);
        let vmid = Some(self.vmid().cast_signed());
        if self.number("refuse") == vmid {
            return say(stream, &Opened::Error("restore the vCPU: no".into()));
        }
        if self.number("die") == vmid || self.has("spare-dies") && self.member.get().is_some() {
            patina_daemon::say!("cannot restore, giving up");
            std::process::abort();
        }
        if self.number("forbidden") == vmid {
            do_what_is_forbidden();
        }
        let ram = Ram::map(&layers, filling);
        drop((layers, state));
        if let Some(pager) = pager {
            self.hold("hold-attach");
            if let Err(reason) = ram.attach(pager.into()) {
                return say(stream, &Opened::Error(format!("serve memory lazily: {reason}")));
            }
        }
        let ram = self.ram.get_or_init(|| ram);
        self.hold("hold-start");
        let mut list = Vec::new();
        prefault_list.read_to_end(&mut list).unwrap();
        drop(prefault_list);
        let introduce = || {
            let line = first_line(ram);
            let mut console = self.console.lock().unwrap();
            write!(console, "ram: {line}\nprefault_list: {list:?}\nticket: {ticket}\n").unwrap();
        };
        let is_late = !filling.is_empty() && !self.has("reads-first");
        if !is_late {
            introduce();
        }
        let entered_ns = patina_control::monotonic_ns();
        // Whether anybody hears it or not, it runs.
        try_say(stream, &Opened::Started { entered_ns });
        if is_late {
            introduce();
        }
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
}

/// What its RAM begins with. Without it the guest, whose vmm cannot go on, waits to be ended.
fn first_line(ram: &Ram) -> String {
    loop {
        match ram.line(0) {
            Ok(line) => return line,
            Err(error) => {
                patina_daemon::say!("read RAM: {error}");
                thread::park();
            }
        }
    }
}

/// A file of RAM: `runs` of its runs are not zero.
fn ram_file(line: &str, runs: u32, bytes: u64) -> File {
    let file = unsealed("generation-ram", line.as_bytes(), bytes);
    for run in 1..u64::from(runs) {
        file.write_all_at(format!("run {run}\n").as_bytes(), run * RUN_BYTES).unwrap();
    }
    sealed(file)
}

fn memfd(name: &str, content: &[u8], bytes: u64) -> File {
    sealed(unsealed(name, content, bytes))
}

fn unsealed(name: &str, content: &[u8], bytes: u64) -> File {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    file.write_all(content).unwrap();
    if bytes > 0 {
        ftruncate(&file, bytes).unwrap();
    }
    file.rewind().unwrap();
    file
}

fn sealed(file: File) -> File {
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE).unwrap();
    file
}
