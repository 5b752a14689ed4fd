use super::connection::BUFFER_BYTES;
use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::*;
use crate::devices::virtio::handshake::TRANSPORT_FEATURES;
use crate::devices::virtio::testing::{DATA, Driver, NEEDS_RESET};
use proptest::prelude::*;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, mpsc};

pub(super) const GUEST: u64 = 3;
pub(super) const LINK: u32 = 1024;
pub(super) const GUEST_PORT: u32 = 5000;
pub(super) const BUFFER: u32 = 4096 + HEADER_BYTES as u32;
pub(super) const TX_DATA: u64 = DATA + 0x10_0000;

/// Accepts connections to [`LINK`] and keeps the far ends.
#[derive(Clone, Default)]
pub(super) struct Ports(pub Arc<Mutex<Vec<UnixStream>>>);

impl HostPorts for Ports {
    fn connect(&mut self, ports: connection::Ports) -> Option<UnixStream> {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        (ports.host == LINK).then(|| self.0.lock().unwrap().push(far))?;
        Some(near)
    }

    fn carry_on(&mut self, ports: connection::Ports) -> Option<UnixStream> {
        self.connect(ports)
    }
}

pub(super) struct Rig {
    pub driver: Driver,
    pub ports: Ports,
    pub dialer: VsockDialer,
    pub buffers: u64,
}

pub(super) fn rig() -> Rig {
    let ports = Ports::default();
    let (vsock, dialer) = Vsock::new(GUEST, Box::new(ports.clone())).unwrap();
    let mut rig = Rig { driver: Driver::new(Box::new(vsock)), ports, dialer, buffers: 0 };
    rig.give_buffers(64);
    rig
}

pub(super) fn packet(op: u16) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: GUEST_PORT,
        dst_port: LINK,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 1 << 18,
        ..Header::default()
    }
}

impl Rig {
    pub fn give_buffers(&mut self, count: u64) {
        for _ in 0..count {
            self.driver.add(RX, &[(DATA + (self.buffers % 64) * 0x2000, BUFFER, true)]);
            self.buffers += 1;
        }
        self.driver.run(RX);
    }

    pub fn send_from(&mut self, header: &Header, data: &[u8]) {
        self.driver.put(TX_DATA, &header.bytes());
        self.driver.put(TX_DATA + 0x1000, data);
        let mut parts = vec![(TX_DATA, HEADER_BYTES as u32, false)];
        if !data.is_empty() {
            parts.push((TX_DATA + 0x1000, data.len() as u32, false));
        }
        self.driver.add(TX, &parts);
        self.driver.run(TX);
    }

    pub fn send(&mut self, op: u16) {
        self.send_from(&packet(op), &[]);
    }

    pub fn send_data(&mut self, data: &[u8]) {
        self.send_from(&Header { len: data.len() as u32, ..packet(op::RW) }, data);
    }

    pub fn events(&self) {
        for _ in 0..8 {
            self.driver.source_event(TOKEN_STREAMS);
        }
    }

    /// Packets that came, after giving their buffers back.
    pub fn received(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = self.driver.used(RX);
        let base = self.buffers - 64;
        let mut packets = Vec::new();
        for (head, length) in &used {
            let address = DATA + u64::from(*head) * 0x2000;
            let bytes = self.driver.get(address, *length as usize);
            let (header, data) = bytes.split_at(HEADER_BYTES);
            let header = Header::parse(header.try_into().unwrap());
            assert_eq!(header.len as usize, data.len());
            packets.push((header, data.to_vec()));
        }
        assert!(base <= self.buffers);
        self.give_buffers(used.len() as u64);
        packets
    }

    pub fn ops(&mut self) -> Vec<u16> {
        self.received().iter().map(|(header, _)| header.op).collect()
    }

    pub fn connect(&mut self) -> UnixStream {
        self.send(op::REQUEST);
        assert_eq!(self.ops(), [op::RESPONSE]);
        self.ports.0.lock().unwrap().pop().unwrap()
    }

    pub fn dial(&self, port: u32) -> (UnixStream, mpsc::Receiver<Result<(), DialError>>) {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let (tell, told) = mpsc::channel();
        self.dialer.dial(port, near, Box::new(move |result| tell.send(result).unwrap_or_default()));
        self.driver.source_event(TOKEN_DIALER);
        (far, told)
    }
}

pub(super) fn read_all(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes).is_ok();
    (bytes, ended)
}

#[test]
fn the_guest_sees_its_address() {
    let rig = rig();
    let mut cid = [0; 8];
    rig.driver.transport.read(0x100, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), GUEST);
}

#[test]
fn the_guest_connects_and_talks() {
    let mut rig = rig();
    let mut host = rig.connect();
    rig.send_data(b"hello host");
    assert_eq!(read_all(&mut host), (b"hello host".to_vec(), false));
    host.write_all(b"hello guest").unwrap();
    rig.events();
    let received = rig.received();
    assert_eq!(received.len(), 1);
    let (header, data) = &received[0];
    assert_eq!((header.op, header.src_cid, header.dst_cid), (op::RW, HOST_CID, GUEST));
    assert_eq!((header.src_port, header.dst_port, header.fwd_cnt), (LINK, GUEST_PORT, 10));
    assert_eq!(data, b"hello guest");
}

#[test]
fn a_port_without_listener_is_refused() {
    let mut rig = rig();
    rig.send_from(&Header { dst_port: 7, ..packet(op::REQUEST) }, &[]);
    let received = rig.received();
    assert_eq!(received.len(), 1);
    assert_eq!((received[0].0.op, received[0].0.src_port), (op::RST, 7));
}

#[test]
fn a_header_in_pieces_is_a_header() {
    let mut rig = rig();
    rig.driver.put(TX_DATA, &packet(op::REQUEST).bytes());
    rig.driver.add(TX, &[(TX_DATA, 10, false), (TX_DATA + 10, 30, false), (TX_DATA + 40, 4, false)]);
    rig.driver.run(TX);
    assert_eq!(rig.ops(), [op::RESPONSE]);
}

#[test]
fn the_host_dials_and_talks() {
    let mut rig = rig();
    let (mut host, told) = rig.dial(22);
    host.write_all(b"early").unwrap();
    rig.events();
    let received = rig.received();
    assert_eq!(received.len(), 1, "no data before the guest accepts");
    let request = received[0].0;
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 22));
    assert!(told.try_recv().is_err());
    let answer = Header { src_port: 22, dst_port: request.src_port, ..packet(op::RESPONSE) };
    rig.send_from(&answer, &[]);
    assert_eq!(told.recv(), Ok(Ok(())));
    let received = rig.received();
    assert_eq!((received[0].0.op, &received[0].1[..]), (op::RW, &b"early"[..]));
    rig.send_from(&Header { op: op::RW, len: 3, ..answer }, b"abc");
    assert_eq!(read_all(&mut host).0, b"abc");
}

#[test]
fn a_refused_dial_is_told() {
    let mut rig = rig();
    let (mut host, told) = rig.dial(22);
    let request = rig.received()[0].0;
    rig.send_from(&Header { src_port: 22, dst_port: request.src_port, ..packet(op::RST) }, &[]);
    assert_eq!(told.recv(), Ok(Err(DialError::Refused)));
    assert_eq!(read_all(&mut host), (vec![], true));
    assert_eq!(rig.ops(), [0_u16; 0], "a reset is not answered");
}

#[test]
fn a_dial_without_driver_or_device_is_told() {
    let mut rig = rig();
    rig.driver.write(0x70, 0);
    assert_eq!(rig.dial(22).1.recv(), Ok(Err(DialError::NotReady)));
    let sizes = QUEUE_SIZES;
    rig.driver.handshake(&sizes, TRANSPORT_FEATURES);
    let (_host, told) = rig.dial(22);
    assert!(told.try_recv().is_err());
    rig.driver.write(0x70, 0);
    assert_eq!(told.recv(), Ok(Err(DialError::Reset)), "a reset of the driver ends it");
    let dialer = rig.dialer.clone();
    drop(rig);
    let (tell, told) = mpsc::channel();
    dialer.dial(
        22,
        UnixStream::pair().unwrap().0,
        Box::new(move |result| tell.send(result).unwrap_or_default()),
    );
    assert_eq!(told.recv(), Ok(Err(DialError::Reset)));
}

#[test]
fn a_dial_that_is_given_up_is_forgotten() {
    let mut rig = rig();
    let (host, told) = rig.dial(22);
    assert_eq!(rig.ops(), [op::REQUEST]);
    drop(host);
    rig.events();
    assert_eq!(told.recv(), Ok(Err(DialError::GivenUp)));
    assert_eq!(rig.ops(), [op::RST]);
}

#[test]
fn a_host_that_closes_ends_both_directions() {
    let mut rig = rig();
    let mut host = rig.connect();
    host.write_all(b"last words").unwrap();
    drop(host);
    rig.events();
    let received = rig.received();
    assert_eq!(received[0].1, b"last words");
    assert_eq!((received[1].0.op, received[1].0.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
    rig.send(op::RST);
    assert_eq!(rig.ops(), [0_u16; 0]);
    rig.send_data(b"x");
    assert_eq!(rig.ops(), [op::RST], "the connection is gone");
}

#[test]
fn half_closing_leaves_the_other_direction() {
    let mut rig = rig();
    let mut host = rig.connect();
    host.shutdown(std::net::Shutdown::Write).unwrap();
    rig.events();
    let received = rig.received();
    assert_eq!((received[0].0.op, received[0].0.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    rig.send_data(b"answer");
    assert_eq!(read_all(&mut host), (b"answer".to_vec(), false));
    rig.send_from(&Header { flags: SHUTDOWN_SEND, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(read_all(&mut host), (vec![], true));
    rig.events();
    rig.send_from(&Header { flags: SHUTDOWN_BOTH, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(rig.ops().last(), Some(&op::RST), "both are done: the device lets go");
}

#[test]
fn a_guest_that_closes_still_has_its_data_delivered() {
    let mut rig = rig();
    let mut host = rig.connect();
    // More than a socket's buffer takes, so that some of it waits in the device.
    let mut sent = Vec::new();
    let mut credit = u32::MAX;
    while credit > 4096 && sent.len() < 4 << 20 {
        let piece = vec![sent.len() as u8; 4096];
        rig.send_data(&piece);
        sent.extend(piece);
        for (header, _) in rig.received() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
        }
        rig.send(op::CREDIT_REQUEST);
        let update = rig.received()[0].0;
        credit = update.buf_alloc - (sent.len() as u32).wrapping_sub(update.fwd_cnt);
    }
    assert!(credit <= 4096, "the socket was filled");
    rig.send_from(&Header { flags: SHUTDOWN_BOTH, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(rig.ops(), [0_u16; 0], "not yet: data waits");
    let mut seen = Vec::new();
    for _ in 0..10_000 {
        let (bytes, ended) = read_all(&mut host);
        seen.extend(bytes);
        if ended {
            break;
        }
        rig.events();
    }
    assert!(seen == sent, "{} of {} bytes", seen.len(), sent.len());
    assert_eq!(rig.ops().last(), Some(&op::RST));
}

#[test]
fn a_slow_host_costs_no_more_than_the_buffer() {
    let mut rig = rig();
    let _host = rig.connect();
    let mut sent = 0_u32;
    while sent < 8 << 20 {
        rig.send_data(&[1; 4096]);
        sent += 4096;
        if rig.ops().contains(&op::RST) {
            // What a socket holds is the kernel's bound; beyond it the device took its own buffer,
            // no more.
            assert!(sent > BUFFER_BYTES);
            return;
        }
    }
    panic!("a guest may send for ever");
}

#[test]
fn a_guest_without_credit_is_sent_nothing_and_asked_once() {
    let mut rig = rig();
    rig.send_from(&Header { buf_alloc: 10, ..packet(op::REQUEST) }, &[]);
    assert_eq!(rig.ops(), [op::RESPONSE]);
    let mut host = rig.ports.0.lock().unwrap().pop().unwrap();
    host.write_all(&[7; 25]).unwrap();
    rig.events();
    let received = rig.received();
    assert_eq!(received[0].1, [7; 10]);
    assert_eq!(received[1].0.op, op::CREDIT_REQUEST);
    rig.events();
    assert_eq!(rig.ops(), [0_u16; 0]);
    rig.send_from(&Header { buf_alloc: 100, fwd_cnt: 10, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(rig.received()[0].1, [7; 15]);
}

#[test]
fn a_guest_without_buffers_gets_everything_later() {
    let ports = Ports::default();
    let (vsock, dialer) = Vsock::new(GUEST, Box::new(ports.clone())).unwrap();
    let mut rig = Rig { driver: Driver::new(Box::new(vsock)), ports, dialer, buffers: 0 };
    rig.send(op::REQUEST);
    let mut host = rig.ports.0.lock().unwrap().pop().unwrap();
    host.write_all(&[9; 10_000]).unwrap();
    rig.events();
    assert_eq!(rig.driver.used(RX), []);
    rig.give_buffers(64);
    let received = rig.received();
    assert_eq!(received[0].0.op, op::RESPONSE);
    let data: Vec<u8> = received.into_iter().flat_map(|(_, data)| data).collect();
    assert_eq!(data, [9; 10_000]);
}

#[test]
fn connections_are_limited_and_the_others_go_on() {
    let mut rig = rig();
    let mut first = rig.connect();
    for port in 1..CONNECTIONS_MAX as u32 {
        rig.send_from(&Header { src_port: port, ..packet(op::REQUEST) }, &[]);
        assert_eq!(rig.ops(), [op::RESPONSE]);
    }
    rig.send_from(&Header { src_port: 9999, ..packet(op::REQUEST) }, &[]);
    assert_eq!(rig.ops(), [op::RST]);
    assert_eq!(rig.dial(22).1.recv(), Ok(Err(DialError::TooMany)));
    rig.send_data(b"still here");
    assert_eq!(read_all(&mut first).0, b"still here");
    // A connection that the host has closed makes room, even when the guest does not let go of it.
    let closed = rig.ports.0.lock().unwrap().pop().unwrap();
    drop(closed);
    rig.events();
    assert_eq!(rig.ops(), [op::SHUTDOWN]);
    rig.send_from(&Header { src_port: 9999, ..packet(op::REQUEST) }, &[]);
    assert_eq!(rig.ops(), [op::RST, op::RESPONSE]);
}

#[test]
fn a_flood_of_nonsense_waits_for_its_answers() {
    let ports = Ports::default();
    let (vsock, dialer) = Vsock::new(GUEST, Box::new(ports.clone())).unwrap();
    let mut rig = Rig { driver: Driver::new(Box::new(vsock)), ports, dialer, buffers: 0 };
    let mut handled = 0;
    for port in 0..1000 {
        rig.send_from(&Header { src_port: port, ..packet(op::RW) }, &[]);
        handled += rig.driver.used(TX).len();
        if handled as u32 == port {
            break;
        }
    }
    assert_eq!(handled, muxer::REFUSALS_MAX, "then the guest's packets wait");
    for _ in 0..4 {
        rig.give_buffers(64);
        assert!(rig.driver.used(RX).iter().all(|(_, length)| *length == HEADER_BYTES as u32));
    }
    rig.driver.run(TX);
    assert!(!rig.driver.used(TX).is_empty());
}

#[test]
fn connections_opened_and_broken_without_end_leave_nothing() {
    let ports = Ports::default();
    let (vsock, dialer) = Vsock::new(GUEST, Box::new(ports.clone())).unwrap();
    let mut rig = Rig { driver: Driver::new(Box::new(vsock)), ports, dialer, buffers: 0 };
    for _ in 0..2 * CONNECTIONS_MAX {
        rig.send(op::REQUEST);
        rig.send(op::RST);
        let mut host = rig.ports.0.lock().unwrap().pop().unwrap();
        assert_eq!(read_all(&mut host), (vec![], true));
    }
    rig.send(op::REQUEST);
    rig.give_buffers(64);
    assert_eq!(rig.ops(), [op::RESPONSE]);
}

#[test]
fn strange_packets_are_dropped_or_refused() {
    let mut rig = rig();
    let mut host = rig.connect();
    let request = packet(op::REQUEST);
    for (header, answers) in [
        (Header { src_cid: 4, ..request }, 0),
        (Header { dst_cid: 9, ..request }, 1),
        (Header { dst_cid: u64::MAX, op: op::RST, ..request }, 0),
        (Header { kind: 2, ..request }, 1),
        (Header { src_port: 1, op: 77, ..request }, 1),
        (Header { src_port: 1, op: op::SHUTDOWN, ..request }, 1),
        (Header { src_port: 1, op: op::RST, ..request }, 0),
    ] {
        rig.send_from(&header, &[]);
        assert_eq!(rig.ops(), vec![op::RST; answers], "{header:?}");
    }
    // No header, half a header, a chain that is for writing.
    rig.driver.add(TX, &[(TX_DATA, 0, false)]);
    rig.driver.add(TX, &[(TX_DATA, 43, false)]);
    rig.driver.add(TX, &[(TX_DATA, 4096, true)]);
    rig.driver.run(TX);
    assert_eq!(rig.ops(), [0_u16; 0]);
    rig.send_data(b"fine");
    assert_eq!(read_all(&mut host).0, b"fine");
}

#[test]
fn a_buffer_too_small_for_a_header_is_an_error() {
    for length in [1, 43, 44] {
        let ports = Ports::default();
        let (vsock, _) = Vsock::new(GUEST, Box::new(ports.clone())).unwrap();
        let mut driver = Driver::new(Box::new(vsock));
        for _ in 0..3 {
            driver.add(RX, &[(DATA, length, true)]);
        }
        driver.put(TX_DATA, &packet(op::REQUEST).bytes());
        driver.add(TX, &[(TX_DATA, 44, false)]);
        driver.run(TX);
        let host = ports.0.lock().unwrap().pop();
        host.unwrap().write_all(b"data").unwrap_or_default();
        driver.source_event(TOKEN_STREAMS);
        assert_ne!(driver.status() & NEEDS_RESET, 0, "{length}");
    }
}

#[test]
fn a_reader_that_left_loses_the_data_and_the_guest_is_told() {
    let mut rig = rig();
    let host = rig.connect();
    drop(host);
    rig.send_data(b"nobody");
    let received = rig.received();
    assert_eq!((received[0].0.op, received[0].0.flags & SHUTDOWN_RECEIVE), (op::SHUTDOWN, SHUTDOWN_RECEIVE));
}

#[test]
fn bytes_arrive_in_order_through_a_running_loop() {
    let mut rig = rig();
    let mut devices = crate::devices::event_loop::DeviceLoop::new().unwrap();
    rig.driver.transport.attach(&devices).unwrap();
    let host = rig.connect();
    host.set_nonblocking(false).unwrap();
    devices.start().unwrap();
    let text: Vec<u8> = (0..200_000_u32).map(|at| (at % 253) as u8).collect();
    let (expected, writer) = (text.clone(), host.try_clone().unwrap());
    let thread = std::thread::spawn(move || (&writer).write_all(&text).unwrap());
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        let line = sys::borrow(rig.driver.transport.interrupt_line());
        let mut wait = [rustix::event::PollFd::from_borrowed_fd(line, rustix::event::PollFlags::IN)];
        let limit = rustix::time::Timespec { tv_sec: 10, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut wait, Some(&limit)).unwrap(), 1, "{} bytes", seen.len());
        rig.driver.transport.interrupt_line().read().unwrap();
        for (head, length) in rig.driver.used(RX) {
            let address = DATA + u64::from(head) * 0x2000;
            seen.extend(rig.driver.get(address + 44, length as usize - 44));
            rig.driver.add(RX, &[(address, BUFFER, true)]);
        }
        rig.driver.transport.kicks()[RX].write(1).unwrap();
        let update = Header { fwd_cnt: seen.len() as u32, ..packet(op::CREDIT_UPDATE) };
        rig.driver.put(TX_DATA, &update.bytes());
        rig.driver.add(TX, &[(TX_DATA, 44, false)]);
        rig.driver.transport.kicks()[TX].write(1).unwrap();
    }
    thread.join().unwrap();
    devices.stop(std::time::Duration::from_secs(60)).unwrap();
    assert!(seen == expected);
}

fn any_header() -> impl Strategy<Value = Header> {
    let port = prop_oneof![Just(GUEST_PORT), 0_u32..4];
    (
        prop_oneof![9 => Just(GUEST), 1 => any::<u64>()],
        prop_oneof![9 => Just(HOST_CID), 1 => any::<u64>()],
        port,
        prop_oneof![9 => Just(LINK), 1 => any::<u32>()],
        prop_oneof![0_u32..200, any::<u32>()],
        prop_oneof![9 => Just(TYPE_STREAM), 1 => any::<u16>()],
        prop_oneof![0_u16..9, any::<u16>()],
        prop_oneof![0_u32..4, any::<u32>()],
        (any::<u32>(), any::<u32>()),
    )
        .prop_map(
            |(src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, (buf_alloc, fwd_cnt))| Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever a guest sends, a connection that it leaves alone works.
    #[test]
    fn any_packets_leave_another_connection_alone(packets in prop::collection::vec((any_header(), 0_usize..200, any::<bool>()), 1..60)) {
        let mut rig = rig();
        let other = Header { src_port: 777_777, ..packet(op::REQUEST) };
        rig.send_from(&other, &[]);
        let mut host = rig.ports.0.lock().unwrap().pop().unwrap();
        for (header, length, host_closes) in packets {
            rig.send_from(&header, &vec![0xaa; length]);
            if host_closes {
                rig.ports.0.lock().unwrap().pop();
            }
            rig.events();
            rig.received();
        }
        rig.send_from(&Header { op: op::RW, len: 5, ..other }, b"alive");
        prop_assert_eq!(read_all(&mut host).0, b"alive");
        prop_assert_eq!(rig.driver.status() & NEEDS_RESET, 0);
        prop_assert!(rig.ports.0.lock().unwrap().len() <= CONNECTIONS_MAX);
    }
}
