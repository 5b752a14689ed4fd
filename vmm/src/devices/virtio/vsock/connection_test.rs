use super::*;
use proptest::prelude::*;

const GUEST: u64 = 3;
const PORTS: Ports = Ports { host: 1024, guest: 99 };

fn from_guest(op: u16) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: HOST_CID,
        src_port: PORTS.guest,
        dst_port: PORTS.host,
        kind: TYPE_STREAM,
        op,
        buf_alloc: 1000,
        ..Header::default()
    }
}

fn open() -> Connection {
    let mut connection = Connection::accepted(PORTS, &from_guest(op::REQUEST));
    let response = connection.next_control().unwrap();
    assert_eq!((response.op, response.buf_alloc, response.fwd_cnt), (op::RESPONSE, BUFFER_BYTES, 0));
    assert_eq!((response.src_port, response.dst_port), (PORTS.host, PORTS.guest));
    connection
}

fn data(len: u32) -> Header {
    Header { len, ..from_guest(op::RW) }
}

#[test]
fn a_dial_opens_with_the_response() {
    let mut connection = Connection::dialing(PORTS, GUEST);
    assert_eq!(connection.reset(), None, "the guest has not heard of it");
    assert_eq!(connection.next_control().unwrap().op, op::REQUEST);
    assert_eq!((connection.next_control(), connection.may_send()), (None, 0));
    assert_eq!(connection.arrived(&from_guest(op::RESPONSE), 0), Ok(Arrival::Opened));
    assert_eq!(connection.may_send(), 1000);
    assert_eq!(connection.arrived(&from_guest(op::RESPONSE), 0), Err(Broken::ByRules), "only once");
}

#[test]
fn a_response_before_the_request_breaks_the_dial() {
    let mut connection = Connection::dialing(PORTS, GUEST);
    assert_eq!(connection.arrived(&from_guest(op::RESPONSE), 0), Err(Broken::ByRules));
}

#[test]
fn a_refused_dial_is_broken_by_the_guest() {
    let mut connection = Connection::dialing(PORTS, GUEST);
    connection.next_control();
    assert_eq!(connection.arrived(&from_guest(op::RST), 0), Err(Broken::ByGuest));
}

#[test]
fn data_over_credit_breaks_the_connection() {
    let mut connection = open();
    assert_eq!(connection.arrived(&data(BUFFER_BYTES), BUFFER_BYTES), Ok(Arrival::Data));
    assert_eq!(connection.clone().arrived(&data(1), 1), Err(Broken::ByRules));
    connection.forwarded(10);
    assert_eq!(connection.arrived(&data(10), 10), Ok(Arrival::Data));
    assert_eq!(connection.arrived(&data(1), 1), Err(Broken::ByRules));
}

#[test]
fn data_that_is_not_there_breaks_the_connection() {
    for (claimed, real) in [(10, 9), (u32::MAX, 10), (BUFFER_BYTES + 1, BUFFER_BYTES + 1)] {
        assert_eq!(open().arrived(&data(claimed), real), Err(Broken::ByRules));
    }
}

#[test]
fn unknown_and_misplaced_packets_break_the_connection() {
    for op in [0, op::REQUEST, op::RESPONSE, 8, u16::MAX] {
        assert_eq!(open().arrived(&from_guest(op), 0), Err(Broken::ByRules), "{op}");
    }
}

#[test]
fn credit_is_told_when_half_of_it_is_used_and_when_asked_for() {
    let mut connection = open();
    connection.arrived(&data(BUFFER_BYTES), BUFFER_BYTES).unwrap();
    connection.forwarded(BUFFER_BYTES / 2 - 1);
    assert_eq!(connection.next_control(), None);
    connection.forwarded(1);
    let update = connection.next_control().unwrap();
    assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, BUFFER_BYTES / 2));
    assert_eq!(connection.next_control(), None);
    assert_eq!(connection.arrived(&from_guest(op::CREDIT_REQUEST), 0), Ok(Arrival::Noted));
    assert_eq!(connection.next_control().unwrap().op, op::CREDIT_UPDATE);
    assert!(!connection.has_control());
}

#[test]
fn without_credit_it_is_asked_for_once() {
    let mut connection = open();
    assert_eq!(connection.data(1000).len, 1000);
    assert_eq!(connection.may_send(), 0);
    connection.starved();
    assert_eq!(connection.next_control().unwrap().op, op::CREDIT_REQUEST);
    connection.starved();
    assert_eq!(connection.next_control(), None);
    let update = Header { fwd_cnt: 1000, ..from_guest(op::CREDIT_UPDATE) };
    assert_eq!(connection.arrived(&update, 0), Ok(Arrival::Noted));
    assert_eq!(connection.may_send(), 1000);
}

#[test]
fn credit_that_cannot_be_is_no_credit() {
    let mut connection = open();
    connection.data(10);
    for (buf_alloc, fwd_cnt) in [(1000, 11), (1000, 1 << 31), (9, 0), (0, 10)] {
        let update = Header { buf_alloc, fwd_cnt, ..from_guest(op::CREDIT_UPDATE) };
        connection.arrived(&update, 0).unwrap();
        assert_eq!(connection.may_send(), 0, "{buf_alloc} {fwd_cnt}");
    }
    let all = Header { buf_alloc: u32::MAX, fwd_cnt: 10, ..from_guest(op::CREDIT_UPDATE) };
    connection.arrived(&all, 0).unwrap();
    assert_eq!(connection.may_send(), u32::MAX);
}

#[test]
fn each_direction_ends_by_itself() {
    let mut connection = open();
    let shut = |flags| Header { flags, ..from_guest(op::SHUTDOWN) };
    assert_eq!(connection.arrived(&shut(SHUTDOWN_SEND), 0), Ok(Arrival::Shut));
    assert_eq!(connection.may_send(), 1000, "the guest still receives");
    assert_eq!(connection.clone().arrived(&data(1), 1), Err(Broken::ByRules));
    connection.shut(SHUTDOWN_SEND);
    let told = connection.next_control().unwrap();
    assert_eq!((told.op, told.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    assert_eq!(connection.may_send(), 0);
    connection.shut(SHUTDOWN_RECEIVE);
    assert_eq!(connection.next_control().unwrap().flags, SHUTDOWN_BOTH);
    assert!(connection.is_closing() && connection.next_control().is_none());
    assert_eq!(connection.arrived(&shut(u32::MAX), 0), Ok(Arrival::Shut));
    assert!(connection.guest_has_shut(SHUTDOWN_BOTH));
}

proptest! {
    /// A model of both sides' buffers: neither ever holds more than it said, and counters wrap
    /// unharmed.
    #[test]
    fn no_side_ever_holds_more_than_it_said(
        start in prop_oneof![Just(0_u32), Just(u32::MAX - 100), any::<u32>()],
        steps in prop::collection::vec((0_u8..6, 0_u32..BUFFER_BYTES * 2), 1..200),
    ) {
        let mut connection = open();
        (connection.received, connection.forwarded, connection.told) = (start, start, start);
        (connection.sent, connection.guest_forwarded) = (start, start);
        // What the host and the guest hold, unread by their programs; and what the guest has read
        // so far.
        let (mut host_holds, mut guest_holds, mut guest_read) = (0_u32, 0_u32, start);
        for (step, amount) in steps {
            match step {
                0 => {
                    let accepted = connection.arrived(&Header { fwd_cnt: guest_read, ..data(amount) }, amount);
                    prop_assert_eq!(accepted.is_ok(), amount <= BUFFER_BYTES - host_holds);
                    if accepted.is_err() {
                        return Ok(());
                    }
                    host_holds += amount;
                }
                1 => {
                    let taken = amount.min(host_holds);
                    connection.forwarded(taken);
                    host_holds -= taken;
                }
                2 => {
                    let len = amount.min(connection.may_send());
                    connection.data(len);
                    guest_holds += len;
                    prop_assert!(guest_holds <= 1000);
                }
                3 => {
                    let read = amount.min(guest_holds);
                    (guest_holds, guest_read) = (guest_holds - read, guest_read.wrapping_add(read));
                }
                4 => {
                    let update = Header { fwd_cnt: guest_read, ..from_guest(op::CREDIT_UPDATE) };
                    connection.arrived(&update, 0).unwrap();
                    prop_assert_eq!(connection.may_send(), 1000 - guest_holds);
                }
                _ => {
                    if let Some(header) = connection.next_control() {
                        prop_assert_eq!(header.fwd_cnt, connection.forwarded);
                    }
                    prop_assert!(!connection.has_control());
                }
            }
        }
    }

    #[test]
    fn headers_survive_a_round_trip(bytes in prop::array::uniform32(any::<u8>()), rest in prop::array::uniform12(any::<u8>())) {
        let mut header = [0; super::super::packet::HEADER_BYTES];
        header[..32].copy_from_slice(&bytes);
        header[32..].copy_from_slice(&rest);
        prop_assert_eq!(Header::parse(&header).bytes(), header);
    }
}
