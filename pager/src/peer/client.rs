//! The side that needs runs: connections to another host's pager, and the layers that it has.
//!
//! Many requests are on their way at a time. Whoever asks does not wait: the thread that receives
//! an answer carries on with it.

mod watch;

use super::HANDSHAKE_PATIENCE;
use super::compression::decompress;
use super::tls::{self, Receiver, Sender};
use super::wire::{Answer, Kind, Request};
use crate::engine::DEMANDS_MAX;
use crate::source::{Class, Done, PageSource, RunError};
use crate::workers::PATIENCE;
use patina_control::pager::{Credential, Id};
use patina_daemon::lock;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// How long one run is waited for, also over connections that break: less than the engine waits, so
/// that the reason is the one from here.
const ANSWER_PATIENCE: Duration = PATIENCE.saturating_sub(Duration::from_millis(500));
/// Requests on their way for what is fetched ahead: 2 MiB, which covers a link of 10 Gbit/s with a
/// round trip of 1 ms.
const WINDOW: usize = 32;

/// A request without an answer.
struct Pending {
    layer: u32,
    run: u32,
    /// How many bytes the answer has.
    bytes: usize,
    since: Instant,
    done: Done,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Sender>>,
    /// How many connections there have been.
    connections: u64,
    next: u32,
    /// When an answer came last.
    heard: Option<Instant>,
    /// By their numbers, so that they are asked again in order.
    pending: BTreeMap<u32, Pending>,
    is_closed: bool,
}

/// One connection at a time, for one class of requests.
#[derive(Default)]
struct Lane(Mutex<State>);

/// Another host's pager.
pub struct Peer {
    /// Its name.
    pub id: Id,
    demand: Lane,
    ahead: Lane,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Peer({})", self.id)
    }
}

/// A layer that another host's pager has.
#[derive(Debug)]
pub struct Remote {
    /// Who has it.
    pub peer: Arc<Peer>,
    /// The layer's number there.
    pub layer: u32,
}

impl PageSource for Remote {
    fn request(&self, run: usize, bytes: usize, class: Class, done: Done) -> Option<Done> {
        match u32::try_from(run) {
            Ok(run) => self.peer.lane(class).request(self.layer, run, bytes, (class, done)),
            Err(_) => done(Err(RunError::Refused)),
        }
        None
    }

    fn peer(&self) -> Option<&Id> {
        Some(&self.peer.id)
    }

    fn let_go(&self) {
        self.peer.let_go(self.layer);
    }

    fn has_room(&self) -> bool {
        lock(&self.peer.ahead.0).pending.len() < WINDOW
    }
}

impl Peer {
    /// One that is not connected.
    #[must_use]
    pub fn new(id: Id) -> Self {
        Self { id, demand: Lane::default(), ahead: Lane::default() }
    }

    fn lane(&self, class: Class) -> &Lane {
        match class {
            Class::Demand => &self.demand,
            Class::Ahead => &self.ahead,
        }
    }

    /// Uses these connections from now on, one for each class, in place of earlier ones: as soon as
    /// both sides have agreed on keys. What was asked over those is asked again. `lost` is called
    /// when one of them breaks.
    ///
    /// # Errors
    /// The credential is none, or a thread cannot be started.
    pub fn connect(
        self: &Arc<Self>,
        connections: [File; 2],
        credential: &Credential,
        lost: impl Fn(&Self, &io::Error) + Clone + Send + 'static,
    ) -> io::Result<()> {
        let deadline = Instant::now() + HANDSHAKE_PATIENCE;
        for (class, stream) in [Class::Demand, Class::Ahead].into_iter().zip(connections) {
            let (sender, mut receiver) = tls::client(stream, credential)?;
            let (peer, lost) = (Arc::clone(self), lost.clone());
            let thread = thread::Builder::new().name(format!("peer-{class:?}").to_lowercase());
            thread.spawn(move || {
                class.make_thread_as_urgent();
                if let Err(error) = receiver.handshake(deadline) {
                    return lost(&peer, &error);
                }
                let number = peer.lane(class).replace(sender);
                let Err(error) = peer.lane(class).receive(&mut receiver);
                // One that was replaced, or closed, has not broken.
                if peer.lane(class).end(number) {
                    lost(&peer, &error);
                }
            })?;
        }
        Ok(())
    }

    /// Gives up what has been asked for too long. To be called from time to time.
    pub fn give_up_late(&self, now: Instant) {
        for lane in [&self.demand, &self.ahead] {
            lane.give_up(|pending| now.duration_since(pending.since) >= ANSWER_PATIENCE);
        }
    }

    /// Ends its connections. Whoever waits for it gets an error.
    pub fn close(&self) {
        for lane in [&self.demand, &self.ahead] {
            let mut state = lock(&lane.0);
            state.is_closed = true;
            let sender = state.connection.take();
            drop(state);
            if let Some(sender) = sender {
                sender.close();
            }
            lane.give_up(|_| true);
        }
    }
}

impl State {
    fn hang_up(&mut self) {
        if let Some(sender) = self.connection.take() {
            sender.hang_up();
        }
    }
}

impl Lane {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Uses this connection, and asks again for all that has no answer. Its number.
    fn replace(&self, sender: Arc<Sender>) -> u64 {
        let mut state = self.state();
        state.hang_up();
        state.connections += 1;
        let number = state.connections;
        if state.is_closed {
            drop(state);
            sender.close();
            return number;
        }
        state.connection = Some(Arc::clone(&sender));
        let again = |(number, pending): (&u32, &Pending)| Request {
            number: *number,
            layer: pending.layer,
            run: pending.run,
        };
        let requests: Vec<Request> = state.pending.iter().map(again).collect();
        drop(state);
        requests.into_iter().for_each(|request| send_request(&sender, request));
        number
    }

    /// The connection of this number has broken. False: it is not in use any longer.
    fn end(&self, number: u64) -> bool {
        let mut state = self.state();
        let is_used = state.connections == number && state.connection.is_some();
        if is_used {
            state.hang_up();
        }
        is_used
    }

    /// Asks for a run, over as many connections as that takes.
    fn request(&self, layer: u32, run: u32, bytes: usize, (class, done): (Class, Done)) {
        let mut state = self.state();
        let error = match class {
            _ if state.is_closed => Some(RunError::Away),
            Class::Demand if state.pending.len() >= DEMANDS_MAX => Some(RunError::Crowded),
            _ => None,
        };
        if let Some(error) = error {
            drop(state);
            return done(Err(error));
        }
        let number = state.next;
        state.next = number.wrapping_add(1);
        state.pending.insert(number, Pending { layer, run, bytes, since: Instant::now(), done });
        let sender = state.connection.clone();
        // Not under the lock: who receives answers needs it. If the connection is replaced now, the
        // next one gets the request, too, and this one has been hung up.
        drop(state);
        if let Some(sender) = sender {
            send_request(&sender, Request { number, layer, run });
        }
    }

    /// Gives up some of what was asked.
    fn give_up(&self, is_given_up: impl Fn(&Pending) -> bool) {
        let mut state = self.state();
        let is_away = state.connection.is_none();
        let given_up: Vec<_> = state.pending.extract_if(.., |_, pending| is_given_up(pending)).collect();
        drop(state);
        for (_, pending) in given_up {
            (pending.done)(Err(if is_away { RunError::Away } else { RunError::Silent }));
        }
    }

    /// Takes answers until the connection breaks.
    fn receive(&self, input: &mut Receiver) -> io::Result<Infallible> {
        let (mut buffer, mut plain) = (Vec::new(), Vec::new());
        loop {
            let answer = Answer::read(input)?;
            // At most a run: see `Answer::read`.
            buffer.resize(answer.bytes as usize, 0);
            input.read_exact(&mut buffer)?;
            let wanted = {
                let mut state = self.state();
                state.heard = Some(Instant::now());
                state.pending.get(&answer.number).map(|pending| pending.bytes)
            };
            // It may have been given up, or answered over an earlier connection.
            let Some(wanted) = wanted else { continue };
            let run = match answer.kind {
                Kind::Refused => None,
                Kind::Bytes => Some(&buffer),
                Kind::Lz4 => {
                    // No more than the run, whatever the block says.
                    plain.resize(wanted, 0);
                    let length = decompress(&buffer, &mut plain)?;
                    plain.truncate(length);
                    Some(&plain)
                }
            };
            if run.is_some_and(|run| run.len() != wanted) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a run has another length"));
            }
            let Some(pending) = self.state().pending.remove(&answer.number) else { continue };
            (pending.done)(run.map(Vec::as_slice).ok_or(RunError::Refused));
        }
    }
}

fn send_request(sender: &Sender, request: Request) {
    if sender.send(&request.encode()).is_err() {
        // Whoever receives sees that, and tells of it.
        sender.hang_up();
    }
}
