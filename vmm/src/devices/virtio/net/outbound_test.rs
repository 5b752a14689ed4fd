use super::super::rx::ANSWERS_MAX;
use super::super::tests::{MAC, OWN, Rig, owner, rig};
use super::super::{FRAME_MAX_BYTES, RX, TX};
use super::*;
use crate::devices::virtio::testing::DATA;
use proptest::prelude::*;

const PARENT: [u8; 4] = [10, 255, 0, 1];
const PEER: [u8; 4] = [10, 255, 0, 9];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A frame that a guest sends.
fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let header = [0; HEADER_BYTES];
    [&header, &PEER_MAC[..], &MAC[..], &ethertype.to_be_bytes(), payload].concat()
}

/// An IPv4 packet, its checksum left out: nobody looks at it before the receiver.
fn ipv4(source: [u8; 4], protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_bytes = 20 + options.len();
    let total = (header_bytes + payload.len()) as u16;
    let start = [0x40 | (header_bytes / 4) as u8, 0];
    let middle = [0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
    ethernet(0x0800, &[&start, &total.to_be_bytes()[..], &middle, &source, &PEER, options, payload].concat())
}

struct Segment {
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    options: usize,
    data: usize,
}

const DATA_SEGMENT: Segment =
    Segment { sequence: 0x0102_0304, acknowledged: 0x89ab_cdef, flags: 0x18, options: 12, data: 100 };

impl Segment {
    fn from(&self, source: [u8; 4]) -> Vec<u8> {
        self.with_ip_options(source, &[])
    }

    fn with_ip_options(&self, source: [u8; 4], ip_options: &[u8]) -> Vec<u8> {
        let mut tcp = [40_000_u16.to_be_bytes(), 443_u16.to_be_bytes()].concat();
        tcp.extend_from_slice(&self.sequence.to_be_bytes());
        tcp.extend_from_slice(&self.acknowledged.to_be_bytes());
        tcp.extend_from_slice(&[(((20 + self.options) / 4) << 4) as u8, self.flags, 1, 0, 0, 0, 0, 0]);
        tcp.resize(20 + self.options, 1);
        tcp.resize(20 + self.options + self.data, 0xdd);
        ipv4(source, 6, ip_options, &tcp)
    }
}

fn arp(sender: [u8; 4]) -> Vec<u8> {
    let start = [0, 1, 8, 0, 6, 4, 0, 1];
    ethernet(0x0806, &[&start, &MAC[..], &sender, &[0; 6], &PEER].concat())
}

fn verdict_on(frame: &[u8]) -> Verdict {
    judge(frame, &owner(MAC))
}

/// The ones' complement sum of what is checked, its checksum included, is all ones (RFC 1071).
fn sums_up(bytes: &[u8]) -> bool {
    assert_eq!(bytes.len() % 2, 0);
    let sum = bytes.chunks(2).fold(0_u64, |sum, pair| sum + u64::from(pair[0]) * 256 + u64::from(pair[1]));
    sum > 0 && sum % 0xffff == 0
}

/// Sequence number, acknowledged number and flags of an answer that is otherwise as it must be.
fn numbers(answer: &[u8]) -> (u32, u32, u8) {
    assert_eq!(answer.len(), 12 + 54);
    let (ethernet, ip, tcp) = (&answer[12..26], &answer[26..46], &answer[46..]);
    assert_eq!(*ethernet, *[&MAC[..], &PEER_MAC, &[8, 0]].concat());
    assert_eq!((ip[0], &ip[2..4], ip[9]), (0x45, &[0, 40][..], 6));
    assert_eq!(ip[12..], *[PEER, PARENT].concat(), "the addresses change places");
    assert!(sums_up(ip));
    assert_eq!(tcp[..4], *[443_u16.to_be_bytes(), 40_000_u16.to_be_bytes()].concat(), "so do the ports");
    assert_eq!(tcp[12], 0x50);
    assert!(sums_up(&[&ip[12..20], &[0, 6, 0, 20], tcp].concat()));
    let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
    (number(4), number(8), tcp[13])
}

fn refused(frame: &[u8]) -> (u32, u32, u8) {
    match verdict_on(frame) {
        Verdict::Answer(answer) => {
            assert_eq!(answer[..12], [0; 12], "the checksum is complete");
            numbers(&answer)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn own_packets_and_those_of_nobody_yet_pass() {
    for source in [OWN.octets(), [0; 4]] {
        for frame in [DATA_SEGMENT.from(source), ipv4(source, 17, &[], &[7; 8]), arp(source)] {
            assert_eq!(verdict_on(&frame), Verdict::Pass);
        }
    }
}

#[test]
fn packets_of_others_are_dropped() {
    for source in [PARENT, PEER, [127, 0, 0, 1], [255; 4], [10, 255, 0, 3]] {
        for frame in [ipv4(source, 17, &[], &[7; 8]), ipv4(source, 1, &[], &[7; 8]), arp(source)] {
            assert_eq!(verdict_on(&frame), Verdict::Drop);
        }
    }
}

#[test]
fn what_is_neither_ipv4_nor_arp_passes() {
    let packet = DATA_SEGMENT.from(PARENT).split_off(HEADER_BYTES + 14);
    for ethertype in [0x86dd, 0x88cc, 0x0026, 0x0801] {
        assert_eq!(verdict_on(&ethernet(ethertype, &packet)), Verdict::Pass);
        assert_eq!(verdict_on(&ethernet(ethertype, &[])), Verdict::Pass);
    }
}

#[test]
fn a_tagged_frame_does_not_leave_whatever_is_behind_the_tag() {
    for tag in [0x8100, 0x88a8, 0x9100, 0x9200, 0x9300, 0x88e7] {
        for frame in [DATA_SEGMENT.from(PARENT), DATA_SEGMENT.from(OWN.octets()), arp(PARENT)] {
            let packet = frame[HEADER_BYTES + 12..].to_vec();
            // A priority, and VLAN 0.
            assert_eq!(verdict_on(&ethernet(tag, &[&[0xe0, 0], &packet[..]].concat())), Verdict::Drop);
        }
        assert_eq!(verdict_on(&ethernet(tag, &[])), Verdict::Drop);
    }
}

#[test]
fn a_frame_from_another_mac_does_not_leave() {
    for mac in [PEER_MAC, [0xff; 6], [0; 6], [2, 0, 0, 0, 0, 0]] {
        let others = [DATA_SEGMENT.from(OWN.octets()), arp(OWN.octets()), ethernet(0x86dd, &[0; 60])];
        for mut frame in others.into_iter().chain([DATA_SEGMENT.from(PARENT)]) {
            frame[HEADER_BYTES + 6..HEADER_BYTES + 12].copy_from_slice(&mac);
            assert_eq!(verdict_on(&frame), Verdict::Drop);
        }
        let mut says = arp(OWN.octets());
        says[HEADER_BYTES + 22..HEADER_BYTES + 28].copy_from_slice(&mac);
        assert_eq!(verdict_on(&says), Verdict::Drop, "that its address is another's");
    }
}

/// A request, or an answer, to this Ethernet address.
fn arp_to(to: [u8; 6], operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = arp(sender);
    let at = HEADER_BYTES;
    frame[at..at + 6].copy_from_slice(&to);
    frame[at + 21] = operation;
    frame[at + 38..at + 42].copy_from_slice(&target);
    frame
}

const ALL: [u8; 6] = [0xff; 6];
const GATEWAY: [u8; 4] = [10, 255, 15, 254];

#[test]
fn a_request_for_a_neighbour_goes_to_it_alone() {
    for sender in [OWN.octets(), [0; 4]] {
        let of = |target| verdict_on(&arp_to(ALL, 1, sender, target));
        assert_eq!(of(PARENT), Verdict::PassTo([2, 0, 0, 0, 0, 0]));
        assert_eq!(of(PEER), Verdict::PassTo([2, 0, 0, 0, 0, 8]));
        assert_eq!(of([10, 255, 15, 253]), Verdict::PassTo([2, 0, 0, 0, 0x0f, 0xfc]));
        // Of no VM.
        for target in [[10, 255, 0, 0], [10, 255, 15, 255], [10, 254, 0, 1], [192, 168, 0, 1]] {
            assert_eq!(of(target), Verdict::Pass, "{target:?}");
        }
    }
    let asked_again = arp_to([2, 0, 0, 0, 0, 8], 1, OWN.octets(), PEER);
    assert_eq!(verdict_on(&asked_again), Verdict::Pass, "Linux asks one that it knows");
    let unknown = Owner { neighbours: None, ..owner(MAC) };
    assert_eq!(judge(&arp_to(ALL, 1, OWN.octets(), PEER), &unknown), Verdict::Pass);
}

#[test]
fn the_gateways_mac_is_answered_here() {
    for (to, sender) in [(ALL, OWN.octets()), (ALL, [0; 4]), ([6, 0, 0, 0, 0, 0xee], OWN.octets())] {
        let Verdict::Answer(answer) = verdict_on(&arp_to(to, 1, sender, GATEWAY)) else { panic!() };
        let gateway = [6, 0, 0, 0, 0, 0xee];
        let wanted =
            [&MAC[..], &gateway, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &gateway, &GATEWAY, &MAC, &sender].concat();
        assert_eq!(answer[HEADER_BYTES..HEADER_BYTES + 42], wanted);
        assert!(answer[HEADER_BYTES + 42..].iter().chain(&answer[..HEADER_BYTES]).all(|byte| *byte == 0));
    }
}

#[test]
fn what_all_know_anyway_is_told_to_nobody() {
    let own = OWN.octets();
    // Gratuitous requests and answers, and the question whether somebody else has the address.
    for (operation, sender) in [(1, own), (2, own), (1, [0; 4])] {
        assert_eq!(verdict_on(&arp_to(ALL, operation, sender, own)), Verdict::Drop);
    }
    assert_eq!(verdict_on(&arp_to(PEER_MAC, 2, own, PEER)), Verdict::Pass, "an answer");
}

#[test]
fn a_request_leaves_to_its_neighbour() {
    let mut rig = rig(|all| all);
    transmit(&mut rig, &arp_to(ALL, 1, OWN.octets(), PEER), 5000);
    assert_eq!(rig.leaves(), Some(arp_to([2, 0, 0, 0, 0, 8], 1, OWN.octets(), PEER)));
    rig.driver.add(RX, &[(DATA, 2048, true)]);
    transmit(&mut rig, &arp_to(ALL, 1, OWN.octets(), GATEWAY), 5000);
    assert_eq!((rig.leaves(), rig.driver.used(RX)), (None, vec![(0, 66)]));
}

#[test]
fn a_segment_with_an_acknowledgement_is_answered_with_its_number() {
    assert_eq!(refused(&DATA_SEGMENT.from(PARENT)), (0x89ab_cdef, 0, 4));
    let fin = Segment { flags: 0x11, data: 0, options: 0, ..DATA_SEGMENT };
    assert_eq!(refused(&fin.from(PARENT)), (0x89ab_cdef, 0, 4));
    assert_eq!(refused(&DATA_SEGMENT.with_ip_options(PARENT, &[1; 40])), (0x89ab_cdef, 0, 4));
}

#[test]
fn the_answer_is_these_bytes() {
    let Verdict::Answer(answer) = verdict_on(&DATA_SEGMENT.from(PARENT)) else { panic!() };
    let ip = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x24, 0xc9, 10, 255, 0, 9, 10, 255, 0, 1];
    let tcp = [1, 0xbb, 0x9c, 0x40, 0x89, 0xab, 0xcd, 0xef, 0, 0, 0, 0, 0x50, 4, 0, 0, 0xa4, 0x42, 0, 0];
    assert_eq!(answer[26..46], ip);
    assert_eq!(answer[46..], tcp);
}

#[test]
fn without_an_acknowledgement_the_answer_acknowledges_all_of_the_segment() {
    let with = |flags, sequence, data| {
        let segment = Segment { flags, sequence, data, ..DATA_SEGMENT };
        refused(&segment.from(PARENT))
    };
    assert_eq!(with(0x02, 1000, 0), (0, 1001, 0x14), "SYN");
    assert_eq!(with(0x02, u32::MAX, 0), (0, 0, 0x14), "numbers go round");
    assert_eq!(with(0x02, 1000, 7), (0, 1008, 0x14), "SYN with data");
    assert_eq!(with(0x01, 1000, 7), (0, 1008, 0x14), "FIN");
    assert_eq!(with(0x03, 1000, 7), (0, 1009, 0x14), "both");
    assert_eq!(with(0x08, 1000, 7), (0, 1007, 0x14), "neither");
    // Longer than a frame, to be cut up by the host.
    assert_eq!(with(0x08, 1000, 65_000), (0, 66_000, 0x14));
    let padded = [Segment { flags: 0x02, data: 0, ..DATA_SEGMENT }.from(PARENT), vec![0; 6]].concat();
    assert_eq!(refused(&padded).1, 0x0102_0305, "padding is no data");
}

#[test]
fn resets_later_fragments_and_broken_segments_get_no_answer() {
    let good = DATA_SEGMENT.from(PARENT);
    let at_ip = HEADER_BYTES + 14;
    let at_tcp = at_ip + 20;
    for (place, value) in [
        (at_tcp + 13, 0x04),
        (at_tcp + 13, 0x14),
        (at_ip + 6, 0x1f),
        (at_ip + 7, 1),
        (at_ip + 9, 17),
        (at_tcp + 12, 0x40),
        (at_ip + 3, 51),
        (at_ip, 0x65),
        (at_ip, 0x44),
    ] {
        let mut bad = good.clone();
        bad[at_ip + 2] = 0;
        bad[at_ip + 3] = 132;
        bad[place] = value;
        assert_eq!(verdict_on(&bad), Verdict::Drop, "{value:#x} at {place}");
    }
    let mut first = good.clone();
    first[at_ip + 6] = 0x20;
    assert_eq!(refused(&first), (0x89ab_cdef, 0, 4), "the first fragment has all that it takes");
}

#[test]
fn frames_cut_off_are_dropped_from_where_they_cannot_be_read() {
    let segment = Segment { data: 0, ..DATA_SEGMENT }.from(PARENT);
    for length in 0..segment.len() {
        assert_eq!(verdict_on(&segment[..length]), Verdict::Drop, "{length} bytes");
    }
    assert_ne!(verdict_on(&segment), Verdict::Drop);
    let own = arp(OWN.octets());
    for length in 0..own.len() {
        assert_eq!(verdict_on(&own[..length]), Verdict::Drop, "{length} bytes");
    }
    let own = ipv4(OWN.octets(), 17, &[], &[]);
    for length in 0..own.len() {
        assert_eq!(verdict_on(&own[..length]), Verdict::Drop, "{length} bytes");
    }
}

#[test]
fn arp_of_other_kinds_is_dropped() {
    for place in 0..6 {
        let mut frame = arp(OWN.octets());
        frame[HEADER_BYTES + 14 + place] ^= 0x40;
        assert_eq!(verdict_on(&frame), Verdict::Drop);
    }
}

/// The host adds what is from `start` on, and puts the sum at `start + offset`.
fn with_checksum_at(mut frame: Vec<u8>, start: u16, offset: u16) -> Vec<u8> {
    frame[0] = 1;
    frame[6..8].copy_from_slice(&start.to_le_bytes());
    frame[8..10].copy_from_slice(&offset.to_le_bytes());
    frame
}

#[test]
fn the_host_writes_no_checksum_over_what_was_judged() {
    let own = OWN.octets();
    for (frame, end) in [(DATA_SEGMENT.from(own), 34), (arp(own), 42), (ethernet(0x86dd, &[0; 60]), 14)] {
        for (start, offset) in [(0, end - 1), (end - 1, 0), (0, 12), (12, 0)] {
            assert_eq!(verdict_on(&with_checksum_at(frame.clone(), start, offset)), Verdict::Drop);
        }
        assert_eq!(verdict_on(&with_checksum_at(frame.clone(), 0, end)), Verdict::Pass);
        assert_eq!(verdict_on(&with_checksum_at(frame.clone(), u16::MAX, u16::MAX)), Verdict::Pass);
        let mut unasked = with_checksum_at(frame, 0, 26);
        unasked[0] = 0;
        assert_eq!(verdict_on(&unasked), Verdict::Pass);
    }
    let usual = with_checksum_at(DATA_SEGMENT.from(PARENT), 34, 16);
    assert_eq!(refused(&usual), (0x89ab_cdef, 0, 4));
}

/// The guest sends a frame in pieces of this size.
fn transmit(rig: &mut Rig, frame: &[u8], piece_bytes: usize) {
    let mut parts = Vec::new();
    for (index, piece) in (0_u64..).zip(frame.chunks(piece_bytes)) {
        let address = DATA + 0x2_0000 + index * piece_bytes as u64 * 2;
        rig.driver.put(address, piece);
        parts.push((address, piece.len() as u32, false));
    }
    rig.driver.add(TX, &parts);
    rig.driver.run(TX);
    assert_eq!(rig.driver.used(TX).len(), 1, "the guest does not notice");
}

#[test]
fn a_header_in_pieces_is_read_as_one() {
    for piece_bytes in [1, 7, 13, 31, 5000] {
        let mut rig = rig(|all| all);
        rig.driver.add(RX, &[(DATA, 2048, true)]);
        let segment = Segment { data: 40, ..DATA_SEGMENT };
        transmit(&mut rig, &segment.from(OWN.octets()), piece_bytes);
        assert_eq!(rig.leaves(), Some(segment.from(OWN.octets())), "not a byte is changed");
        assert_eq!(rig.driver.used(RX), []);
        transmit(&mut rig, &segment.from(PARENT), piece_bytes);
        assert_eq!(rig.leaves(), None, "not a byte leaves");
        assert_eq!(rig.driver.used(RX), [(0, 66)]);
        let answer = rig.driver.get(DATA, 66);
        assert_eq!(answer[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], "one buffer");
        assert_eq!(numbers(&answer), (0x89ab_cdef, 0, 4));
    }
}

#[test]
fn long_and_short_frames_in_turn_leave_as_they_are() {
    let mut rig = rig(|all| all);
    for data in [100, 60_000, 0, 1400, 65_000] {
        let frame = Segment { data, ..DATA_SEGMENT }.from(OWN.octets());
        transmit(&mut rig, &frame, 50_000);
        assert_eq!(rig.leaves(), Some(frame));
    }
}

#[test]
fn answers_are_few_and_wait_for_buffers() {
    let mut rig = rig(|all| all);
    rig.driver.run(RX);
    for acknowledged in 0..1000 {
        transmit(&mut rig, &Segment { acknowledged, data: 0, ..DATA_SEGMENT }.from(PARENT), 5000);
    }
    assert_eq!(rig.leaves(), None);
    for buffer in 0..100 {
        rig.driver.add(RX, &[(DATA + 0x400 * buffer, 0x400, true)]);
    }
    rig.driver.run(RX);
    // One more than are kept: the one that was on its way to the guest.
    assert_eq!(rig.driver.used(RX).len(), ANSWERS_MAX + 1);
    for index in 0..=ANSWERS_MAX as u32 {
        let answer = rig.driver.get(DATA + 0x400 * u64::from(index), ANSWER_BYTES);
        assert_eq!(numbers(&answer), (index, 0, 4), "in their order");
    }
    transmit(&mut rig, &DATA_SEGMENT.from(PARENT), 5000);
    assert_eq!(rig.driver.used(RX).len(), 1, "and later ones come again");
}

#[test]
fn answers_go_between_the_frames_of_the_port() {
    let mut rig = rig(|all| all);
    rig.driver.run(RX);
    let mut arriving = ethernet(0x86dd, &[1; 100]);
    arriving[HEADER_BYTES..HEADER_BYTES + 6].copy_from_slice(&MAC);
    rig.arrive(&arriving);
    rig.arrive(&arriving);
    transmit(&mut rig, &DATA_SEGMENT.from(PARENT), 5000);
    (0..3).for_each(|buffer| _ = rig.driver.add(RX, &[(DATA + 0x1000 * buffer, 2048, true)]));
    rig.driver.run(RX);
    let length = arriving.len() as u32;
    assert_eq!(rig.driver.used(RX), [(0, length), (1, 66), (2, length)]);
    assert_eq!(numbers(&rig.driver.get(DATA + 0x1000, 66)), (0x89ab_cdef, 0, 4));
    assert_eq!(rig.driver.get(DATA + 0x200c, 114), arriving[12..]);
}

#[test]
fn a_shut_link_answers_nothing_and_forgets_its_answers() {
    let mut rig = rig(|all| all);
    rig.driver.run(RX);
    transmit(&mut rig, &DATA_SEGMENT.from(PARENT), 5000);
    transmit(&mut rig, &DATA_SEGMENT.from(PARENT), 5000);
    rig.set_open(false);
    transmit(&mut rig, &DATA_SEGMENT.from(PARENT), 5000);
    rig.driver.add(RX, &[(DATA, 2048, true)]);
    rig.driver.run(RX);
    rig.set_open(true);
    assert_eq!(rig.driver.used(RX), []);
    transmit(&mut rig, &DATA_SEGMENT.from(PARENT), 5000);
    assert_eq!(rig.driver.used(RX), [(0, 66)]);
}

/// Bytes that often look like a frame worth a look.
fn likely_frames() -> impl Strategy<Value = Vec<u8>> {
    let whole = prop_oneof![
        prop::sample::select(vec![DATA_SEGMENT.from(PARENT), DATA_SEGMENT.from(OWN.octets()), arp(PARENT)]),
        prop::collection::vec(any::<u8>(), 0..200),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (whole, changes, 0_usize..250).prop_map(|(mut frame, changes, length)| {
        for (place, value) in changes.into_iter().filter(|_| !frame.is_empty()).collect::<Vec<_>>() {
            let at = place.index(frame.len());
            frame[at] = value;
        }
        frame.truncate(length);
        frame
    })
}

proptest! {
    /// Nothing panics, what passes is as it was, and no IPv4 packet or ARP of somebody else passes.
    #[test]
    fn any_bytes_pass_or_are_dropped(frame in likely_frames()) {
        let verdict = verdict_on(&frame);
        let at = HEADER_BYTES + 14;
        let sender_at = match frame.get(at - 2..at) {
            Some([8, 0]) => Some(at + 12),
            Some([8, 6]) => Some(at + 14),
            _ => None,
        };
        let is_own = sender_at.is_none_or(|at| {
            frame.get(at..at + 4).is_some_and(|sender| sender == OWN.octets() || sender == [0; 4])
        });
        let leaves = matches!(verdict, Verdict::Pass | Verdict::PassTo(_));
        prop_assert!(is_own || !leaves);
        prop_assert!(!leaves || frame[at - 8..at - 2] == MAC);
        if let (Verdict::Answer(answer), Some([8, 0])) = (verdict, frame.get(at - 2..at)) {
            prop_assert!(sums_up(&answer[26..46]));
            prop_assert!(sums_up(&[&answer[38..46], &[0, 6, 0, 20], &answer[46..]].concat()));
        }
    }

    /// The same through the device, in pieces.
    #[test]
    fn any_frame_leaves_whole_or_not_at_all(frame in likely_frames(), piece_bytes in 1_usize..300) {
        prop_assume!(!frame.is_empty() && frame.len() <= FRAME_MAX_BYTES);
        let mut rig = rig(|all| all);
        rig.driver.add(RX, &[(DATA, 2048, true)]);
        transmit(&mut rig, &frame, piece_bytes);
        let verdict = verdict_on(&frame);
        let left = match verdict {
            Verdict::Pass => Some(frame),
            Verdict::PassTo(mac) => Some([&frame[..HEADER_BYTES], &mac, &frame[HEADER_BYTES + 6..]].concat()),
            Verdict::Drop | Verdict::Answer(_) => None,
        };
        prop_assert_eq!(rig.leaves(), left);
        let answers = usize::from(matches!(verdict, Verdict::Answer(_)));
        prop_assert_eq!(rig.driver.used(RX).len(), answers);
    }
}
