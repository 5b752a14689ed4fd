use super::*;
use tonic::Code;

#[test]
fn an_agent_prepares_and_holds_unless_the_request_says_otherwise() {
    let of = |value: i32| prepare(&v1::CloneVmRequest { prepare: value, ..Default::default() });
    assert_eq!(of(0).unwrap(), Prepare::Ask { hold: true, agent_abi_min: 0 });
    assert_eq!(of(v1::Prepare::Hold.into()).unwrap(), Prepare::Ask { hold: true, agent_abi_min: 0 });
    assert_eq!(of(v1::Prepare::NoHold.into()).unwrap(), Prepare::Ask { hold: false, agent_abi_min: 0 });
    assert_eq!(of(v1::Prepare::None.into()).unwrap(), Prepare::Not);
    let newer = of(99).unwrap_err();
    assert!(newer.code() == Code::InvalidArgument && newer.message().contains("99"), "{newer}");
}

#[test]
fn a_page_has_at_most_a_thousand_vms() {
    assert_eq!([0, 1, 1000, 1001, u32::MAX].map(page_size), [1000, 1, 1000, 1000, 1000]);
}
