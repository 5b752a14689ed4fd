use super::super::{Step, TRANSPORT_FEATURES};
use super::*;
use proptest::prelude::*;

fn state(status: u32, accepted: u64) -> HandshakeState {
    HandshakeState { status, accepted, offered_select: 0, accepted_select: 0 }
}

#[test]
fn only_what_a_driver_can_reach_is_restored() {
    for status in [0, 1, 3, 11, 15, 15 | 64, 3 | 128, 128] {
        assert!(state(status, TRANSPORT_FEATURES).restore(TRANSPORT_FEATURES).is_ok());
    }
    for status in [2, 4, 5, 7, 8, 12, 16, 15 | 32, u32::MAX] {
        let result = state(status, TRANSPORT_FEATURES).restore(TRANSPORT_FEATURES);
        assert!(matches!(result, Err(HandshakeError::Status { .. })), "{status:#x}");
    }
}

#[test]
fn a_device_without_the_drivers_features_is_refused() {
    let restore = |status, accepted| state(status, accepted).restore(TRANSPORT_FEATURES);
    assert!(matches!(restore(15, TRANSPORT_FEATURES | 1), Err(HandshakeError::Features { .. })));
    assert!(matches!(restore(11, 0), Err(HandshakeError::Features { .. })), "without VERSION_1");
    assert!(restore(3, TRANSPORT_FEATURES | 1).is_ok(), "not settled yet");
}

proptest! {
    /// Whatever a driver does, its handshake comes back as it was and goes on the same.
    #[test]
    fn any_handshake_goes_on(writes in prop::collection::vec((0_u32..4, prop_oneof![0_u32..16, any::<u32>()]), 0..30), next in 0_u32..256) {
        let mut handshake = Handshake::new(TRANSPORT_FEATURES);
        for (register, value) in writes {
            match register {
                0 => handshake.select_offered(value),
                1 => handshake.select_accepted(value),
                2 => handshake.accept(value),
                _ if handshake.write_status(value) == Step::Activate => handshake.fail(),
                _ => {}
            }
        }
        let mut restored = HandshakeState::save(&handshake).unwrap().restore(TRANSPORT_FEATURES).unwrap();
        prop_assert_eq!(restored.offered(), handshake.offered());
        prop_assert_eq!(restored.features(), handshake.features());
        prop_assert_eq!(restored.write_status(next), handshake.write_status(next));
        prop_assert_eq!(HandshakeState::save(&restored), HandshakeState::save(&handshake));
    }
}
