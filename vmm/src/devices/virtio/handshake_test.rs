use super::*;
use proptest::prelude::*;

const OFFERED: u64 = TRANSPORT_FEATURES | 0b1010;

fn accept(handshake: &mut Handshake, features: u64) {
    for select in 0..2 {
        handshake.select_accepted(select);
        handshake.accept(half(features, select));
    }
}

fn up_to_features(features: u64) -> Handshake {
    let mut handshake = Handshake::new(OFFERED);
    assert_eq!(handshake.write_status(1), Step::None);
    assert_eq!(handshake.write_status(3), Step::None);
    accept(&mut handshake, features);
    assert_eq!(handshake.write_status(11), Step::None);
    handshake
}

#[test]
fn the_steps_of_a_driver_lead_to_activation() {
    let mut handshake = up_to_features(OFFERED);
    assert!(handshake.may_set_queues());
    assert_eq!(handshake.write_status(15), Step::Activate);
    assert!(handshake.is_active());
    assert!(!handshake.may_set_queues());
    assert_eq!(handshake.write_status(15), Step::None, "activated once");
    assert_eq!(handshake.write_status(0), Step::Reset);
    assert_eq!((handshake.status(), handshake.features()), (0, 0));
}

#[test]
fn features_that_were_not_offered_or_legacy_are_refused() {
    for features in [OFFERED | 1, OFFERED & !(1 << VIRTIO_F_VERSION_1), 0, u64::MAX] {
        let mut handshake = up_to_features(features);
        assert_eq!(handshake.status(), 3);
        assert_eq!(handshake.write_status(15), Step::None);
        assert_eq!(handshake.status(), 3);
    }
}

#[test]
fn features_beyond_the_64th_bit_are_refused() {
    let mut handshake = Handshake::new(OFFERED);
    handshake.write_status(3);
    accept(&mut handshake, OFFERED);
    handshake.select_accepted(2);
    handshake.accept(1);
    handshake.write_status(11);
    assert_eq!(handshake.status(), 3);
}

#[test]
fn features_do_not_change_once_agreed() {
    let mut handshake = up_to_features(TRANSPORT_FEATURES);
    accept(&mut handshake, OFFERED);
    assert_eq!(handshake.features(), TRANSPORT_FEATURES);
}

#[test]
fn a_failed_device_is_activated_only_after_a_reset() {
    let mut handshake = up_to_features(OFFERED);
    handshake.fail();
    assert_eq!(handshake.write_status(15), Step::None);
    assert!(!handshake.is_active());
    assert_eq!(handshake.write_status(0), Step::Reset);
    assert_eq!(handshake.status(), 0);
}

proptest! {
    #[test]
    fn no_order_of_writes_activates_without_agreed_features(
        writes in prop::collection::vec((0_u8..4, any::<u32>(), prop::sample::select(vec![0_u32, 1, 3, 7, 11, 15, 64, 128, 143])), 0..64),
    ) {
        let mut handshake = Handshake::new(OFFERED);
        for (register, value, status) in writes {
            match register {
                0 => handshake.select_accepted(value % 4),
                1 => handshake.accept(value & 0x0f),
                2 => handshake.accept(value),
                _ => {
                    let before = handshake.is_active();
                    let step = handshake.write_status(status);
                    prop_assert_eq!(step == Step::Activate, !before && handshake.is_active());
                }
            }
            if handshake.is_active() {
                prop_assert_eq!(handshake.features() & !OFFERED, 0);
                prop_assert!(handshake.features() & (1 << VIRTIO_F_VERSION_1) != 0);
            }
        }
    }
}
