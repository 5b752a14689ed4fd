use super::*;
use patina_control::config::KvmKind;
use patina_snapshot::{cpuid::CpuidEntry, facts::HostFacts};
use tonic_types::StatusExt as _;

fn good() -> v1::RequestTicketRequest {
    v1::RequestTicketRequest {
        family: Uuid::new_v4().to_string(),
        max_cpus: 4,
        min_vms: 1,
        min_cpus_per_vm: 1,
        vcpus: 1,
        memory_mib: 256,
        ..v1::RequestTicketRequest::default()
    }
}

fn fields(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().unwrap().field_violations;
    violations.into_iter().map(|violation| violation.field).collect()
}

#[test]
fn what_is_in_its_bounds_passes() {
    let demand = demand(good()).unwrap();
    assert_eq!((demand.request_id, demand.ttl_ms, demand.use_by), (None, None, None));
}

#[test]
fn everything_that_is_wrong_is_named_at_once() {
    let request = v1::RequestTicketRequest {
        family: "x".into(),
        request_id: "r".repeat(65),
        host_ids: vec!["h".into()],
        policy: 9,
        timeout_ms: WAIT_MAX_MS + 1,
        ttl_ms: TTL_MAX_MS + 1,
        ..v1::RequestTicketRequest::default()
    };
    let mut found = fields(&demand(request).unwrap_err());
    found.sort();
    let mut expected = [
        "family",
        "request_id",
        "max_cpus",
        "min_vms",
        "min_cpus_per_vm",
        "vcpus",
        "memory_mib",
        "timeout_ms",
        "host_ids",
        "policy",
        "ttl_ms",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected);
}

#[test]
fn absurd_numbers_are_refused_with_the_bounds() {
    let refused = |request| demand(request).unwrap_err().message().to_owned();
    let most = u32::MAX;
    assert!(refused(v1::RequestTicketRequest { max_cpus: most, ..good() }).contains("between 1 and 65536"));
    assert!(refused(v1::RequestTicketRequest { min_vms: 257, ..good() }).contains("between 1 and 256"));
    assert!(refused(v1::RequestTicketRequest { vcpus: 65, ..good() }).contains("between 1 and 64"));
    assert!(refused(v1::RequestTicketRequest { memory_mib: most, ..good() }).contains("1048576"));
    let many = vec![Uuid::new_v4().to_string(); 257];
    assert!(refused(v1::RequestTicketRequest { host_ids: many, ..good() }).contains("257 are more than 256"));
}

#[test]
fn what_the_parent_needs_is_checked_as_what_a_host_has() {
    let facts = HostFacts { page_bytes: 4096, xcr0: 7, ..HostFacts::of_cpuid(KvmKind::Svm, Vec::new()) };
    let needs = crate::host::facts::message(&facts, false);
    let of = |needs| demand(v1::RequestTicketRequest { parent_needs: needs, ..good() });
    assert_eq!(of(None).unwrap().needs, None);
    assert_eq!(of(Some(needs.clone())).unwrap().needs.as_deref(), Some(&facts));
    let wrong = v1::HostFacts { cpu_vendor: Vec::new(), cpu_model: 65_536, ..needs };
    let fields = fields(&of(Some(wrong.clone())).unwrap_err());
    assert_eq!(fields, ["parent_needs.cpu_model", "parent_needs.cpu_vendor"]);
    assert!(super::facts(wrong).is_err());
}

fn clones_of(vmids: Vec<u32>) -> v1::AdmitClonesRequest {
    v1::AdmitClonesRequest {
        family: Uuid::from_u128(1).to_string(),
        host_id: Uuid::from_u128(2).to_string(),
        vmids,
        vcpus: 2,
        memory_mib: 256,
        ..v1::AdmitClonesRequest::default()
    }
}

#[test]
fn clones_by_count_become_a_demand_of_just_their_size_on_their_host() {
    let request = v1::AdmitClonesRequest { host_epoch: 9, parent_vmid: 4, ..clones_of(vec![5, 6, 7]) };
    let demand = clones(request).unwrap();
    assert_eq!((demand.min_vms, demand.max_cpus, demand.min_cpus_per_vm, demand.timeout_ms), (3, 6, 2, 0));
    assert_eq!(demand.hosts, [Uuid::from_u128(2)]);
    let by = UseBy { parent_vmid: 4, vmids: vec![5, 6, 7], host_epoch: Some(9) };
    assert_eq!(demand.use_by, Some(by));
}

#[test]
fn all_that_is_wrong_with_clones_by_count_is_named_at_once() {
    let wrong = v1::AdmitClonesRequest { request_id: "r".repeat(65), ..v1::AdmitClonesRequest::default() };
    let mut found = fields(&clones(wrong).unwrap_err());
    found.sort();
    assert_eq!(found, ["family", "host_id", "memory_mib", "request_id", "vcpus", "vmids"]);
    assert_eq!(fields(&clones(clones_of((1..=257).collect())).unwrap_err()), ["vmids"]);
}

#[test]
fn a_kill_names_vmids_or_a_ticket() {
    let uuid = || Uuid::new_v4().to_string();
    let request = |family: &str, vmids: &[u32], ticket: &str| v1::KillRequest {
        family: family.into(),
        vmids: vmids.into(),
        ticket: ticket.into(),
        reason: String::new(),
    };
    assert!(kill(request(&uuid(), &[1], "")).is_ok());
    assert!(kill(request("", &[], &uuid())).is_ok());
    assert_eq!(fields(&kill(request("", &[1], "")).unwrap_err()), ["family"]);
    assert_eq!(fields(&kill(request(&uuid(), &[], "")).unwrap_err()), ["vmids"]);
    assert_eq!(fields(&kill(request(&uuid(), &[1], &uuid())).unwrap_err()), ["vmids"]);
    assert_eq!(fields(&kill(request(&uuid(), &[1; 1025], "")).unwrap_err()), ["vmids"]);
}

#[test]
fn a_host_says_who_it_is_and_what_runs() {
    let info = v1::HostInfo {
        id: Uuid::new_v4().to_string(),
        name: "h".into(),
        cpus: 2,
        memory_mib: 1024,
        ..v1::HostInfo::default()
    };
    let good = v1::Register { info: Some(info), ..v1::Register::default() };
    assert_eq!(register(good.clone()).unwrap().0.max_vms, None);
    let nobody = register(v1::Register::default()).unwrap_err();
    assert_eq!(fields(&nobody), ["info.id", "info.cpus", "info.memory_mib"]);
    let many = v1::Register { running: vec![v1::RunningClone::default(); CLONES_MAX + 1], ..good.clone() };
    assert!(fields(&register(many).unwrap_err()).contains(&"running".to_owned()));
    let line = v1::HostInfo { name: "a\nb".into(), ..good.info.clone().unwrap() };
    assert_eq!(
        fields(&register(v1::Register { info: Some(line), ..good.clone() }).unwrap_err()),
        ["info.name"]
    );
    let clone = v1::EndedClone { ticket: "x".into(), ..v1::EndedClone::default() };
    let unclear = ended(&v1::ClonesEnded { serial: 1, clones: vec![clone] }).unwrap_err();
    assert_eq!(fields(&unclear), ["clones.end", "clones.ticket"]);
    let much = v1::HostInfo { cpu_percent: 102_401, memory_percent: 102_401, ..good.info.clone().unwrap() };
    let much = register(v1::Register { info: Some(much), ..good.clone() }).unwrap_err();
    assert_eq!(fields(&much), ["info.cpu_percent", "info.memory_percent"]);
    let own = v1::HostInfo { cpu_percent: 102_400, memory_percent: 0, ..good.info.clone().unwrap() };
    let own = register(v1::Register { info: Some(own), ..good }).unwrap().0;
    assert_eq!((own.cpu_percent, own.memory_percent), (Some(102_400), None));
}

#[test]
fn what_a_host_says_of_its_cpu_is_within_limits_and_is_shown_as_it_was_said() {
    let leaf = v1::CpuidLeaf { leaf: 7, subleaf: 1, eax: 1, ebx: 2, ecx: 3, edx: u32::MAX };
    let good = v1::HostFacts {
        cpu_vendor: b"AuthenticAMD".to_vec(),
        cpu_family: 25,
        cpu_model: 17,
        cpu_stepping: 1,
        kvm_kind: v1::KvmKind::Svm.into(),
        page_bytes: 4096,
        xcr0: 7,
        tsc_khz: 2_600_000,
        can_scale_tsc: true,
        kernel: "6.18.1".into(),
        cpuid: vec![leaf],
        lazy_memory: true,
    };
    let said = |facts: v1::HostFacts| {
        let id = Uuid::new_v4().to_string();
        let info = v1::HostInfo { id, cpus: 2, memory_mib: 9, facts: Some(facts), ..Default::default() };
        register(v1::Register { info: Some(info), ..v1::Register::default() })
    };
    let facts = said(good.clone()).unwrap().0.facts.unwrap();
    assert_eq!(crate::host::facts::message(&facts.host, facts.lazy_memory), good);
    let wrong = v1::HostFacts {
        cpu_vendor: b"short".to_vec(),
        cpu_family: 65_536,
        cpu_model: 65_536,
        cpu_stepping: 65_536,
        kvm_kind: v1::KvmKind::None.into(),
        page_bytes: 0,
        kernel: "x".repeat(65),
        cpuid: vec![leaf; facts::LEAVES_MAX + 1],
        ..good.clone()
    };
    let fields = fields(&said(wrong).unwrap_err());
    let fields: Vec<_> = fields.iter().map(|field| field.strip_prefix("info.facts.").unwrap()).collect();
    let all = [
        "kvm_kind",
        "cpu_family",
        "cpu_model",
        "cpu_stepping",
        "cpu_vendor",
        "cpuid",
        "page_bytes",
        "kernel",
    ];
    assert_eq!(fields.iter().collect::<BTreeSet<_>>(), all.iter().collect(), "{fields:?}");
    let escape = v1::HostFacts { kernel: "6\x1b[2J".into(), ..good };
    assert!(said(escape).is_err());
}

#[test]
fn a_host_registers_whatever_its_cpu_and_kernel_say() {
    let ones = |function, index| CpuidEntry { function, index, eax: !0, ebx: !0, ecx: !0, edx: !0, flags: 0 };
    let leaves = [1, 6, 7, 0x4000_0001, 0x8000_0001, 0x8000_0007, 0x8000_0008, 0x8000_0021];
    let leaves = leaves.into_iter().map(|leaf| ones(leaf, 0));
    let more = [7, 0xd].into_iter().flat_map(|leaf| (0..63).map(move |subleaf| ones(leaf, subleaf)));
    for cpuid in [Vec::new(), leaves.chain(more).collect()] {
        let kernel = format!("6.1\x1b[2J\n{}", "ä".repeat(100));
        let facts = HostFacts::of_cpuid(KvmKind::Software, cpuid);
        let facts = HostFacts { vendor: [0xff; 12], xcr0: !0, page_bytes: 4096, kernel, ..facts };
        let id = Uuid::new_v4().to_string();
        let said = Some(crate::host::facts::message(&facts, true));
        let info = v1::HostInfo { id, cpus: 2, memory_mib: 9, facts: said, ..Default::default() };
        let (info, _) = register(v1::Register { info: Some(info), ..v1::Register::default() }).unwrap();
        let known = info.facts.unwrap().host;
        assert_eq!((known.vendor, known.kernel.chars().count()), ([0xff; 12], 64));
        assert_eq!(known.check(&facts), Ok(()));
    }
}

#[test]
fn a_host_says_how_much_memory_is_free() {
    let images = |digests: &[&[u8]]| {
        let digests = digests.iter().map(|digest| digest.to_vec()).collect();
        beat(v1::Beat { images: Some(v1::Images { digests }), ..v1::Beat::default() })
    };
    assert_eq!(images(&[&[7; 32], &[7; 32]]).unwrap().images, Some([[7; 32]].into()));
    assert_eq!(fields(&images(&[&[7; 31]]).unwrap_err()), ["images"]);
    assert_eq!(fields(&images(&[[7; 32].as_slice(); 65]).unwrap_err()), ["images"]);
    assert_eq!(beat(v1::Beat::default()).unwrap().images, None);
    let of = |free_memory_mib| beat(v1::Beat { free_memory_mib, ..v1::Beat::default() });
    assert_eq!(of(None).unwrap().free_memory_mib, None);
    assert_eq!(of(Some(0)).unwrap().free_memory_mib, Some(0));
    assert_eq!(fields(&of(Some(u64::MAX)).unwrap_err()), ["free_memory_mib"]);
}

#[test]
fn a_host_says_which_masters_it_has_and_which_have_ended() {
    let info = v1::HostInfo { id: Uuid::new_v4().to_string(), cpus: 2, memory_mib: 9, ..Default::default() };
    let good = |families: Option<Vec<String>>| v1::Register {
        info: Some(info.clone()),
        masters: families.map(|families| v1::Masters { families }),
        ..v1::Register::default()
    };
    let family = Uuid::new_v4();
    assert_eq!(register(good(None)).unwrap().1.masters, None);
    assert_eq!(register(good(Some(vec![]))).unwrap().1.masters, Some([].into()));
    assert_eq!(register(good(Some(vec![family.to_string()]))).unwrap().1.masters, Some([family].into()));
    assert_eq!(fields(&register(good(Some(vec!["x".into()]))).unwrap_err()), ["masters.families"]);
    let many = vec![family.to_string(); CLONES_MAX + 1];
    assert_eq!(fields(&register(good(Some(many))).unwrap_err()), ["masters.families"]);
    let end = |ticket: &str, vmid, family: &str| {
        let clone = v1::EndedClone {
            ticket: ticket.into(),
            vmid,
            end: v1::VmEnd::Ended.into(),
            family: family.into(),
        };
        ended(&v1::ClonesEnded { serial: 1, clones: vec![clone] })
    };
    let (master, ticket) = (family.to_string(), Uuid::new_v4());
    assert_eq!(end("", 0, &master).unwrap().masters, [family]);
    assert_eq!(end(&ticket.to_string(), 3, "").unwrap().clones, [(ticket, 3, VmEnd::Ended)]);
    assert_eq!(fields(&end("", 1, &master).unwrap_err()), ["clones.vmid"]);
    assert_eq!(fields(&end("", 0, "").unwrap_err()), ["clones.family"]);
}

#[test]
fn pages_have_bounds_and_tokens_are_ours() {
    assert_eq!([page_size(0), page_size(1), page_size(1000), page_size(u32::MAX)], [1000, 1, 1000, 1000]);
    let id = Uuid::new_v4();
    assert_eq!(ticket_token(&format!("7.{id}")).unwrap(), Some((7, id)));
    assert_eq!(host_token(&id.to_string()).unwrap(), Some(id));
    assert!(ticket_token("").unwrap().is_none() && host_token("").unwrap().is_none());
    assert_eq!(fields(&ticket_token("7").unwrap_err()), ["page_token"]);
    assert_eq!(fields(&host_token("7").unwrap_err()), ["page_token"]);
}

#[test]
fn a_beat_names_masters_or_none() {
    let of = |families: Option<Vec<String>>| {
        let masters = families.map(|families| v1::Masters { families });
        beat(v1::Beat { masters, ..v1::Beat::default() }).map(|beat| beat.masters)
    };
    let family = Uuid::from_u128(7);
    assert_eq!(of(None).unwrap(), None);
    assert_eq!(of(Some(vec![])).unwrap(), Some([].into()));
    assert_eq!(of(Some(vec![family.to_string()])).unwrap(), Some([family].into()));
    assert_eq!(fields(&of(Some(vec!["x".into()])).unwrap_err()), ["masters.families"]);
    let many = vec![family.to_string(); CLONES_MAX + 1];
    assert_eq!(fields(&of(Some(many)).unwrap_err()), ["masters.families"]);
}
