//! The side that needs runs: connections to another host's pager, and the layers that it has.

use super::hang_up;
use super::wire::{Answer, Kind, Request};
use crate::source::{Class, PageSource, RunError};
use crate::workers::PATIENCE;
use patina_control::pager::Id;
use patina_daemon::lock;
use rustix::net::{SendFlags, send};
use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long one run is waited for, also over connections that break: less than the engine waits, so
/// that the reason is the one from here.
const ANSWER_PATIENCE: Duration = PATIENCE.saturating_sub(Duration::from_millis(500));

/// A request that somebody waits for.
#[derive(Debug)]
enum Slot {
    /// Sent: the answer has so many bytes.
    Asked(usize),
    Answered(Vec<u8>),
    Refused,
    /// The connection broke.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Arc<File>>,
    /// How many connections there have been.
    connections: u64,
    next: u32,
    waiting: HashMap<u32, Slot>,
    is_closed: bool,
}

/// One connection at a time, for one class of requests.
#[derive(Debug, Default)]
struct Lane {
    state: Mutex<State>,
    changed: Condvar,
}

/// Another host's pager.
#[derive(Debug)]
pub struct Peer {
    /// Its name.
    pub id: Id,
    lanes: [Lane; 2],
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
    fn read(&self, run: usize, buffer: &mut [u8], class: Class) -> Result<(), RunError> {
        self.peer.lane(class).read(self.layer, run, buffer)
    }
}

impl Peer {
    /// One that is not connected.
    #[must_use]
    pub fn new(id: Id) -> Self {
        Self { id, lanes: Default::default() }
    }

    fn lane(&self, class: Class) -> &Lane {
        match class {
            Class::Demand => &self.lanes[0],
            Class::Ahead => &self.lanes[1],
        }
    }

    /// Uses these connections from now on, one for each class, in place of earlier ones. What was
    /// asked over those is asked again. `lost` is called when one of them breaks.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn connect(
        self: &Arc<Self>,
        connections: [File; 2],
        lost: impl Fn(&Self, &io::Error) + Clone + Send + 'static,
    ) -> io::Result<()> {
        for (class, stream) in [Class::Demand, Class::Ahead].into_iter().zip(connections) {
            let stream = Arc::new(stream);
            let number = self.lane(class).replace(Arc::clone(&stream));
            let (peer, lost) = (Arc::clone(self), lost.clone());
            let receiver = thread::Builder::new().name("peer".into());
            receiver.spawn(move || {
                let Err(error) = peer.lane(class).receive(&stream);
                // One that was replaced, or closed, has not broken.
                if peer.lane(class).end(number) {
                    lost(&peer, &error);
                }
            })?;
        }
        Ok(())
    }

    /// Ends its connections. Whoever waits for it gets an error.
    pub fn close(&self) {
        for lane in &self.lanes {
            let mut state = lock(&lane.state);
            state.is_closed = true;
            drop(lane.disconnect(state));
        }
    }
}

impl Lane {
    /// Uses this connection. Its number.
    fn replace(&self, stream: Arc<File>) -> u64 {
        let mut state = self.disconnect(lock(&self.state));
        if state.is_closed {
            hang_up(&stream);
        } else {
            state.connection = Some(stream);
        }
        state.connections += 1;
        self.changed.notify_all();
        state.connections
    }

    /// Hangs up, and tells those who wait for an answer.
    fn disconnect<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if let Some(stream) = state.connection.take() {
            hang_up(&stream);
        }
        for slot in state.waiting.values_mut().filter(|slot| matches!(slot, Slot::Asked(_))) {
            *slot = Slot::Lost;
        }
        self.changed.notify_all();
        state
    }

    /// The connection of this number has broken. False: it is not in use any longer.
    fn end(&self, number: u64) -> bool {
        let state = lock(&self.state);
        let is_used = state.connections == number && state.connection.is_some();
        if is_used {
            drop(self.disconnect(state));
        }
        is_used
    }

    /// Gets a run, over as many connections as that takes.
    fn read(&self, layer: u32, run: usize, buffer: &mut [u8]) -> Result<(), RunError> {
        let deadline = Instant::now() + ANSWER_PATIENCE;
        let run = u32::try_from(run).map_err(|_| RunError::Refused)?;
        loop {
            let (number, stream) = self.begin(buffer.len(), deadline)?;
            let request = Request { number, layer, run }.encode();
            // So little always has room, unless who answers does not read.
            let sent = send(&*stream, &request, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            if sent != Ok(request.len()) {
                // Whoever receives sees that, and tells of it.
                hang_up(&stream);
            }
            match self.answer(number, deadline) {
                Slot::Answered(bytes) => {
                    buffer.copy_from_slice(&bytes);
                    return Ok(());
                }
                Slot::Refused => return Err(RunError::Refused),
                Slot::Asked(_) => return Err(RunError::Silent),
                Slot::Lost => {}
            }
        }
    }

    /// Waits for a connection, and takes a number for a request on it.
    fn begin(&self, bytes: usize, deadline: Instant) -> Result<(u32, Arc<File>), RunError> {
        let state = lock(&self.state);
        let mut state = self.wait(state, deadline, |state| state.connection.is_none() && !state.is_closed);
        let stream = state.connection.clone().ok_or(RunError::Away)?;
        let number = state.next;
        state.next = number.wrapping_add(1);
        state.waiting.insert(number, Slot::Asked(bytes));
        Ok((number, stream))
    }

    /// Waits for the answer to a request; [`Slot::Asked`]: there is none in time.
    fn answer(&self, number: u32, deadline: Instant) -> Slot {
        let is_asked = |state: &State| matches!(state.waiting.get(&number), Some(Slot::Asked(_)));
        let mut state = self.wait(lock(&self.state), deadline, is_asked);
        state.waiting.remove(&number).unwrap_or(Slot::Lost)
    }

    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        deadline: Instant,
        goes_on: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(state, left, |state| goes_on(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Takes answers until the connection breaks.
    fn receive(&self, stream: &File) -> io::Result<Infallible> {
        let mut input = BufReader::new(stream);
        loop {
            let answer = Answer::read(&mut input)?;
            let slot = match answer.kind {
                Kind::Refused => Slot::Refused,
                Kind::Bytes => {
                    // At most a run: see `Answer::read`.
                    let mut bytes = vec![0; answer.bytes as usize];
                    input.read_exact(&mut bytes)?;
                    Slot::Answered(bytes)
                }
            };
            let mut state = lock(&self.state);
            // Whoever asked may have given up.
            let Some(waiting) = state.waiting.get_mut(&answer.number) else { continue };
            match (&*waiting, &slot) {
                (Slot::Asked(bytes), Slot::Answered(found)) if *bytes != found.len() => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a run has another length"));
                }
                (Slot::Asked(_), _) => *waiting = slot,
                // Answered twice.
                _ => continue,
            }
            drop(state);
            self.changed.notify_all();
        }
    }
}
