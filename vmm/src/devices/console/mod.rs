//! The serial console (a 16550 at I/O ports 0x3f8-0x3ff, IRQ 4).
//!
//! ```text
//!  vCPU --port write--> pending output --device thread--> log (bounded), attached clients
//!  clients --device thread--> pending input --port read--> vCPU
//! ```
//! Both pending buffers are bounded. For each byte the vCPU only writes to memory, and for the
//! first byte it also sets a timer. A little later the device thread writes many bytes at once to
//! files and sockets. If a guest fills the buffer before that, its vCPU does this work itself.

mod clients;
mod log;
mod output;
pub mod persist;

use super::event_loop::{DeviceLoop, EventHandler, LoopError, Source};
use super::sys;
use clients::Clients;
use log::Log;
use output::Output;
use patina_control::best_effort;
use patina_daemon::lock;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The first of the serial port's I/O ports.
pub const PORT_BASE: u16 = 0x3f8;
/// How many I/O ports it has.
pub const PORT_COUNT: u16 = 8;
/// The serial port's interrupt.
pub const IRQ: u32 = 4;
/// Most clients attached at a time.
pub const CLIENTS_MAX: usize = 8;
/// How much of the last output is kept in memory, bytes.
pub const TAIL_BYTES: usize = 4096;

/// Input that waits for the guest at most, bytes.
const INPUT_MAX_BYTES: usize = 4096;

const TOKEN_WAKE: u32 = 0;
const TOKEN_CLIENTS: u32 = 1;
const TOKEN_OUTPUT: u32 = 2;
/// How long the first byte of output waits for more.
const OUTPUT_DELAY_MS: i64 = 5;

const OUTPUT_TIMER: Itimerspec = Itimerspec {
    it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
    it_value: Timespec { tv_sec: 0, tv_nsec: OUTPUT_DELAY_MS * 1_000_000 },
};

/// Why an operation of the console failed.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The kernel gave no event or epoll descriptor.
    #[error("create the console's events")]
    Create(#[source] io::Error),
    /// The log's size could not be found.
    #[error("find the size of the console log")]
    Log(#[source] io::Error),
    /// There are [`CLIENTS_MAX`] clients already.
    #[error("attach to the console: {CLIENTS_MAX} clients are attached already; detach one first")]
    TooManyClients,
    /// The client's socket could not be watched.
    #[error("attach to the console")]
    Client(#[source] io::Error),
}

/// The serial port with its log and its clients.
pub struct Console {
    serial: Mutex<Serial<Line, NoEvents, Pending>>,
    line: Arc<EventFd>,
    output: Arc<Mutex<Output>>,
    input: Mutex<VecDeque<u8>>,
    /// Held while output is written, to keep it in order. Locked before `output`.
    sinks: Mutex<Sinks>,
    /// There is room for input again.
    wake: EventFd,
    /// Output is waiting.
    timer: Arc<OwnedFd>,
    clients_ready: OwnedFd,
    /// After a restore, makes the device thread interrupt the guest once more, as its first work.
    resends_interrupt: AtomicBool,
}

struct Sinks {
    log: Log,
    clients: Clients,
}

/// The interrupt line of the port.
struct Line {
    event: Arc<EventFd>,
    /// Stays silent; see [`persist`].
    is_held: AtomicBool,
}

impl Line {
    fn held(event: &Arc<EventFd>) -> Self {
        Self { event: Arc::clone(event), is_held: AtomicBool::new(true) }
    }

    fn release(&self) {
        self.is_held.store(false, Ordering::SeqCst);
    }
}

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        if !self.is_held.load(Ordering::SeqCst) {
            best_effort(
                self.event.write(1),
                "the only error is a full counter: then an edge is pending already",
            );
        }
        Ok(())
    }
}

/// Where the port puts the guest's bytes.
struct Pending {
    output: Arc<Mutex<Output>>,
    timer: Arc<OwnedFd>,
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if lock(&self.output).push(bytes) {
            best_effort(
                timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &OUTPUT_TIMER),
                "it is our own descriptor and a valid time; and a full buffer goes out without the timer",
            );
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Console {
    /// A console that logs to `log`, which is kept to at most `log_max_bytes`.
    pub fn new(log: File, log_max_bytes: u64) -> Result<Self, ConsoleError> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ConsoleError::Create);
        let line = Arc::new(event()?);
        let trigger = Line::held(&line);
        trigger.release();
        let output = Arc::new(Mutex::new(Output::default()));
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|error| ConsoleError::Create(error.into()))?;
        let timer = Arc::new(timer);
        let clients = Clients::new().map_err(ConsoleError::Create)?;
        let pending = Pending { output: Arc::clone(&output), timer: Arc::clone(&timer) };
        Ok(Self {
            serial: Mutex::new(Serial::new(trigger, pending)),
            line,
            output,
            input: Mutex::default(),
            clients_ready: clients.ready().map_err(ConsoleError::Create)?,
            sinks: Mutex::new(Sinks {
                log: Log::new(log, log_max_bytes).map_err(ConsoleError::Log)?,
                clients,
            }),
            wake: event()?,
            timer,
            resends_interrupt: AtomicBool::new(false),
        })
    }

    /// The interrupt line: register it as the irqfd of [`IRQ`].
    pub fn interrupt_line(&self) -> &EventFd {
        &self.line
    }

    /// Lets the device thread write the log and serve the clients.
    pub fn attach(self: &Arc<Self>, devices: &DeviceLoop) -> Result<(), LoopError> {
        let sources = [
            Source { fd: sys::borrow(&self.wake), token: TOKEN_WAKE, edge: false },
            Source { fd: self.clients_ready.as_fd(), token: TOKEN_CLIENTS, edge: false },
            Source { fd: self.timer.as_fd(), token: TOKEN_OUTPUT, edge: false },
        ];
        devices.add(Arc::clone(self) as Arc<dyn EventHandler>, &sources)
    }

    /// A vCPU reads a port, counted from [`PORT_BASE`].
    pub fn read(&self, offset: u8) -> u8 {
        let mut serial = lock(&self.serial);
        let value = serial.read(offset);
        self.feed(&mut serial);
        value
    }

    /// A vCPU writes a port, counted from [`PORT_BASE`].
    pub fn write(&self, offset: u8, value: u8) {
        let is_full = {
            let mut serial = lock(&self.serial);
            best_effort(serial.write(offset, value), "neither the line nor the pending output ever fails");
            self.feed(&mut serial);
            lock(&self.output).is_full()
        };
        if is_full {
            self.flush();
        }
    }

    /// Adds a client: it gets what the guest writes from now on, and what it sends is input. One
    /// that reads too slowly loses output.
    pub fn add_client(&self, stream: UnixStream) -> Result<(), ConsoleError> {
        lock(&self.sinks).clients.add(stream)
    }

    /// The last [`TAIL_BYTES`] of output, up to this moment.
    pub fn tail(&self) -> Vec<u8> {
        lock(&self.output).tail()
    }

    /// Writes all pending output to the log and the clients. The device thread does so by itself. A
    /// VM that ends calls this a last time.
    pub fn flush(&self) {
        let mut sinks = lock(&self.sinks);
        let pending = lock(&self.output).take();
        if !pending.is_empty() {
            sinks.log.append(&pending);
            sinks.clients.write(&pending);
        }
        lock(&self.output).give_back(pending);
    }

    /// Moves waiting input into the port as far as it has room.
    fn feed(&self, serial: &mut Serial<Line, NoEvents, Pending>) {
        let mut input = lock(&self.input);
        if input.is_empty() {
            return;
        }
        let was_full = input.len() == INPUT_MAX_BYTES;
        let room = serial.fifo_capacity().min(input.len());
        let bytes: Vec<u8> = input.iter().take(room).copied().collect();
        // The line never fails, and there is room; in loopback mode the port takes nothing.
        let taken = serial.enqueue_raw_bytes(&bytes).unwrap_or(0);
        input.drain(..taken);
        if was_full && taken > 0 {
            best_effort(
                self.wake.write(1),
                "there is room to read from clients again; a full counter means that it will be seen anyway",
            );
        }
    }

    fn read_clients(&self) {
        {
            let mut sinks = lock(&self.sinks);
            let mut input = lock(&self.input);
            sinks.clients.read(&mut input, INPUT_MAX_BYTES);
        }
        self.feed(&mut lock(&self.serial));
    }
}

impl EventHandler for Console {
    fn event(&self, token: u32) {
        if self.resends_interrupt.swap(false, Ordering::SeqCst) {
            best_effort(
                self.line.write(1),
                "the only error is a full counter: then an edge is pending already",
            );
        }
        match token {
            TOKEN_OUTPUT => {
                best_effort(
                    rustix::io::read(&*self.timer, &mut [0; 8]),
                    "nothing to read means that the event was already taken",
                );
                self.flush();
            }
            TOKEN_WAKE => {
                best_effort(self.wake.read(), "nothing to read means that the event was already taken");
                self.read_clients();
            }
            _ => self.read_clients(),
        }
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
