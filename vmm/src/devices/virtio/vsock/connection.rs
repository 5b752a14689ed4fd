//! One connection between a port of the host and a port of the guest, as pure logic.
//!
//! ```text
//!  guest REQUEST --> open (RESPONSE pending)        host dials --> dialing (REQUEST pending)
//!                                                   dialing --guest RESPONSE--> open
//!  open: RW both ways within credit; each side may end each direction with SHUTDOWN
//!  guest has ended both, and its data has gone out --> RST to the guest, gone
//!  RST from the guest, or anything that the protocol forbids --> gone
//! ```
//! Credit: each side announces the size of its buffer (`buf_alloc`) and how much its reader has
//! taken so far (`fwd_cnt`, modulo 2^32). The other side never has more bytes in flight than the
//! buffer has room for.

use super::packet::{HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};

/// Bytes kept for what a guest sends on one connection and the host has not read yet.
pub const BUFFER_BYTES: u32 = 64 * 1024;

/// A connection's name: its two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// What an accepted packet means to the owner of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Nothing beyond what the connection has noted.
    Noted,
    /// The guest accepted: the connection is open.
    Opened,
    /// Data for the host, to be followed by [`Connection::forwarded`] as it is taken.
    Data,
    /// The guest ended a direction: see [`Connection::guest_has_shut`].
    Shut,
}

/// The guest broke the connection or the protocol: forget the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The guest knows.
    ByGuest,
    /// The guest must be told with a RST.
    ByRules,
}

/// The counters of an open connection with nothing in flight, modulo 2^32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quiet {
    pub(crate) ports: Ports,
    pub(crate) received: u32,
    pub(crate) told: u32,
    pub(crate) sent: u32,
    pub(crate) guest_buffer: u32,
    pub(crate) guest_forwarded: u32,
}

patina_snapshot::layout!(Quiet {
    ports: Ports,
    received: u32,
    told: u32,
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
});

/// A connection's state.
#[derive(Debug, Clone)]
pub struct Connection {
    ports: Ports,
    guest_cid: u64,
    is_open: bool,
    /// Bytes from the guest, and how many of them the host has taken; modulo 2^32.
    received: u32,
    forwarded: u32,
    /// The value of `forwarded` that the guest knows.
    told: u32,
    /// Bytes to the guest, and what it said about them; modulo 2^32.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    guest_shut: u32,
    host_shut: u32,
    /// Flags of a SHUTDOWN that the guest has been told.
    host_shut_told: u32,
    opens: bool,
    owes_credit: bool,
    wants_credit: Want,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    No,
    Ask,
    Asked,
}

impl Connection {
    fn new(ports: Ports, guest_cid: u64, is_open: bool) -> Self {
        Self {
            ports,
            guest_cid,
            is_open,
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            guest_shut: 0,
            host_shut: 0,
            host_shut_told: 0,
            opens: true,
            owes_credit: false,
            wants_credit: Want::No,
        }
    }

    /// The guest asked for a connection and the host has it: a RESPONSE is pending.
    pub fn accepted(ports: Ports, request: &Header) -> Self {
        let mut connection = Self::new(ports, request.src_cid, true);
        connection.note_credit(request);
        connection
    }

    /// The host wants a connection: a REQUEST is pending.
    pub fn dialing(ports: Ports, guest_cid: u64) -> Self {
        Self::new(ports, guest_cid, false)
    }

    /// The counters with which the connection continues in a clone. None if something is in flight
    /// that only this process knows of, or if nothing shows that the guest knows of the connection.
    pub fn quiet(&self) -> Option<Quiet> {
        let is_whole = self.is_open && self.guest_shut == 0 && self.host_shut == 0;
        let is_idle = self.received == self.forwarded && !self.has_control() && self.wants_credit == Want::No;
        (is_whole && is_idle && !self.may_be_news()).then_some(Quiet {
            ports: self.ports,
            received: self.received,
            told: self.told,
            sent: self.sent,
            guest_buffer: self.guest_buffer,
            guest_forwarded: self.guest_forwarded,
        })
    }

    /// The connection of a clone, as its parent's was.
    pub fn carried_on(quiet: &Quiet, guest_cid: u64) -> Self {
        let Quiet { ports, received, told, sent, guest_buffer, guest_forwarded } = *quiet;
        Self {
            opens: false,
            received,
            forwarded: received,
            told,
            sent,
            guest_buffer,
            guest_forwarded,
            ..Self::new(ports, guest_cid, true)
        }
    }

    /// Both sides have agreed.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Both sides have agreed, but nothing shows that the guest knows.
    pub fn may_be_news(&self) -> bool {
        self.is_open && self.received == 0
    }

    /// The directions that the guest has ended.
    pub fn guest_has_shut(&self, directions: u32) -> bool {
        self.guest_shut & directions == directions
    }

    /// The host has closed the connection, which waits until the guest closes it as well.
    pub fn is_closing(&self) -> bool {
        self.host_shut == SHUTDOWN_BOTH
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.may_send() > 0 {
            self.wants_credit = Want::No;
        }
    }

    /// A packet of this connection from the guest. `len` is the data that really came with it.
    pub fn arrived(&mut self, header: &Header, len: u32) -> Result<Arrival, Broken> {
        self.note_credit(header);
        match header.op {
            op::RST => Err(Broken::ByGuest),
            op::RESPONSE if !self.is_open && !self.opens => {
                self.is_open = true;
                Ok(Arrival::Opened)
            }
            _ if !self.is_open => Err(Broken::ByRules),
            op::RW => self.data_arrived(header, len),
            op::CREDIT_UPDATE => Ok(Arrival::Noted),
            op::CREDIT_REQUEST => {
                self.owes_credit = true;
                Ok(Arrival::Noted)
            }
            op::SHUTDOWN => {
                self.guest_shut |= header.flags & SHUTDOWN_BOTH;
                Ok(Arrival::Shut)
            }
            _ => Err(Broken::ByRules),
        }
    }

    fn data_arrived(&mut self, header: &Header, len: u32) -> Result<Arrival, Broken> {
        let room = BUFFER_BYTES - self.received.wrapping_sub(self.forwarded);
        if header.len != len || len > room || self.guest_has_shut(SHUTDOWN_SEND) {
            return Err(Broken::ByRules);
        }
        self.received = self.received.wrapping_add(len);
        Ok(Arrival::Data)
    }

    /// The host has taken so many bytes of what arrived (or will never want them).
    pub fn forwarded(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes);
        // Telling of every byte would cost the guest an interrupt each.
        if self.forwarded.wrapping_sub(self.told) >= BUFFER_BYTES / 2 {
            self.owes_credit = true;
        }
    }

    fn may_ever_send(&self) -> bool {
        let is_shut = self.guest_has_shut(SHUTDOWN_RECEIVE) || self.has_ended(SHUTDOWN_SEND);
        self.is_open && !self.opens && !is_shut
    }

    /// Bytes that may be sent to the guest now.
    pub fn may_send(&self) -> u32 {
        if !self.may_ever_send() {
            return 0;
        }

        // A guest that claims to have read more than was sent gets nothing.
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    /// There is data for the guest but no credit: ask for it, once.
    pub fn starved(&mut self) {
        if self.wants_credit == Want::No && self.may_ever_send() {
            self.wants_credit = Want::Ask;
        }
    }

    /// The host ends directions, as seen from the host.
    pub fn shut(&mut self, directions: u32) {
        self.host_shut |= directions & SHUTDOWN_BOTH;
    }

    /// The host has ended these directions.
    pub fn has_ended(&self, directions: u32) -> bool {
        self.host_shut & directions == directions
    }

    /// There is a packet without data to be sent.
    pub fn has_control(&self) -> bool {
        let owes =
            self.host_shut != self.host_shut_told || self.owes_credit || self.wants_credit == Want::Ask;
        self.opens || self.is_open && owes
    }

    /// The next packet without data.
    pub fn next_control(&mut self) -> Option<Header> {
        if self.opens {
            self.opens = false;
            return Some(self.header(if self.is_open { op::RESPONSE } else { op::REQUEST }, 0));
        }
        if !self.is_open {
            return None;
        }
        if self.host_shut != self.host_shut_told {
            self.host_shut_told = self.host_shut;
            return Some(Header { flags: self.host_shut, ..self.header(op::SHUTDOWN, 0) });
        }
        if self.owes_credit {
            return Some(self.header(op::CREDIT_UPDATE, 0));
        }
        if self.wants_credit == Want::Ask {
            self.wants_credit = Want::Asked;
            return Some(self.header(op::CREDIT_REQUEST, 0));
        }
        None
    }

    /// The header for `len` bytes of data, at most [`Connection::may_send`].
    pub fn data(&mut self, len: u32) -> Header {
        self.sent = self.sent.wrapping_add(len);
        self.header(op::RW, len)
    }

    /// The RST of this connection; none when the guest has never heard of it.
    pub fn reset(&mut self) -> Option<Header> {
        (self.is_open || !self.opens).then(|| self.header(op::RST, 0))
    }

    fn header(&mut self, op: u16, len: u32) -> Header {
        // Every packet tells the credit.
        self.told = self.forwarded;
        self.owes_credit = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.forwarded,
        }
    }
}

#[cfg(test)]
#[path = "connection_test.rs"]
mod tests;
