//! The sockets of the control thread. Accepts connections on the control socket, keeps the one
//! control connection and the one link, and passes all other connections on. [`super::session`]
//! decides what to send. [`super::orders`] works on the VM, so this thread never waits for it.

mod ready;
mod waiting;

use super::clock::HostClock;
use super::fresh::fresh;
use super::lines::Lines;
use super::mailbox::{Event, Inbox, Origin};
use super::opening::{answer, read_open};
use super::orders::{Order, Orders};
use super::session::{Effect, Session};
use super::vm::Connections;
use crate::note::note;
use patina_abi::link::{CallError, FromHost};
use patina_control::end::{End, EndKind};
use patina_control::messages::{FromVmm, Open, Opened, Prepare, State};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;
use waiting::{Purpose, Waiting};

/// Most connections without a first line yet, with vmmd's spare one. More stay in the backlog.
const OPENING_MAX: usize = 16 + 1;

/// The control thread.
pub struct Server<D> {
    listener: UnixListener,
    clock: HostClock,
    inbox: Inbox,
    connections: D,
    session: Session,
    /// A vmmd that is older than versions takes the line for a fault, and does so again on each new
    /// connection.
    says_hello: bool,
    state: State,
    started: Instant,
    opening: Vec<UnixStream>,
    control: Option<Lines>,
    link: Option<Lines>,
    /// The client that waits for a freeze while the agent prepares, and whether the agent holds the
    /// other processes.
    freezing: Option<(UnixStream, bool)>,
    /// The clients of the orders that are being carried out, in order.
    waiting: VecDeque<Waiting>,
    /// Freezes that were requested while the agent waited for the end of another one, with
    /// [`Prepare::Ask::hold`].
    postponed: VecDeque<(UnixStream, bool)>,
    /// A link that opened while the VM started. A clone may run before this thread hears that it
    /// does.
    early_link: Option<(UnixStream, Origin)>,
    /// How many links there have been.
    links: u64,
    /// When the guest last requested a clone, for which its agent had prepared.
    clone_asked: Option<Instant>,
    /// When connections are accepted again, if one could not be.
    rests_until: Option<Instant>,
    /// The monotonic clock.
    now: fn() -> Instant,
    accept: fn(&UnixListener) -> std::io::Result<UnixStream>,
}

impl<D: Connections> Server<D> {
    /// Listens on `listener`, for a process that a vmmd of version `vmmd`
    /// ([`patina_control::config::VmConfig::version`]) started at `started`, with a VM in this
    /// state.
    ///
    /// # Errors
    /// The listener cannot be made non-blocking, or the clock not watched.
    pub fn new(
        listener: UnixListener,
        inbox: Inbox,
        connections: D,
        session: Session,
        vmmd: u32,
        (started, state): (Instant, State),
    ) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            clock: HostClock::watch()?,
            inbox,
            connections,
            session,
            says_hello: vmmd >= 1,
            state,
            started,
            opening: Vec::new(),
            control: None,
            link: None,
            freezing: None,
            waiting: VecDeque::new(),
            postponed: VecDeque::new(),
            early_link: None,
            links: 0,
            clone_asked: None,
            rests_until: None,
            now: Instant::now,
            accept: |listener| listener.accept().map(|(stream, _)| stream),
        })
    }

    /// Serves until the VM has ended. Returns how it ended.
    ///
    /// # Errors
    /// The wait for events fails.
    pub fn run(&mut self, orders: &Orders) -> std::io::Result<End> {
        loop {
            let ready = self.wait()?;
            // The end comes last, so that earlier messages are still passed on.
            let mut end = if ready.control { self.serve_control(orders) } else { None };
            // Before the link, so that the VM is not paused for a client that has gone.
            if ready.freezing {
                self.freezing = None;
                self.session.freeze_unwanted();
            }
            if ready.link {
                end = end.or(self.serve_link(orders));
            }
            end = end.or(self.serve_opening(&ready.opening, orders));
            if ready.listener {
                self.accept();
            }
            if ready.clock && self.clock.was_set() {
                let told = self.session.clock_was_set(fresh);
                end = end.or(self.carry_out(told.into_iter().collect(), orders));
            }
            if ready.inbox {
                end = end.or(self.serve_inbox(orders));
            }
            if let Some(end) = end {
                self.refuse_waiting(&end);
                return Ok(end);
            }
        }
    }

    /// The VM's name, as its guest has it. Empty: a spare vmm, whose VM has none yet.
    #[must_use]
    pub fn hostname(&self) -> &str {
        self.session.hostname()
    }

    /// Tells `vmmd` of the end, if it is connected.
    pub fn farewell(mut self, end: &End) {
        self.state = State::Ended(end.clone());
        self.tell_state();
    }

    fn serve_opening(&mut self, ready: &[bool], orders: &Orders) -> Option<End> {
        let mut end = None;
        for index in (0..ready.len()).rev().filter(|index| ready[*index]) {
            match read_open(&self.opening[index]) {
                Ok(None) => {}
                Ok(Some((open, descriptors))) => {
                    let stream = self.opening.swap_remove(index);
                    end = end.or(self.open(open, descriptors, stream, orders));
                }
                Err(reason) => {
                    answer(&self.opening.swap_remove(index), &Opened::Error(reason));
                }
            }
        }
        end
    }

    fn open(
        &mut self,
        open: Open,
        descriptors: Vec<OwnedFd>,
        stream: UnixStream,
        orders: &Orders,
    ) -> Option<End> {
        match open {
            Open::Dial { port } => self.connections.dial(port, stream),
            // The client must see the answer before the console's bytes.
            Open::Console if answer(&stream, &Opened::Ok) => self.connections.console(stream),
            Open::Console => {}
            // The guest requested the clone. Its agent usually holds the other processes.
            Open::Freeze { prepare: None } => self.freeze(stream, (true, self.clone_asked), orders),
            Open::Freeze { prepare: Some(Prepare::Ask { hold, agent_abi_min }) } => {
                match self.session.agent_abi() {
                    // Without an agent, its answer is what is missing.
                    abi if (1..agent_abi_min).contains(&abi) => {
                        answer(&stream, &Opened::OldAgent { abi });
                    }
                    _ => return self.prepare(hold, stream, orders),
                }
            }
            Open::Freeze { prepare: Some(Prepare::Not) } => {
                let order = Order::Freeze { is_held: false, until: None };
                self.order(order, Waiting { stream, purpose: Purpose::Freeze }, orders);
            }
            Open::Start { ticket, filling, member } => {
                let identity = member.as_ref().map(|member| member.identity.clone());
                let purpose = Purpose::Start { ticket, identity, started: Instant::now() };
                let order = Order::Start { descriptors, filling, member };
                self.order(order, Waiting { stream, purpose }, orders);
            }
            Open::Pager => self.attach(descriptors, stream),
            Open::PrefaultList => {
                self.order(Order::PrefaultList, Waiting { stream, purpose: Purpose::PrefaultList }, orders);
            }
            Open::FreePages { frozen } => {
                let order = Order::FreePages { frozen, note: self.session.vmcoreinfo() };
                self.order(order, Waiting { stream, purpose: Purpose::FreePages }, orders);
            }
            Open::Control if answer(&stream, &Opened::Ok) => {
                // The new vmmd does not know the requests that the old one received.
                self.drop_control(orders);
                self.control = Lines::noted(stream, "control connection");
                if self.says_hello {
                    self.tell(&FromVmm::Hello { version: patina_control::VERSION });
                }
                self.tell_state();
            }
            Open::Control => {}
        }
        None
    }

    /// Asks the agent to prepare. [`Self::serve_link`] receives the answer.
    fn prepare(&mut self, hold: bool, stream: UnixStream, orders: &Orders) -> Option<End> {
        if self.is_agent_held() {
            // The agent hears first that the VM goes on.
            self.postpone(hold, stream);
            return None;
        }
        match self.session.prepare(hold) {
            Ok(ask) => {
                self.freezing = Some((stream, hold));
                self.carry_out(vec![ask], orders)
            }
            Err(error) => {
                answer(&stream, &Opened::NotPrepared(error.into()));
                None
            }
        }
    }

    fn refuse_freeze(&mut self, reason: CallError) {
        if let Some((stream, _)) = self.freezing.take() {
            answer(&stream, &Opened::NotPrepared(reason));
        }
    }

    fn serve_control(&mut self, orders: &Orders) -> Option<End> {
        let received = match self.control.as_mut()?.flush() {
            Ok(()) => self.control.as_mut()?.receive(),
            Err(error) => Err(error),
        };
        let lines = match received {
            Ok(lines) => lines,
            Err(error) => {
                note(&format!("control connection: {}", patina_daemon::chain(&error)));
                self.drop_control(orders);
                return None;
            }
        };
        for line in lines {
            match self.session.vmmd_line(&line) {
                Ok(effects) => {
                    if let Some(end) = self.carry_out(effects, orders) {
                        return Some(end);
                    }
                }
                Err(error) => note(&format!("control connection: invalid line: {error}")),
            }
        }
        None
    }

    fn drop_control(&mut self, orders: &Orders) {
        if self.control.take().is_some() {
            let effects = self.session.vmmd_lost();
            self.carry_out(effects, orders);
        }
    }

    fn serve_link(&mut self, orders: &Orders) -> Option<End> {
        let received = match self.link.as_mut()?.flush() {
            Ok(()) => self.link.as_mut()?.receive(),
            Err(error) => Err(error),
        };
        let lines = match received {
            Ok(lines) => lines,
            Err(error) => {
                self.lose_link(&patina_daemon::chain(&error));
                return None;
            }
        };
        for line in lines {
            if self.link.is_none() {
                break;
            }
            let effects = self.session.agent_line(&line, self.control.is_some(), fresh);
            if let Some(end) = self.carry_out(effects, orders) {
                return Some(end);
            }
        }
        None
    }

    fn serve_inbox(&mut self, orders: &Orders) -> Option<End> {
        let mut end = None;
        for event in self.inbox.take() {
            match event {
                Event::End(how) => end = end.or(Some(how)),
                Event::Done(outcome) => end = end.or(self.done(outcome, orders)),
                // The session does not know yet who the VM is.
                Event::Link { stream, origin } if self.is_starting() => {
                    self.early_link = Some((stream, origin));
                }
                Event::Link { stream, origin } => {
                    end = end.or(self.open_link(stream, origin, orders));
                }
            }
        }
        end
    }

    /// The agent has connected, or the parent's link is carried on: it hears who the VM is.
    fn open_link(&mut self, stream: UnixStream, origin: Origin, orders: &Orders) -> Option<End> {
        self.lose_link("a new link replaces it");
        self.links += 1;
        self.link = Lines::noted(stream, "the agent's link");
        let identity = self.session.link_opened(origin, fresh);
        self.carry_out(identity.into_iter().collect(), orders)
    }

    fn lose_link(&mut self, why: &str) {
        if self.link.take().is_some() {
            note(&format!("agent link: {why}"));
        }
        if let Some(reason) = self.session.link_lost() {
            self.refuse_freeze(reason);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>, orders: &Orders) -> Option<End> {
        for effect in effects {
            match effect {
                Effect::ToAgent(message) => self.say_to_agent(&message),
                Effect::ToVmmd(message) => {
                    if matches!(&message, FromVmm::GuestRequest { verb, .. } if verb == "clone") {
                        self.clone_asked = Some((self.now)());
                    }
                    self.tell(&message);
                }
                Effect::Ready => {
                    self.connections.ready();
                    orders.send(Order::Ready);
                    let after = self.started.elapsed().as_micros();
                    self.state = State::Ready { after_us: u64::try_from(after).unwrap_or(u64::MAX) };
                    self.tell_state();
                }
                Effect::Freeze => {
                    if let Some((stream, is_held)) = self.freezing.take() {
                        self.freeze(stream, (is_held, Some((self.now)())), orders);
                    }
                }
                Effect::RefuseFreeze(reason) => self.refuse_freeze(reason),
                Effect::DropLink(reason) => self.lose_link(&reason),
                Effect::Kill(reason) => return Some(End { kind: EndKind::Killed, reason }),
                Effect::Unfit(reason) => return Some(End { kind: EndKind::VmmError, reason }),
            }
        }
        None
    }

    fn say_to_agent(&mut self, message: &FromHost) {
        if let Some(error) = self.link.as_mut().and_then(|link| link.send(message).err()) {
            self.lose_link(&patina_daemon::chain(&error));
        }
    }

    fn tell_state(&mut self) {
        self.tell(&FromVmm::State(self.state.clone()));
    }

    fn tell(&mut self, message: &FromVmm) {
        if let Some(error) = self.control.as_mut().and_then(|control| control.send(message).err()) {
            note(&format!("control connection: {}", patina_daemon::chain(&error)));
            self.control = None;
        }
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
