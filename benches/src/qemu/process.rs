//! One QEMU process: its serial port and its monitor (QMP: JSON lines) are sockets that it
//! inherits.

use super::{PROGRAM, QemuError, system};
use patina_tests::interrupt;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, FdFlags, fcntl_setfd},
};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How long QEMU, or the guest in it, may be silent.
const PATIENCE: Duration = Duration::from_secs(60);
/// As Patina's guests have it, but for what says where the disk is, and a shell in the place of
/// init.
const CMDLINE: &str = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 nomodule 8250.nr_uarts=1 i8042.noaux \
    i8042.nomux i8042.dumbkbd random.trust_cpu=on tsc=reliable no_timer_check root=/dev/vda ro percpu_alloc=page \
    rodata=off init=/bin/sh virtio_mmio.device=512@0xfeb00000:5";
/// QEMU's machine without what the kernel has no drivers for.
const MACHINE: &str =
    "microvm,x-option-roms=off,pit=on,pic=on,rtc=on,isa-serial=on,acpi=off,auto-kernel-cmdline=off";

/// What all QEMUs of a comparison have in common.
#[derive(Debug)]
pub struct Machine {
    pub kernel: PathBuf,
    pub rootfs: PathBuf,
    /// RAM, where it is a file of its own.
    pub ram: Option<PathBuf>,
    pub log: PathBuf,
    /// Whether KVM is software.
    pub software: bool,
}

/// What becomes of the guest's writes to RAM that is a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// They go into the file.
    Own,
    /// They are private.
    Copied,
}

/// A running QEMU; killed when dropped.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
    events: VecDeque<Value>,
    serial: UnixStream,
    /// What the guest has printed and nobody has waited for.
    printed: Vec<u8>,
    state_fd: Option<OwnedFd>,
    log: PathBuf,
}

impl Qemu {
    /// Starts the guest from its kernel's first instruction.
    pub fn boot(machine: &Machine) -> Result<Self, QemuError> {
        let accelerator = if machine.software { "tcg" } else { "kvm" };
        Self::start(machine, accelerator, Memory::Own, &[], None)
    }

    /// Starts a QEMU that waits to be told where the guest comes from.
    pub fn resume(machine: &Machine, memory: Memory, state: OwnedFd) -> Result<Self, QemuError> {
        Self::start(machine, "kvm", memory, &["-incoming", "defer"], Some(state))
    }

    fn start(
        machine: &Machine,
        accelerator: &str,
        memory: Memory,
        more: &[&str],
        state_fd: Option<OwnedFd>,
    ) -> Result<Self, QemuError> {
        let pair = || UnixStream::pair().map_err(system("make a socket pair"));
        let ((monitor, its_monitor), (serial, its_serial)) = (pair()?, pair()?);
        for socket in [&monitor, &serial] {
            socket.set_read_timeout(Some(PATIENCE)).map_err(system("set a socket's time-out"))?;
        }
        let log = fs::File::options().create(true).append(true).open(&machine.log);
        let mut command = machine.command(accelerator, memory);
        for (name, socket) in [("monitor", &its_monitor), ("serial", &its_serial)] {
            inherit(socket)?;
            command.args(["-chardev", &format!("socket,id={name},fd={}", socket.as_raw_fd())]);
        }
        command.args(["-mon", "chardev=monitor,mode=control", "-serial", "chardev:serial"]).args(more);
        if let Some(state) = &state_fd {
            inherit(state)?;
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.map_err(system("open QEMU's log"))?);
        let child =
            command.spawn().map_err(system("start qemu-system-x86_64 (Debian's package qemu-system-x86)"))?;
        let monitor = BufReader::new(monitor);
        let log = machine.log.clone();
        let mut qemu =
            Self { child, monitor, events: VecDeque::new(), serial, printed: Vec::new(), state_fd, log };
        // Ours would keep QEMU's end from being seen.
        drop((its_monitor, its_serial));
        qemu.line("its greeting")?;
        qemu.call("qmp_capabilities", json!({}))?;
        Ok(qemu)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The number of the descriptor that QEMU has inherited; -1: none.
    pub fn state_fd(&self) -> RawFd {
        self.state_fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Sends a command to the monitor: its answer.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value, QemuError> {
        // In one piece: QEMU acts on the last brace, and after `quit` takes no more.
        let line = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        if let Err(error) = self.monitor.get_mut().write_all(line.as_bytes()) {
            return Err(self.refused(command, &error.to_string()));
        }
        loop {
            let mut answer = self.line(command)?;
            if answer.get("event").is_some() {
                self.events.push_back(answer);
            } else if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            } else {
                return Err(self.refused(command, &answer.to_string()));
            }
        }
    }

    /// The next event of a name, which may have happened already.
    pub fn event(&mut self, name: &str) -> Result<Value, QemuError> {
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(at).unwrap_or_default());
            }
            let event = self.line(name)?;
            self.events.push_back(event);
        }
    }

    fn line(&mut self, what: &str) -> Result<Value, QemuError> {
        let mut line = String::new();
        if self.monitor.buffer().is_empty() {
            wait_for(self.monitor.get_ref())?;
        }
        let read = self.monitor.read_line(&mut line);
        let said = read.map_or_else(|error| error.to_string(), |_| line);
        serde_json::from_str(&said).map_err(|_| self.refused(what, &said))
    }

    /// Types into the guest.
    pub fn say(&mut self, text: &str) -> Result<(), QemuError> {
        self.serial.write_all(text.as_bytes()).map_err(system("write to the guest's serial port"))
    }

    /// Types into the guest and waits until it has printed `expected`.
    pub fn answer(&mut self, text: &str, expected: &str) -> Result<(), QemuError> {
        self.say(text)?;
        let mut buffer = [0; 4096];
        loop {
            let found = self.printed.windows(expected.len()).position(|window| window == expected.as_bytes());
            if let Some(at) = found {
                self.printed.drain(..at + expected.len());
                return Ok(());
            }
            wait_for(&self.serial)?;
            let count = self.serial.read(&mut buffer).map_err(system("wait for the guest's serial port"))?;
            if count == 0 {
                let printed = String::from_utf8_lossy(&self.printed).into_owned();
                return Err(self.refused(&format!("wait for {expected:?}"), &printed));
            }
            self.printed.extend_from_slice(&buffer[..count]);
        }
    }

    /// Ends it and waits for its end.
    pub fn quit(mut self) -> Result<(), QemuError> {
        self.call("quit", json!({}))?;
        self.child.wait().map(drop).map_err(system("wait for QEMU"))
    }

    /// An error with QEMU's own log.
    pub fn refused(&self, what: &str, said: &str) -> QemuError {
        let log = fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string());
        QemuError::Refused { what: what.to_owned(), said: said.trim().to_owned(), log: log.trim().to_owned() }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            patina_daemon::say!("kill QEMU {}: {error}", self.child.id());
        }
    }
}

impl Machine {
    fn command(&self, accelerator: &str, memory: Memory) -> Command {
        // On software KVM those two are missing, and what a guest would do with them cannot run.
        let cpu = if self.software { "qemu64,-pni,-cx16" } else { "host" };
        let mut command = Command::new(PROGRAM);
        command.args(["-accel", accelerator, "-M", MACHINE, "-cpu", cpu, "-m", "256", "-smp", "1"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&self.kernel).args(["-append", CMDLINE]);
        let disk = format!("id=root,file={},format=raw,readonly=on,if=none", self.rootfs.display());
        command.args(["-drive", &disk, "-device", "virtio-blk-device,drive=root,bus=virtio-mmio-bus.0"]);
        if let Some(ram) = &self.ram {
            let share = if memory == Memory::Own { "on" } else { "off" };
            let object =
                format!("memory-backend-file,id=ram,size=256M,mem-path={},share={share}", ram.display());
            command.args(["-object", &object, "-machine", "memory-backend=ram"]);
        }
        command
    }
}

/// Waits until there is something to read, the time is up, or a signal asks us to end.
fn wait_for(socket: &UnixStream) -> Result<(), QemuError> {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let woken = interrupt::woken();
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    fds.extend(woken.as_ref().map(|woken| PollFd::new(woken, PollFlags::IN)));
    match poll(&mut fds, Some(&patience)) {
        // A signal's own interruption: what it asks for is looked at below.
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(system("wait for QEMU")(errno.into())),
    }
    if interrupt::requested() { Err(QemuError::Interrupted) } else { Ok(()) }
}

/// Lets the next program that is started have a descriptor.
fn inherit(fd: &impl AsFd) -> Result<(), QemuError> {
    fcntl_setfd(fd, FdFlags::empty()).map_err(|errno| system("let QEMU inherit a descriptor")(errno.into()))
}
