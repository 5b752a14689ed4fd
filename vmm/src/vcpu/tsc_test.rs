use super::*;

#[test]
fn a_tsc_moves_on_to_the_moment_of_the_clock_and_not_by_hours() {
    let saved = TscState { khz: 1_000_000, value: 5_000, offset: u64::MAX - 999 };
    let moved = |host| TscStart::new(Some(saved), Some(host)).first.map(|first| first.value);
    // The host's TSC was at 6,000 then.
    assert_eq!(moved(6_000), Some(5_000));
    assert_eq!(moved(1_006_000), Some(1_005_000));
    assert_eq!(moved(5_999), Some(5_000), "the clock is read after the vCPUs");
    assert_eq!(moved(u64::from(saved.khz) * 10_000 + 6_000), Some(5_000));
    assert_eq!(TscStart::new(Some(saved), None).first, Some(saved));
}

#[test]
fn a_speed_that_is_measured_twice_is_the_same() {
    assert!(!is_another_speed(2_400_000, 2_400_500));
    assert!(is_another_speed(2_400_000, 2_401_000));
    assert!(is_another_speed(2_400_000, 3_000_000));
    assert!(!is_another_speed(0, 3_000_000) && !is_another_speed(3_000_000, 0));
}
