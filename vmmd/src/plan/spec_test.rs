use super::*;
use patina_proto::v1::CpuBaseline;

fn images() -> DefaultImages {
    DefaultImages { kernel: "/k".into(), rootfs: "/r".into() }
}

fn fields(request: CreateVmRequest) -> Vec<String> {
    Spec::check(request, &images()).unwrap_err().into_iter().map(|v| v.field).collect()
}

fn port(host_port: u32, guest_port: u32, host_address: &str) -> PublishedPort {
    PublishedPort { host_port, guest_port, host_address: host_address.into() }
}

#[test]
fn an_empty_request_is_a_small_vm_of_the_default_images() {
    let spec = Spec::check(CreateVmRequest::default(), &images()).unwrap();
    assert_eq!((spec.vcpus, spec.memory_mib, spec.name), (1, 256, None));
    assert_eq!((spec.kernel, spec.rootfs), ("/k".into(), "/r".into()));
}

#[test]
fn every_wrong_field_is_named() {
    let request = CreateVmRequest {
        name: "../etc".into(),
        vcpus: 17,
        memory_mib: 63,
        kernel: "vmlinux".into(),
        rootfs: "r".into(),
        cmdline: "a\nb".into(),
        ports: vec![port(0, 80, ""), port(80, 65536, ""), port(1, 1, "localhost")],
        cold: false,
        cpu_baseline: Some(CpuBaseline { hosts: vec!["a".into(), "b\n".into()] }),
    };
    let expected = [
        "name",
        "vcpus",
        "memory_mib",
        "cmdline",
        "ports[0].host_port",
        "ports[1].guest_port",
        "ports[2].host_address",
        "kernel",
        "rootfs",
        "cpu_baseline.hosts",
    ];
    assert_eq!(fields(request), expected);
}

#[test]
fn numbers_beyond_a_byte_do_not_wrap() {
    assert_eq!(fields(CreateVmRequest { vcpus: 257, ..Default::default() }), ["vcpus"]);
    assert_eq!(fields(CreateVmRequest { memory_mib: 65_537, ..Default::default() }), ["memory_mib"]);
}

#[test]
fn the_limits_themselves_are_allowed() {
    let request = CreateVmRequest {
        vcpus: 16,
        memory_mib: 65_536,
        cmdline: "x".repeat(CMDLINE_MAX_BYTES),
        ..Default::default()
    };
    assert!(Spec::check(request.clone(), &images()).is_ok());
    let request = CreateVmRequest { cmdline: "x".repeat(CMDLINE_MAX_BYTES + 1), ..request };
    assert_eq!(fields(request), ["cmdline"]);
}

#[test]
fn a_host_port_is_published_once() {
    let twice = vec![port(80, 1, ""), port(80, 2, "127.0.0.1"), port(80, 2, "127.0.0.2")];
    assert_eq!(fields(CreateVmRequest { ports: twice, ..Default::default() }), ["ports[1].host_port"]);
    let many = vec![port(80, 1, ""); PORTS_MAX + 1];
    assert_eq!(fields(CreateVmRequest { ports: many, ..Default::default() }), ["ports"]);
}
