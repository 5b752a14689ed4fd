//! Runs the `vmm` program with a guest of a few instructions.

use libtest_mimic::Failed;
use patina_control::VERSION;
use patina_control::config::{Member, Neighbours, Start, VmConfig};
use patina_control::end::End;
use patina_control::messages::{Frozen, Open, Opened, Prepare};
use patina_control::rights;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};

pub mod code;
pub mod lazy;
pub mod states;
mod sys;

/// Where the guest's code lies, and its kernel begins.
pub const CODE: u64 = 0x10_0000;

/// What this machine lacks to run the tests, if anything.
pub fn missing() -> Option<String> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Some(format!("no usable /dev/kvm: {error}"));
    }
    sys::tap().err().map(|error| format!("no tap: {error}"))
}

/// The `vmm` that is tested: the one that cargo has built, or one elsewhere, on a host where cargo
/// is not.
fn program() -> OsString {
    std::env::var_os("PATINA_TINY_VMM").unwrap_or_else(|| env!("CARGO_BIN_EXE_vmm").into())
}

/// A guest to be run.
pub struct Guest {
    kernel: Vec<u8>,
    warm: bool,
    spare: bool,
    generation: Option<Generation>,
    vcpus: u8,
    version: u32,
    memory_mib: u32,
    hides_auxv: bool,
    log: Option<File>,
    cpu_baseline: Option<Vec<u8>>,
}

/// What became of it.
#[derive(Debug)]
pub struct Outcome {
    pub end: End,
    pub console: String,
    pub exit: Option<i32>,
}

impl Guest {
    /// `code` runs in 64-bit kernel mode, with an empty interrupt table.
    pub fn code(code: &[u8]) -> Self {
        Self::file(&elf(code))
    }

    /// `kernel` is the kernel file.
    pub fn file(kernel: &[u8]) -> Self {
        let kernel = kernel.to_vec();
        Self {
            kernel,
            warm: false,
            spare: false,
            generation: None,
            vcpus: 1,
            version: VERSION,
            memory_mib: 64,
            hides_auxv: false,
            log: None,
            cpu_baseline: None,
        }
    }

    /// Goes on where the VM stood that this generation was made of.
    pub fn generation(generation: &Generation) -> Result<Self, Failed> {
        Ok(Self { generation: Some(generation.open()?), ..Self::warm() })
    }

    /// Waits for a generation.
    pub fn warm() -> Self {
        Self { warm: true, ..Self::file(b"") }
    }

    /// Waits for a generation, and for who it is.
    pub fn spare() -> Self {
        Self { spare: true, ..Self::warm() }
    }

    /// Of a vmmd of this version.
    pub fn version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    pub fn vcpus(self, vcpus: u8) -> Self {
        Self { vcpus, ..self }
    }

    pub fn memory_mib(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// Its vmm runs as on a kernel before Linux 6.4.
    pub fn on_old_kernel(self) -> Self {
        Self { hides_auxv: true, ..self }
    }

    /// Its vmm's log goes there, not to the test's.
    pub fn logging_to(self, log: File) -> Self {
        Self { log: Some(log), ..self }
    }

    /// The same kernel, packed as a bzImage of one setup sector.
    pub fn into_bzimage(self) -> Result<Self, Failed> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&self.kernel)?;
        let payload = encoder.finish()?;
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[15, 2]);
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len())?.to_le_bytes());
        image.extend(payload);
        Ok(Self { kernel: image, ..self })
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Outcome, Failed> {
        self.start()?.wait()
    }

    /// Starts it.
    pub fn start(self) -> Result<Vmm, Failed> {
        let dir = tempfile::tempdir()?;
        let mut kernel = tempfile::tempfile()?;
        kernel.write_all(&self.kernel)?;
        let mut rootfs = tempfile::tempfile()?;
        rootfs.write_all(&[0; 512])?;
        let (console, end) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let control = UnixListener::bind(dir.path().join("vmm.sock"))?;
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
        let tap = sys::tap()?;
        let config = VmConfig {
            version: self.version,
            name: "tiny".into(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kvm_fd: inherit(&kvm)?,
            kvm_kind: None,
            avoid_pagemap_scan: false,
            start: if self.warm {
                Start::Warm
            } else {
                Start::Boot { kernel_fd: inherit(&kernel)?, cmdline: String::new() }
            },
            rootfs_fd: inherit(&rootfs)?,
            tap_fd: inherit(&tap)?,
            console_fd: inherit(&console)?,
            control_fd: inherit(&control)?,
            end_fd: inherit(&end)?,
            identity: (!self.spare).then(identity),
            neighbours: None,
            cpu_baseline: self.cpu_baseline,
        };
        let mut document = tempfile::tempfile()?;
        document.write_all(&serde_json::to_vec(&config)?)?;
        let mut command = Command::new(program());
        command.args(["--config-fd", &inherit(&document)?.to_string()]).stdin(Stdio::null());
        if self.hides_auxv {
            sys::hide_auxv(&mut command)?;
        }
        if let Some(log) = self.log {
            command.stderr(log);
        }
        let child = command.spawn()?;
        let vmm = Vmm { child, dir, console, end };
        if let Some(generation) = &self.generation {
            vmm.give(generation)?;
        }
        Ok(vmm)
    }
}

/// A `vmm` that runs.
pub struct Vmm {
    child: Child,
    dir: tempfile::TempDir,
    console: File,
    end: File,
}

impl Vmm {
    /// A line of /proc/PID/status.
    pub fn status(&self, key: &str) -> Result<String, Failed> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        Ok(line.ok_or("no such line")?.trim().to_owned())
    }

    /// A connection to its control socket that has said `open` and seen the answer.
    pub fn connect(&self, open: &Open) -> Result<BufReader<UnixStream>, Failed> {
        let mut stream = BufReader::new(UnixStream::connect(self.dir.path().join("vmm.sock"))?);
        send(&mut stream, open)?;
        let mut answer = String::new();
        stream.read_line(&mut answer)?;
        match serde_json::from_str(&answer)? {
            Opened::Ok => Ok(stream),
            other => Err(format!("{other:?}").into()),
        }
    }

    /// Freezes it.
    pub fn freeze(&self) -> Result<Generation, Failed> {
        let (opened, mut descriptors) = self.ask(&Open::Freeze { prepare: Some(Prepare::Not) }, &[])?;
        let Opened::Frozen(frozen) = opened else { return Err(format!("{opened:?}").into()) };
        if descriptors.len() < 2 {
            return Err("the answer carries too few descriptors".into());
        }
        let state = descriptors.remove(0);
        Ok(Generation { state, layers: descriptors, prefault_list: tempfile::tempfile()?.into(), frozen })
    }

    /// Starts it, when it is warm.
    pub fn give(&self, generation: &Generation) -> Result<(), Failed> {
        self.give_to(generation, None)
    }

    /// Starts it as this member of its family, when it is a spare.
    pub fn give_to(&self, generation: &Generation, member: Option<Member>) -> Result<(), Failed> {
        let mut descriptors = vec![generation.state.as_fd(), generation.prefault_list.as_fd()];
        descriptors.extend(generation.layers.iter().map(AsFd::as_fd));
        match self.ask(&start_line(member), &descriptors)? {
            (Opened::Started { entered_ns: 1.. }, _) => Ok(()),
            (other, _) => Err(format!("{other:?}").into()),
        }
    }

    /// Starts it, when it is warm, and kills it without waiting for the answer.
    pub fn give_and_kill(mut self, generation: &Generation) -> Result<(), Failed> {
        let mut descriptors = vec![generation.state.as_fd(), generation.prefault_list.as_fd()];
        descriptors.extend(generation.layers.iter().map(AsFd::as_fd));
        let stream = self.say(&start_line(None), &descriptors)?;
        self.child.kill()?;
        let status = self.child.wait()?;
        drop(stream);
        if status.code().is_some() {
            return Err(format!("it ended by itself: {status}").into());
        }
        Ok(())
    }

    fn say(&self, open: &Open, with: &[BorrowedFd<'_>]) -> Result<UnixStream, Failed> {
        let stream = UnixStream::connect(self.dir.path().join("vmm.sock"))?;
        let mut line = serde_json::to_vec(open)?;
        line.push(b'\n');
        rights::send(&stream, &line, with)?;
        Ok(stream)
    }

    /// Says one line with descriptors; the answer, with its descriptors.
    pub fn ask(&self, open: &Open, with: &[BorrowedFd<'_>]) -> Result<(Opened, Vec<OwnedFd>), Failed> {
        answer(&self.say(open, with)?)
    }

    /// Reads a byte of the guest's memory from outside, as a debugger does: it is served, or not,
    /// as for the VM itself.
    pub fn look_at(&self, layer: &str, offset: u64) -> Result<u8, Failed> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        let start = maps.lines().filter(|line| line.contains(layer)).find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (start, _) = words.next()?.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            (number(words.nth(1)?)? == 0).then_some(number(start)?)
        });
        let start = start.ok_or_else(|| format!("no mapping of {layer} among\n{maps}"))?;
        Ok(sys::read_of(self.child.id(), start + offset)?)
    }

    /// Waits until it ends because memory is lost: with SIGBUS, or with its own word.
    pub fn wait_for_loss(mut self) -> Result<(), Failed> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.child.wait()?;
        if status.signal() == Some(libc::SIGBUS) {
            return Ok(());
        }
        let end: End = serde_json::from_str(&text(&mut self.end)?)?;
        if end.reason.contains("cannot reach the guest's RAM") || end.reason.contains("internal error") {
            return Ok(());
        }
        Err(format!("{status}: {end:?}").into())
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<Outcome, Failed> {
        let status = self.child.wait()?;
        Ok(Outcome {
            end: serde_json::from_str(&text(&mut self.end)?)?,
            console: text(&mut self.console)?,
            exit: status.code(),
        })
    }
}

impl Drop for Vmm {
    /// A test that fails leaves nothing running.
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).ok();
    }
}

/// What a freeze gives.
pub struct Generation {
    pub state: OwnedFd,
    pub layers: Vec<OwnedFd>,
    pub prefault_list: OwnedFd,
    pub frozen: Frozen,
}

impl Generation {
    /// The same once more.
    pub fn open(&self) -> Result<Self, Failed> {
        let layers = self.layers.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>()?;
        let (state, prefault_list) = (self.state.try_clone()?, self.prefault_list.try_clone()?);
        Ok(Self { state, layers, prefault_list, frozen: self.frozen })
    }
}

/// A vmm's answer, with its descriptors.
pub fn answer(stream: &UnixStream) -> Result<(Opened, Vec<OwnedFd>), Failed> {
    let mut line = [0; 1024];
    let (length, descriptors) = rights::receive(stream, &mut line)?;
    if length == 0 {
        return Err("the vmm closed the connection before it answered".into());
    }
    match serde_json::from_slice(&line[..length])? {
        Opened::Error(reason) => Err(reason.into()),
        opened => Ok((opened, descriptors)),
    }
}

/// Says one line.
pub fn send(stream: &mut BufReader<UnixStream>, message: &impl serde::Serialize) -> Result<(), Failed> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(stream.get_mut().write_all(&line)?)
}

fn start_line(member: Option<Member>) -> Open {
    Open::Start { ticket: String::new(), filling: Vec::new(), member: member.map(Box::new) }
}

/// Who a VM is that was a spare.
pub fn member() -> Member {
    let neighbours = Neighbours {
        first_ip: Ipv4Addr::new(100, 64, 0, 1),
        first_mac: "02:00:00:00:00:01".into(),
        vms: 4093,
        gateway_mac: "06:00:00:00:00:01".into(),
    };
    Member { identity: identity(), neighbours }
}

fn identity() -> patina_abi::link::Identity {
    patina_abi::link::Identity {
        vmid: 0,
        family: "tiny".into(),
        ip: Ipv4Addr::new(100, 64, 0, 1),
        prefix: 20,
        gateway: Ipv4Addr::new(100, 64, 15, 254),
        mac: "02:00:00:00:00:01".into(),
        hostname: "tiny".into(),
        clock_ns: 0,
        seed: String::new(),
        ticket: String::new(),
    }
}

/// Leaves a descriptor open for the program that is started next.
fn inherit(fd: &impl AsFd) -> Result<RawFd, Failed> {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    Ok(fd.as_fd().as_raw_fd())
}

fn text(file: &mut File) -> Result<String, Failed> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// An ELF kernel of one segment: `code`, loaded and entered at [`CODE`].
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    file.extend(CODE.to_le_bytes());
    file.extend(64u64.to_le_bytes()); // program headers
    file.extend([0; 12]); // no section headers, no flags
    file.extend([64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, read and execute
    for word in [HEADERS, CODE, CODE, code.len() as u64, code.len() as u64, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
