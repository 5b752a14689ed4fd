use super::super::tests::{MAC, OWN, Rig, owner, rig};
use super::super::{HEADER_BYTES, RX};
use super::*;
use crate::devices::virtio::testing::DATA;

const PEER: [u8; 4] = [10, 255, 0, 9];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
const ALL: [u8; 6] = [0xff; 6];

/// A frame of the peer.
fn ethernet(to: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[0; HEADER_BYTES], &to[..], &PEER_MAC, &ethertype.to_be_bytes(), payload].concat()
}

fn request(to: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    ethernet(to, 0x0806, &[&[0, 1, 8, 0, 6, 4, 0, 1], &PEER_MAC[..], &sender, &[0; 6], &target].concat())
}

fn on(frame: &[u8]) -> Verdict {
    judge(frame, &owner(MAC))
}

/// The card has a buffer; what the guest and the network get of a frame that arrives.
fn arrives(rig: &mut Rig, frame: &[u8]) -> (usize, Option<Vec<u8>>) {
    rig.arrive(frame);
    (rig.driver.used(RX).len(), rig.leaves())
}

#[test]
fn the_guest_gets_what_is_for_it_or_for_all() {
    for to in [MAC, ALL, [1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]] {
        for ethertype in [0x0800, 0x86dd, 0x0806] {
            assert_eq!(on(&ethernet(to, ethertype, &[7; 40])), Verdict::Deliver);
        }
    }
    let mut reply = request(MAC, PEER, OWN.octets());
    reply[HEADER_BYTES + 21] = 2;
    assert_eq!(on(&reply), Verdict::Deliver);
}

#[test]
fn what_is_for_another_does_not_disturb_the_guest() {
    for to in [PEER_MAC, [2, 0, 0, 0, 0, 0], [0; 6]] {
        assert_eq!(on(&ethernet(to, 0x0800, &[7; 40])), Verdict::Drop);
    }
    for target in [PEER, [10, 255, 0, 1], [10, 255, 15, 254], [0; 4]] {
        assert_eq!(on(&request(ALL, PEER, target)), Verdict::Drop);
    }
    assert_eq!(on(&request(ALL, OWN.octets(), OWN.octets())), Verdict::Drop, "somebody with its address");
    let short = ethernet(MAC, 0x0800, &[]);
    assert!((0..short.len()).all(|length| on(&short[..length]) == Verdict::Drop));
}

#[test]
fn a_request_for_its_address_is_answered_without_the_guest() {
    let mut rig = rig(|all| all);
    (0..4).for_each(|at| _ = rig.driver.add(RX, &[(DATA + 0x1000 * at, 2048, true)]));
    rig.driver.run(RX);
    let own = OWN.octets();
    for (to, sender) in [(ALL, PEER), (MAC, PEER), (ALL, [0; 4])] {
        let (guests, Some(answer)) = arrives(&mut rig, &request(to, sender, own)) else { panic!() };
        let wanted =
            [&PEER_MAC[..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &MAC, &own, &PEER_MAC, &sender].concat();
        assert_eq!(answer[HEADER_BYTES..HEADER_BYTES + 42], wanted);
        assert_eq!(guests, 0);
    }
    assert_eq!(arrives(&mut rig, &request(ALL, PEER, [10, 255, 0, 5])), (0, None));
    assert_eq!(arrives(&mut rig, &ethernet(PEER_MAC, 0x0800, &[7; 40])), (0, None));
    assert_eq!(arrives(&mut rig, &ethernet(MAC, 0x0800, &[7; 40])), (1, None));
    rig.set_open(false);
    assert_eq!(arrives(&mut rig, &request(ALL, PEER, own)), (0, None), "who has no network is not there");
}

#[test]
fn a_flood_for_others_ends_and_what_is_behind_it_comes() {
    let mut rig = rig(|all| all);
    rig.driver.add(RX, &[(DATA, 2048, true)]);
    rig.driver.run(RX);
    for _ in 0..50 {
        rig.arrive(&ethernet(PEER_MAC, 0x0800, &[7; 40]));
    }
    assert_eq!(arrives(&mut rig, &ethernet(ALL, 0x0800, &[7; 40])), (1, None));
}
