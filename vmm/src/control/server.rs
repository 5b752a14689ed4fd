//! The sockets around [`super::session`]: accepts connections on the control socket, keeps the one control
//! connection and the one link, and hands the others to where they belong.

use super::lines::Lines;
use super::mailbox::{Event, Inbox};
use super::session::{Effect, Fresh, Session};
use crate::api::control::{FromVmm, Open, Opened, State};
use crate::api::end::{End, EndKind};
use crate::note::note;
use patina_abi::LINE_MAX_BYTES;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Most connections that have not said yet what they are for; one more is closed at once.
const OPENING_MAX: usize = 16;

/// Where connections go that are not for the control thread itself. Each answers with an [`Opened`] line.
pub trait Doors {
    /// The guest has its identity: its network may be used from now on.
    fn ready(&self);
    /// To a vsock port of the guest.
    fn dial(&self, port: u32, stream: UnixStream);
    /// To the serial console.
    fn console(&self, stream: UnixStream);
}

/// What the control thread can have frozen.
pub trait Freezer {
    /// Freezes the VM and sends the generation with the answer on `stream`. An end: the VM could not go on.
    fn freeze(&mut self, stream: UnixStream) -> Option<End>;
}

/// The control thread.
pub struct Server<D> {
    listener: UnixListener,
    inbox: Inbox,
    doors: D,
    session: Session,
    state: State,
    started: Instant,
    opening: Vec<UnixStream>,
    control: Option<Lines>,
    link: Option<Lines>,
}

/// What [`Server::wait`] found ready.
#[derive(Default)]
struct Ready {
    inbox: bool,
    listener: bool,
    control: bool,
    link: bool,
    opening: Vec<bool>,
}

impl<D: Doors> Server<D> {
    /// Listens on `listener`, for a process that started at `started`.
    ///
    /// # Errors
    /// The listener cannot be made non-blocking.
    pub fn new(
        listener: UnixListener,
        inbox: Inbox,
        doors: D,
        session: Session,
        started: Instant,
    ) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            inbox,
            doors,
            session,
            state: State::Booting,
            started,
            opening: Vec::new(),
            control: None,
            link: None,
        })
    }

    /// Serves until the VM has ended, and tells how it did.
    ///
    /// # Errors
    /// Waiting fails.
    pub fn run(&mut self, machine: &mut impl Freezer) -> std::io::Result<End> {
        loop {
            let ready = self.wait()?;
            // The end last: what was said before it is still passed on.
            let mut end = if ready.control { self.serve_control() } else { None };
            if ready.link {
                end = end.or(self.serve_link());
            }
            end = end.or(self.serve_opening(&ready.opening, machine));
            if ready.listener {
                self.accept();
            }
            if ready.inbox {
                end = end.or(self.serve_inbox());
            }
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    /// Tells `vmmd` of the end, if it listens. The process ends next, so this one write may block, for a second.
    pub fn farewell(mut self, end: &End) {
        self.state = State::Ended(end.clone());
        self.tell_state();
    }

    fn wait(&self) -> std::io::Result<Ready> {
        let interest = |lines: &Lines| {
            PollFlags::IN | if lines.wants_write() { PollFlags::OUT } else { PollFlags::empty() }
        };
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.inbox.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
        ];
        for lines in [&self.control, &self.link].into_iter().flatten() {
            fds.push(PollFd::from_borrowed_fd(lines.fd(), interest(lines)));
        }
        fds.extend(self.opening.iter().map(|stream| PollFd::new(stream, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        }
        let mut found = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || found.next().unwrap_or(false);
        Ok(Ready {
            inbox: next(),
            listener: next(),
            control: self.control.is_some() && next(),
            link: self.link.is_some() && next(),
            opening: self.opening.iter().map(|_| next()).collect(),
        })
    }

    fn accept(&mut self) {
        // An error here is the peer's (it left) or passing (no descriptors): the listener stays readable.
        while let Ok((stream, _)) = self.listener.accept() {
            if self.opening.len() < OPENING_MAX && stream.set_nonblocking(true).is_ok() {
                self.opening.push(stream);
            }
        }
    }

    fn serve_opening(&mut self, ready: &[bool], machine: &mut impl Freezer) -> Option<End> {
        let mut end = None;
        for index in (0..ready.len()).rev().filter(|index| ready[*index]) {
            match read_open(&self.opening[index]) {
                Ok(None) => {}
                Ok(Some(open)) => {
                    let stream = self.opening.swap_remove(index);
                    end = end.or(self.open(open, stream, machine));
                }
                Err(reason) => {
                    answer(&self.opening.swap_remove(index), &Opened::Error(reason));
                }
            }
        }
        end
    }

    fn open(&mut self, open: Open, stream: UnixStream, machine: &mut impl Freezer) -> Option<End> {
        match open {
            Open::Dial { port } => self.doors.dial(port, stream),
            Open::Console => self.doors.console(stream),
            Open::Freeze => return machine.freeze(stream),
            Open::Control if answer(&stream, &Opened::Ok) => {
                // The new vmmd does not know what was asked of the old one.
                self.drop_control();
                self.control = Lines::new(stream).ok();
                self.tell_state();
            }
            Open::Control => {}
        }
        None
    }

    fn serve_control(&mut self) -> Option<End> {
        let received = match self.control.as_mut()?.flush() {
            Ok(()) => self.control.as_mut()?.receive(),
            Err(error) => Err(error),
        };
        let lines = match received {
            Ok(lines) => lines,
            Err(error) => {
                note(&format!("control connection: {}", crate::chain(&error)));
                self.drop_control();
                return None;
            }
        };
        for line in lines {
            match self.session.vmmd_line(&line) {
                Ok(effects) => {
                    if let Some(end) = self.carry_out(effects) {
                        return Some(end);
                    }
                }
                Err(error) => note(&format!("control connection: line not understood: {error}")),
            }
        }
        None
    }

    fn drop_control(&mut self) {
        if self.control.take().is_some() {
            let effects = self.session.vmmd_lost();
            self.carry_out(effects);
        }
    }

    fn serve_link(&mut self) -> Option<End> {
        let received = match self.link.as_mut()?.flush() {
            Ok(()) => self.link.as_mut()?.receive(),
            Err(error) => Err(error),
        };
        let lines = match received {
            Ok(lines) => lines,
            Err(error) => {
                note(&format!("agent link: {}", crate::chain(&error)));
                self.link = None;
                return None;
            }
        };
        for line in lines {
            let effects = self.session.agent_line(&line, self.control.is_some(), fresh);
            if let Some(end) = self.carry_out(effects) {
                return Some(end);
            }
        }
        None
    }

    fn serve_inbox(&mut self) -> Option<End> {
        let mut end = None;
        for event in self.inbox.take() {
            match event {
                Event::End(how) => end = end.or(Some(how)),
                Event::Link(stream) => {
                    self.session.link_opened();
                    self.link = Lines::new(stream).ok();
                }
            }
        }
        end
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Option<End> {
        for effect in effects {
            match effect {
                Effect::ToAgent(message) => {
                    if let Some(error) = self.link.as_mut().and_then(|link| link.send(&message).err()) {
                        note(&format!("agent link: {}", crate::chain(&error)));
                        self.link = None;
                    }
                }
                Effect::ToVmmd(message) => self.tell(&message),
                Effect::Ready => {
                    self.doors.ready();
                    let after = self.started.elapsed().as_micros();
                    self.state = State::Ready { after_us: u64::try_from(after).unwrap_or(u64::MAX) };
                    self.tell_state();
                }
                Effect::DropLink(reason) => {
                    note(&format!("agent link: {reason}"));
                    self.link = None;
                }
                Effect::Kill(reason) => return Some(End { kind: EndKind::Killed, reason }),
            }
        }
        None
    }

    fn tell_state(&mut self) {
        self.tell(&FromVmm::State(self.state.clone()));
    }

    fn tell(&mut self, message: &FromVmm) {
        if let Some(error) = self.control.as_mut().and_then(|control| control.send(message).err()) {
            note(&format!("control connection: {}", crate::chain(&error)));
            self.control = None;
        }
    }
}

/// Writes the answer to an [`Open`]; false when the peer has gone.
pub fn answer(mut stream: &UnixStream, opened: &Opened) -> bool {
    let mut line = serde_json::to_vec(opened).unwrap_or_default();
    line.push(b'\n');
    // A fresh socket takes a line whole, or its peer is gone.
    stream.write(&line).is_ok_and(|written| written == line.len())
}

/// Takes exactly the first line from the socket, so that what follows stays for whoever gets the connection.
/// `None`: the line is not whole yet.
fn read_open(stream: &UnixStream) -> Result<Option<Open>, String> {
    use rustix::net::{RecvFlags, recv};
    const OPEN_MAX_BYTES: usize = 1024;
    const _: () = assert!(OPEN_MAX_BYTES <= LINE_MAX_BYTES);
    let mut head = [0; OPEN_MAX_BYTES];
    let length = match recv(stream, &mut head[..], RecvFlags::PEEK) {
        Ok((0, _)) => return Err("the connection was closed before it said what it is for".into()),
        Ok((length, _)) => length,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
        Err(error) => return Err(format!("read the first line: {error}")),
    };
    let Some(end) = head[..length].iter().position(|byte| *byte == b'\n') else {
        return if length == OPEN_MAX_BYTES { Err("the first line is too long".into()) } else { Ok(None) };
    };
    let taken = recv(stream, &mut head[..=end], RecvFlags::empty())
        .map_err(|error| format!("read the first line: {error}"))?;
    if taken.0 != end + 1 {
        return Err("read the first line: it was cut short".into());
    }
    serde_json::from_slice(&head[..end])
        .map(Some)
        .map_err(|error| format!("the first line is not understood: {error}"))
}

fn fresh() -> Fresh {
    const SEED_BYTES: usize = 32;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut seed = [0u8; SEED_BYTES];
    // The kernel gives up to 256 bytes whole, once it has started. Less than all is sent as none.
    let given = rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty()).unwrap_or(0);
    let seed = if given == SEED_BYTES {
        seed.iter().map(|byte| format!("{byte:02x}")).collect()
    } else {
        String::new()
    };
    Fresh { clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), seed }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
