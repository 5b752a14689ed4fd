//! The sockets: of `vmmd`, and one of each VM. All of it runs on the main thread, which never waits
//! for a source or for a peer.

mod peers;
mod vms;

use crate::engine::{Engine, EngineError, Happened};
use crate::layer::Parts;
use crate::lines::{Lines, LinesError};
use crate::peer::Remote;
use crate::source::{Digests, Directory, PageSource};
use crossbeam_channel::Receiver;
use patina_control::best_effort;
use patina_control::pager::{
    DemandBitmap, FromPager, FromPeers, Id, LAYER_MAX_BYTES, PeerLayer, RUN_BYTES, ToPager, VERSION,
    read_sealed,
};
use patina_daemon::chain;
use peers::Peers;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vms::Connection;

/// How often the engine's clock is looked at.
const TICK: Duration = Duration::from_millis(200);
/// Most reports that are kept for a `vmmd` that is not there.
const KEPT_MAX: usize = 1024;

const FEW: &str = "fewer descriptors came than the line needs";

const LISTENER: u64 = u64::MAX;
const CONTROL: u64 = u64::MAX - 1;
const BELL: u64 = u64::MAX - 2;

/// See the module.
#[derive(Debug)]
pub struct Server {
    engine: Arc<Engine>,
    inbox: Receiver<Happened>,
    epoll: OwnedFd,
    listener: UnixListener,
    control: Option<Lines>,
    vms: HashMap<u64, Connection>,
    peers: Peers,
    /// What happened while no `vmmd` was there.
    kept: VecDeque<FromPager>,
    /// A connection could not be accepted.
    is_put_off: bool,
}

impl Server {
    /// Serves whoever connects to `listener`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(engine: Arc<Engine>, inbox: Receiver<Happened>, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let server = Self {
            engine,
            inbox,
            epoll,
            listener,
            control: None,
            vms: HashMap::new(),
            peers: Peers::default(),
            kept: VecDeque::new(),
            is_put_off: false,
        };
        server.watch(&server.listener, LISTENER)?;
        server.watch(&server.engine.bell, BELL)?;
        Ok(server)
    }

    fn watch(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN)?)
    }

    /// Serves until the kernel fails.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::with_capacity(64);
        let mut next_tick = Instant::now() + TICK;
        loop {
            let left = next_tick.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in ready.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    CONTROL => self.serve_control(),
                    BELL => self.take_news(),
                    serial => self.serve_vm(serial),
                }
            }
            if Instant::now() >= next_tick {
                // First the peers: they know better why a run does not come.
                self.peers.tick(&self.engine);
                self.engine.tick();
                if self.is_put_off {
                    self.listen(epoll::EventFlags::IN);
                }
                next_tick = Instant::now() + TICK;
            }
        }
    }

    /// A new `vmmd` replaces the old one.
    fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => return self.put_off(&error),
        };
        let lines = Lines::new(stream).and_then(|lines| {
            self.watch(lines.fd(), CONTROL)?;
            Ok(lines)
        });
        let Ok(lines) = lines else { return };
        self.is_put_off = false;
        self.control = Some(lines);
        self.report(FromPager::Hello { version: VERSION }, Vec::new());
        for layer in self.engine.layers() {
            self.report(FromPager::Layer(self.engine.layer_status(&layer)), Vec::new());
        }
        let served: Vec<_> =
            self.vms.iter().filter_map(|(serial, vm)| vm.report(&self.engine, *serial)).collect();
        served.into_iter().for_each(|vm| self.report(vm, Vec::new()));
        let connections: Vec<_> = self.peers.served().cloned().collect();
        for connection in connections {
            self.report(FromPager::Peers(FromPeers::Serving { connection }), Vec::new());
        }
        for kept in std::mem::take(&mut self.kept) {
            self.report(kept, Vec::new());
        }
    }

    /// A connection cannot be accepted. If that is for want of descriptors, for example, it stays
    /// readable: it is not looked at before the next tick.
    fn put_off(&mut self, error: &io::Error) {
        use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
        if matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock) {
            return;
        }
        if !self.is_put_off {
            patina_daemon::say!("pager: accept a connection: {error}; it is tried again");
        }
        self.is_put_off = true;
        self.listen(epoll::EventFlags::empty());
    }

    fn listen(&self, events: epoll::EventFlags) {
        let data = epoll::EventData::new_u64(LISTENER);
        best_effort(
            epoll::modify(&self.epoll, &self.listener, data, events),
            "it was added when the server was made",
        );
    }

    /// Sends a line to `vmmd`. Without one, keeps it.
    fn report(&mut self, message: FromPager, descriptors: Vec<OwnedFd>) {
        let Some(control) = &mut self.control else {
            if self.kept.len() == KEPT_MAX {
                self.kept.pop_front();
            }
            return self.kept.push_back(message);
        };
        let sent = control.send(&message, descriptors);
        self.after_control(sent);
    }

    fn after_control(&mut self, result: Result<(), LinesError>) {
        if let Err(error) = result {
            patina_daemon::say!("pager: vmmd: {}", chain(&error));
            self.control = None;
        } else if let Some(control) = &self.control {
            watch_output(&self.epoll, control, CONTROL);
        }
    }

    fn serve_control(&mut self) {
        let result = self.read_control();
        self.after_control(result);
    }

    fn read_control(&mut self) -> Result<(), LinesError> {
        let Some(control) = &mut self.control else { return Ok(()) };
        control.flush()?;
        if !control.fill()? {
            return Ok(());
        }
        while let Some(line) = self.control.as_mut().map_or(Ok(None), Lines::next_line)? {
            match serde_json::from_slice(&line) {
                Ok(message) => self.follow(message),
                Err(error) => {
                    self.report(FromPager::Error { reason: format!("read a line: {error}") }, Vec::new());
                    return Err(LinesError::Closed);
                }
            }
        }
        Ok(())
    }

    fn follow(&mut self, message: ToPager) {
        let mut descriptors = Vec::new();
        let answer = match message {
            ToPager::AddLayer { layer, bytes, has_demand, fill, source } => {
                let parts = self.take_parts(layer.clone(), bytes, has_demand, fill, source);
                self.add_layer(layer, parts)
            }
            ToPager::AttachVm { vm, layers, age_ms, is_again } => {
                match self.connect_vm(vm.clone(), &layers, (age_ms, is_again)) {
                    Ok(()) => return,
                    Err(reason) => FromPager::Error { reason: format!("attach VM {vm}: {reason}") },
                }
            }
            ToPager::DropVm { vm } => match self.drop_vm(&vm) {
                true => FromPager::VmGone { vm, reason: "vmmd has dropped it".into() },
                false => FromPager::Error { reason: format!("drop VM {vm}: there is none of this name") },
            },
            ToPager::DropLayer { layer } => match self.engine.drop_layer(&layer) {
                Ok(()) => FromPager::LayerDropped { layer },
                Err(error) => FromPager::LayerRefused { layer, reason: chain(&error) },
            },
            ToPager::Demand { layer } => match self.demand_of(&layer) {
                Ok(memfd) => {
                    descriptors.push(memfd.into());
                    FromPager::Demand { layer }
                }
                Err(reason) => {
                    FromPager::Error { reason: format!("tell the demand of layer {layer}: {reason}") }
                }
            },
            ToPager::Memfd { layer } => match self.memfd_of(&layer) {
                Ok(memfd) => {
                    descriptors.push(memfd.into());
                    FromPager::Memfd { layer }
                }
                Err(reason) => FromPager::LayerRefused { layer, reason },
            },
            ToPager::Layer { layer } => match self.engine.layer(&layer) {
                Some(layer) => FromPager::Layer(self.engine.layer_status(&layer)),
                None => FromPager::LayerRefused { layer, reason: EngineError::Unknown.to_string() },
            },
            ToPager::Peers(order) => FromPager::Peers(self.follow_about_peers(order)),
            ToPager::Status => FromPager::Status(self.engine.status()),
        };
        self.report(answer, descriptors);
    }

    fn demand_of(&self, layer: &Id) -> Result<File, String> {
        let layer = self.engine.layer(layer).ok_or_else(|| EngineError::Unknown.to_string())?;
        let memfd = patina_control::memfd::sealed("demand", layer.demand().encode());
        memfd.map_err(|error| format!("make a memfd: {error}"))
    }

    fn memfd_of(&self, layer: &Id) -> Result<File, String> {
        let layer = self.engine.layer(layer).ok_or_else(|| EngineError::Unknown.to_string())?;
        layer.memfd.try_clone().map_err(|error| format!("duplicate its memfd: {error}"))
    }

    fn add_layer(&self, layer: Id, parts: Result<Parts, String>) -> FromPager {
        match parts {
            Ok(parts) => match self.engine.add_layer(parts) {
                Ok(layer) => FromPager::Layer(self.engine.layer_status(&layer)),
                Err(error) => FromPager::LayerRefused { layer, reason: chain(&error) },
            },
            Err(reason) => FromPager::LayerRefused { layer, reason },
        }
    }

    fn take_parts(
        &mut self,
        id: Id,
        bytes: u64,
        has_demand: bool,
        fill: bool,
        source: Option<PeerLayer>,
    ) -> Result<Parts, String> {
        let control = self.control.as_mut().ok_or("vmmd is gone")?;
        let [memfd, digests] = control.take::<2>().ok_or(FEW)?.map(File::from);
        let source: Result<Arc<dyn PageSource>, String> = match source {
            None => {
                let [file] = control.take::<1>().ok_or(FEW)?.map(File::from);
                Ok(Arc::new(Directory::new(file)))
            }
            Some(PeerLayer { peer, number: layer }) => {
                let found = self.peers.find_or_add(&peer);
                found.map(|peer| Arc::new(Remote { peer, layer }) as Arc<dyn PageSource>)
            }
        };
        let demand = if has_demand { Some(control.take::<1>().ok_or(FEW)?.map(File::from)) } else { None };
        // Only now: all that came with the line is taken.
        let source = source?;
        if bytes > LAYER_MAX_BYTES {
            return Err(format!("it has {bytes} bytes; the limit is {LAYER_MAX_BYTES}"));
        }
        let digests = read_sealed(&digests, bytes.div_ceil(RUN_BYTES) * 32)
            .map_err(|error| format!("read the digests: {error}"))
            .and_then(|read| Digests::decode(read, bytes).map_err(|error| error.to_string()))?;
        let demand = match &demand {
            None => None,
            Some([demand]) => Some(
                read_sealed(demand, DemandBitmap::encoded_bytes(bytes))
                    .map_err(|error| format!("read what was demanded: {error}"))
                    .and_then(|read| DemandBitmap::decode(&read, bytes).map_err(|error| error.to_string()))?,
            ),
        };
        Ok(Parts { id, bytes, memfd, digests, source, demand, fill })
    }

    /// Passes on what the engine tells.
    fn take_news(&mut self) {
        let mut count = [0; 8];
        best_effort(rustix::io::read(&self.engine.bell, &mut count), "another read may have emptied it");
        while let Ok(news) = self.inbox.try_recv() {
            match news {
                Happened::VmGone(serial, error) => self.vm_gone(serial, chain(&error)),
                Happened::Complete { vm, layer, is_unregistered } => {
                    self.tell_complete(vm, layer, is_unregistered);
                }
                Happened::Sealed(layer) => self.report(FromPager::LayerComplete { layer }, Vec::new()),
                Happened::RunFailed { layer, run, reason, vms } => {
                    patina_daemon::say!("pager: layer {layer}, run {run}: {reason}");
                    let run = run as u64;
                    self.report(FromPager::RunFailed { layer, run, reason, vms }, Vec::new());
                }
                Happened::PeerLost { peer, reason } => {
                    patina_daemon::say!("pager: the connection to {peer} has broken: {reason}");
                    self.report(FromPager::Peers(FromPeers::Lost { peer, reason }), Vec::new());
                }
                Happened::PeerFailing { peer, reason } => {
                    patina_daemon::say!("pager: {peer} fails: {reason}");
                    self.report(FromPager::Peers(FromPeers::Failing { peer, reason }), Vec::new());
                }
                Happened::ServiceEnded { connection, number, reason, is_done } => {
                    if let Some(ended) = self.service_ended(connection, number, (reason, is_done)) {
                        self.report(FromPager::Peers(ended), Vec::new());
                    }
                }
                Happened::FillStopped { layer, run, reason } => {
                    let run = run as u64;
                    self.report(FromPager::FillStopped { layer, run, reason }, Vec::new());
                }
            }
        }
    }
}

/// Watches a connection for space to write, or not.
fn watch_output(epoll: &OwnedFd, lines: &Lines, key: u64) {
    let out = if lines.wants_write() { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
    best_effort(
        epoll::modify(epoll, lines.fd(), epoll::EventData::new_u64(key), epoll::EventFlags::IN | out),
        "it was added when the connection was made",
    );
}
