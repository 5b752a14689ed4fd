//! All connections of a guest: finds the connection of each packet from the guest, and makes
//! packets for it one at a time.
//!
//! What waits for the guest is bounded. Each connection has a few flags for packets without data,
//! and data stays in its stream. Refusals are counted: while [`REFUSALS_MAX`] of them wait, no
//! packet from the guest is taken.

use super::connection::{Arrival, Broken, Connection, Ports, Quiet};
use super::dialer::{Dial, DialError};
use super::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, op};
use super::stream::{Read, Stream};
use super::{CONNECTIONS_MAX, HostPorts};
use crate::devices::Memory;
use crate::devices::virtio::queue::{Chain, QueueError};
use patina_control::best_effort;
use rustix::event::epoll;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Refusals that wait for the guest before its packets have to.
pub const REFUSALS_MAX: usize = 128;
/// The first port that a dialing host uses for its own end.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Stream events taken at a time.
const BATCH_EVENTS: usize = 64;

/// See the module.
pub struct Muxer {
    guest_cid: u64,
    host_ports: Box<dyn HostPorts>,
    streams: BTreeMap<Ports, Stream>,
    /// Connections that may have something for the guest, each once, in turn.
    listed: VecDeque<Ports>,
    refusals: VecDeque<Header>,
    next_host_port: u32,
    ready: OwnedFd,
}

impl Muxer {
    /// No connections yet.
    pub fn new(guest_cid: u64, host_ports: Box<dyn HostPorts>) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            host_ports,
            streams: BTreeMap::new(),
            listed: VecDeque::new(),
            refusals: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            ready: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Readable when a stream has news: see [`Muxer::stream_events`].
    pub fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// The host's end of the next connection that it opens.
    pub fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Continues to count ports from there, or from the start if it is not one of these ports.
    pub fn set_next_host_port(&mut self, port: u32) {
        self.next_host_port =
            if (FIRST_HOST_PORT..u32::MAX).contains(&port) { port } else { FIRST_HOST_PORT };
    }

    /// The connections that must be reset one by one in a clone, because its guest may not know of
    /// them when it hears that all are gone. Pending refusals are among them.
    pub fn resets_for_clone(&self) -> Vec<Ports> {
        let ours = |header: &&Header| header.src_cid == HOST_CID && header.kind == TYPE_STREAM;
        let refused = self.refusals.iter().filter(ours);
        let refused = refused.map(|header| Ports { host: header.src_port, guest: header.dst_port });
        let news = self.streams.iter().filter(|(_, stream)| stream.connection.may_be_news());
        refused.chain(news.map(|(ports, _)| *ports)).collect()
    }

    /// The connection that continues in a clone: the only one that the guest has made to the host,
    /// if nothing is in flight on it.
    pub fn to_carry_on(&self) -> Option<Quiet> {
        let mut made = self.streams.iter().filter(|(ports, _)| ports.host < FIRST_HOST_PORT);
        match (made.next(), made.next()) {
            (Some((_, stream)), None) => stream.quiet(),
            _ => None,
        }
    }

    /// All open connections but this one, for a clone whose guest hears of each by itself.
    pub fn open_beside(&self, kept: Ports) -> impl Iterator<Item = Ports> {
        let others = self.streams.iter().filter(move |(ports, stream)| {
            **ports != kept && stream.connection.is_open() && !stream.connection.may_be_news()
        });
        others.map(|(ports, _)| *ports)
    }

    /// Continues a connection of the parent.
    pub fn carry_on(&mut self, quiet: &Quiet) {
        let ports = quiet.ports;
        let stream = self
            .host_ports
            .carry_on(ports)
            .and_then(|stream| Stream::new(Connection::carried_on(quiet, self.guest_cid), stream, None).ok());
        if stream.is_none_or(|stream| self.insert(ports, stream).is_err()) {
            self.refuse(&[ports]);
        }
    }

    /// Resets connections that only the guest knows.
    pub fn refuse(&mut self, resets: &[Ports]) {
        let (src_cid, dst_cid) = (HOST_CID, self.guest_cid);
        self.refusals.extend(resets.iter().map(|ports| Header {
            src_cid,
            dst_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            op: op::RST,
            ..Header::default()
        }));
    }

    /// So many refusals wait that the guest's packets must wait, too.
    pub fn is_congested(&self) -> bool {
        self.refusals.len() >= REFUSALS_MAX
    }

    /// There may be a packet for the guest.
    pub fn may_have_output(&self) -> bool {
        !self.refusals.is_empty() || !self.listed.is_empty()
    }

    /// Drops all connections without telling the guest.
    pub fn reset(&mut self) {
        while let Some((ports, _)) = self.streams.first_key_value() {
            if let Some(mut stream) = self.remove(*ports) {
                stream.tell(Err(DialError::Reset));
            }
        }
        self.listed.clear();
        self.refusals.clear();
    }

    /// Handles a packet from the guest: a chain with a header and its data.
    pub fn packet(&mut self, memory: &Memory, chain: &Chain) -> Result<(), QueueError> {
        let mut bytes = [0; HEADER_BYTES];
        chain.read(memory, 0, &mut bytes)?;
        let header = Header::parse(&bytes);
        if header.src_cid != self.guest_cid {
            // Nobody to answer.
            return Ok(());
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refusals.extend(header.refusal());
            return Ok(());
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let length = chain.readable_bytes() - HEADER_BYTES as u32;
        let Some(stream) = self.streams.get_mut(&ports) else {
            self.stranger(ports, &header);
            return Ok(());
        };
        match stream.connection.arrived(&header, length.min(header.len)) {
            Ok(Arrival::Noted) => {}
            Ok(Arrival::Opened) => stream.tell(Ok(())),
            Ok(Arrival::Data) => stream.take(memory, chain, HEADER_BYTES as u32, header.len)?,
            Ok(Arrival::Shut) => stream.pass_shutdown(),
            Err(Broken::ByGuest) => {
                stream.tell(Err(DialError::Refused));
                self.remove(ports);
            }
            Err(Broken::ByRules) => self.break_off(ports, DialError::Reset),
        }
        self.settle(ports);
        Ok(())
    }

    /// A packet that belongs to no connection.
    fn stranger(&mut self, ports: Ports, header: &Header) {
        let connected = header.op == op::REQUEST && self.has_room() && {
            let stream = self.host_ports.connect(ports);
            stream.is_some_and(|stream| {
                let connection = Connection::accepted(ports, header);
                Stream::new(connection, stream, None).is_ok_and(|stream| self.insert(ports, stream).is_ok())
            })
        };
        if !connected {
            self.refusals.extend(header.refusal());
        }
    }

    /// Makes room for one more connection. If necessary, drops one that the host has closed.
    fn has_room(&mut self) -> bool {
        if self.streams.len() >= CONNECTIONS_MAX {
            let closing = self.streams.iter().find(|(_, stream)| stream.connection.is_closing());
            if let Some(ports) = closing.map(|(ports, _)| *ports) {
                self.break_off(ports, DialError::Reset);
            }
        }
        self.streams.len() < CONNECTIONS_MAX
    }

    fn insert(&mut self, ports: Ports, mut stream: Stream) -> io::Result<()> {
        let watched = watch(self.ready.as_fd(), &stream, ports, epoll::add);
        if watched.is_err() {
            stream.tell(Err(DialError::Stream));
            return watched;
        }
        self.streams.insert(ports, stream);
        self.settle(ports);
        Ok(())
    }

    /// Connects a stream of the host to a port of the guest.
    pub fn dial(&mut self, Dial { port, stream, done }: Dial) {
        if !self.has_room() {
            done(Err(DialError::TooMany));
            return;
        }
        // There are fewer connections than ports, so that this ends.
        let mut ports = Ports { host: self.next_host_port, guest: port };
        while self.streams.contains_key(&ports) {
            ports.host = next_port(ports.host);
        }
        self.next_host_port = next_port(ports.host);
        let connection = Connection::dialing(ports, self.guest_cid);
        match Stream::new(connection, stream, Some(done)) {
            // Whoever dialed has been told when this fails.
            Ok(stream) => self.insert(ports, stream).unwrap_or_default(),
            Err(Some(done)) => done(Err(DialError::Stream)),
            Err(None) => {}
        }
    }

    /// Takes the news of streams, some at a time.
    pub fn stream_events(&mut self) {
        let mut events = Vec::with_capacity(BATCH_EVENTS);
        let now = rustix::time::Timespec::default();
        best_effort(
            epoll::wait(&self.ready, rustix::buffer::spare_capacity(&mut events), Some(&now)),
            "an error leaves the news where they are: the event loop comes again",
        );
        for event in events {
            let data = event.data.u64();
            let ports = Ports { host: (data >> 32) as u32, guest: (data & 0xffff_ffff) as u32 };
            let Some(stream) = self.streams.get_mut(&ports) else { continue };
            let flags = event.flags;
            stream.event(flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR));
            if stream.is_given_up() {
                self.break_off(ports, DialError::GivenUp);
            } else {
                self.settle(ports);
            }
        }
    }

    /// Takes a connection out of everything that knows it.
    fn remove(&mut self, ports: Ports) -> Option<Stream> {
        let stream = self.streams.remove(&ports)?;
        if stream.is_listed {
            // Or a guest that opens and breaks connections without taking the answers would fill
            // the list.
            self.listed.retain(|listed| *listed != ports);
        }
        // Closing alone would not do: whoever dialed may have another descriptor of the stream.
        best_effort(
            epoll::delete(&self.ready, stream.fd()),
            "one that is listed no more need not be taken off",
        );
        Some(stream)
    }

    /// Forgets a connection and tells the guest.
    fn break_off(&mut self, ports: Ports, error: DialError) {
        if let Some(mut stream) = self.remove(ports) {
            stream.tell(Err(error));
            self.refusals.extend(stream.connection.reset());
        }
    }

    /// After anything that happened to a connection: ends it when it is finished, lists it when it
    /// may have something for the guest.
    fn settle(&mut self, ports: Ports) {
        let Some(stream) = self.streams.get_mut(&ports) else { return };
        if stream.is_finished() {
            self.break_off(ports, DialError::Reset);
            return;
        }
        if !stream.is_listed && stream.may_have_output() {
            stream.is_listed = true;
            self.listed.push_back(ports);
            debug_assert!(self.listed.len() <= CONNECTIONS_MAX, "each connection is listed once");
        }
        // A stream is watched for room only while something waits for it, or every byte that its
        // reader takes would be news.
        if stream.must_watch_room_anew() && watch(self.ready.as_fd(), stream, ports, epoll::modify).is_err() {
            self.break_off(ports, DialError::Stream);
        }
    }

    /// Writes the next packet for the guest into a chain; its length, or none when there was
    /// nothing after all.
    pub fn next_packet(&mut self, memory: &Memory, chain: &Chain) -> Result<Option<u32>, QueueError> {
        if let Some(header) = self.refusals.pop_front() {
            return write_header(memory, chain, &header).map(Some);
        }
        while let Some(ports) = self.listed.pop_front() {
            let Some(stream) = self.streams.get_mut(&ports) else { continue };
            stream.is_listed = false;
            let header = match stream.connection.next_control() {
                Some(header) => Some(header),
                None => match stream.read(memory, chain, HEADER_BYTES as u32)? {
                    Read::Data(length) => Some(stream.connection.data(length)),
                    Read::Nothing => None,
                },
            };
            self.settle(ports);
            if let Some(header) = header {
                return write_header(memory, chain, &header).map(|bytes| Some(bytes + header.len));
            }
        }
        Ok(None)
    }
}

fn write_header(memory: &Memory, chain: &Chain, header: &Header) -> Result<u32, QueueError> {
    chain.write(memory, 0, &header.bytes())?;
    Ok(HEADER_BYTES as u32)
}

fn next_port(port: u32) -> u32 {
    port.checked_add(1).filter(|port| *port != u32::MAX).unwrap_or(FIRST_HOST_PORT)
}

type Control<'a> =
    fn(BorrowedFd<'a>, BorrowedFd<'a>, epoll::EventData, epoll::EventFlags) -> rustix::io::Result<()>;

fn watch<'a>(
    ready: BorrowedFd<'a>,
    stream: &'a Stream,
    ports: Ports,
    control: Control<'a>,
) -> io::Result<()> {
    let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    flags.set(epoll::EventFlags::OUT, stream.watches_room());
    let data = epoll::EventData::new_u64(u64::from(ports.host) << 32 | u64::from(ports.guest));
    Ok(control(ready, stream.fd(), data, flags)?)
}
