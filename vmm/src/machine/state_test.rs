//! The golden files have the containers and sections of each version as they were written, in hex.
//! If a layout changes, the version of its section changes, the new one gets a file of its own, and
//! the old files stay: they show what a reader of that version expects.
//!
//! `PATINA_WRITE_GOLDEN=1` writes the files that are missing.

use super::*;
use crate::devices::console::persist::PortState;
use crate::devices::virtio::DeviceState;
use crate::devices::virtio::block::persist::BlockState;
use crate::devices::virtio::handshake::persist::HandshakeState;
use crate::devices::virtio::queue::QueueRegisters;
use crate::devices::virtio::queue::persist::{Position, QueueState};
use crate::devices::virtio::vsock::connection::{Ports, Quiet};
use crate::devices::virtio::vsock::persist::VsockState;
use crate::machine::persist::{Clock, Pit, PitChannel};
use crate::vcpu::registers::{
    DebugRegs, Events, Exception, Interrupt, Msr, Nmi, Regs, Segment, Smi, Sregs, Table, TripleFault, Xcr,
    Xcrs,
};
use crate::vcpu::tsc::TscState;
use patina_control::config::KvmKind;
use patina_snapshot::container::{FORMAT, SECTIONS_MAX};
use patina_snapshot::cpuid::CpuidEntry;
use patina_snapshot::layout::Blob;
use patina_snapshot::sections::required;
use std::path::PathBuf;

/// Bytes that repeat late, so that a cut or shifted area shows.
fn pattern<const N: usize>(seed: u8) -> Blob<N> {
    let mut bytes = [0; N];
    (0_usize..).zip(&mut bytes).for_each(|(at, byte)| *byte = (at % 251) as u8 ^ seed);
    Blob(bytes)
}

fn segment(seed: u8) -> Segment {
    Segment {
        base: 0x1000_0000 + u64::from(seed),
        limit: 0x2000_0000 + u32::from(seed),
        selector: 0x3000 + u16::from(seed),
        type_: seed,
        present: seed + 1,
        dpl: seed + 2,
        db: seed + 3,
        s: seed + 4,
        l: seed + 5,
        g: seed + 6,
        avl: seed + 7,
        unusable: seed + 8,
    }
}

fn cpuid() -> Vec<CpuidEntry> {
    vec![
        CpuidEntry {
            function: 0,
            index: 0,
            flags: 0,
            eax: 16,
            ebx: 0x6874_7541,
            ecx: 0x444d_4163,
            edx: 0x6974_6e65,
        },
        CpuidEntry { function: 0xd, index: 0, flags: 1, eax: 7, ebx: 832, ecx: 832, edx: 0 },
    ]
}

fn regs() -> Regs {
    Regs {
        rax: 1,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rsp: 7,
        rbp: 8,
        r8: 9,
        r9: 10,
        r10: 11,
        r11: 12,
        r12: 13,
        r13: 14,
        r14: 15,
        r15: 16,
        rip: 17,
        rflags: 18,
    }
}

fn sregs() -> Sregs {
    Sregs {
        cs: segment(10),
        ds: segment(20),
        es: segment(30),
        fs: segment(40),
        gs: segment(50),
        ss: segment(60),
        tr: segment(70),
        ldt: segment(80),
        gdt: Table { base: 1, limit: 2 },
        idt: Table { base: 3, limit: 4 },
        cr0: 5,
        cr2: 6,
        cr3: 7,
        cr4: 8,
        cr8: 9,
        efer: 10,
        apic_base: 11,
        interrupt_bitmap: [12, 13, 14, 15],
    }
}

fn events() -> Events {
    Events {
        exception: Exception { injected: 1, nr: 2, has_error_code: 3, pending: 4, error_code: 5 },
        interrupt: Interrupt { injected: 6, nr: 7, soft: 8, shadow: 9 },
        nmi: Nmi { injected: 10, pending: 11, masked: 12 },
        sipi_vector: 13,
        flags: 14,
        smi: Smi { smm: 15, pending: 16, smm_inside_nmi: 17, latched_init: 18 },
        triple_fault: TripleFault { pending: 19 },
        exception_has_payload: 20,
        exception_payload: 21,
    }
}

fn vcpu() -> VcpuState {
    let mut xcrs = [Xcr::default(); 16];
    xcrs[0] = Xcr { xcr: 0, value: 7 };
    xcrs[15] = Xcr { xcr: 15, value: 16 };
    VcpuState {
        cpuid: cpuid(),
        mp_state: 1,
        regs: regs(),
        sregs: sregs(),
        pdptrs: Some([1, 2, 3, 4]),
        tsc: Some(TscState { khz: 2_600_000, value: 5, offset: 6 }),
        xsave: pattern(0x11),
        xcrs: Xcrs { nr_xcrs: 1, flags: 2, xcrs },
        debug_regs: DebugRegs { db: [1, 2, 3, 4], dr6: 5, dr7: 6, flags: 7 },
        lapic: pattern(0x22),
        msrs: vec![Msr { index: 0x10, data: 1 }, Msr { index: 0xc000_0080, data: 0xd01 }],
        events: events(),
    }
}

fn timer() -> Pit {
    let channel = |seed: u8| PitChannel {
        count: 0x1_0000 + u32::from(seed),
        latched_count: 0x100 + u16::from(seed),
        count_latched: seed,
        status_latched: seed + 1,
        status: seed + 2,
        read_state: seed + 3,
        write_state: seed + 4,
        write_latch: seed + 5,
        rw_mode: seed + 6,
        mode: seed + 7,
        bcd: seed + 8,
        gate: seed + 9,
        count_load_time: -i64::from(seed),
    };
    Pit { channels: [channel(10), channel(20), channel(30)], flags: 2 }
}

fn transport(device: DeviceState, position: Option<Position>) -> TransportState {
    let registers =
        QueueRegisters { size: 256, ready: true, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
    TransportState {
        handshake: HandshakeState { status: 15, accepted: 1 << 32, offered_select: 1, accepted_select: 2 },
        queue_select: 3,
        queues: vec![QueueState { registers, position }],
        interrupt_status: 1,
        config_generation: 4,
        device,
    }
}

fn transports() -> Vec<TransportState> {
    let ports = |host| Ports { host, guest: 1024 };
    let carried_on =
        Quiet { ports: ports(1), received: 2, told: 3, sent: 4, guest_buffer: 5, guest_forwarded: 6 };
    let vsock =
        VsockState { next_host_port: 7, resets: vec![ports(8)], told: Some(9), carried_on: Some(carried_on) };
    vec![
        transport(
            DeviceState::Block(BlockState { sectors: 64 }),
            Some(Position { next_avail: 5, next_used: 6 }),
        ),
        transport(DeviceState::Net, None),
        transport(DeviceState::Vsock(vsock), None),
        transport(DeviceState::Rng, None),
    ]
}

/// Every field has a value of its own, as far as its place could be mistaken for another's.
fn sample() -> MachineState {
    let port = PortState {
        baud_divisor_low: 1,
        baud_divisor_high: 2,
        interrupt_enable: 3,
        interrupt_identification: 4,
        line_control: 5,
        line_status: 6,
        modem_control: 7,
        modem_status: 8,
        scratch: 9,
        in_buffer: b"in".to_vec(),
    };
    MachineState {
        memory_mib: 64,
        memory: Extents::whole(64 << 20).overlay(std::slice::from_ref(&(0x1000..0x3000)), 1),
        is_held: true,
        vcpus: vec![vcpu()],
        vm: VmState {
            irqchips: [pattern(1), pattern(2), pattern(3)],
            pit: timer(),
            clock: Clock { clock: 1, flags: 2, realtime: 3, host_tsc: 4 },
        },
        transports: transports(),
        console: ConsoleState { port, input: b"input".to_vec() },
    }
}

fn facts() -> HostFacts {
    let facts = HostFacts::of_cpuid(KvmKind::Svm, cpuid());
    HostFacts { family: 25, page_bytes: 4096, tsc_khz: 2_600_000, kernel: "6.18.1".into(), ..facts }
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    bytes.chunks(48).map(line).collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// What is compared with the bytes, from the folder of golden files.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/machine/golden").join(format!("{name}.hex"));
    if std::env::var_os("PATINA_WRITE_GOLDEN").is_some() && !path.exists() {
        std::fs::write(&path, hex(bytes)).expect("a golden file");
    }
    bytes_of(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

#[test]
fn the_state_of_each_format_is_written_and_read_as_ever() {
    let bytes = write(&sample(), &facts()).expect("a state");
    let golden = golden(&format!("format-{FORMAT}"), &bytes);
    assert!(bytes == golden, "the layout changed; a section's or the format's version must change with it");
    let (state, needs) = read(&golden, &facts()).expect("the golden state");
    assert_eq!((state, needs), (sample(), facts()));
}

#[test]
fn no_section_changes_without_a_new_version() {
    let bytes = write(&sample(), &facts()).expect("a state");
    let container = Container::read(&bytes).expect("a container");
    let mut seen = Vec::new();
    for section in container.sections() {
        let tag = section.tag.to_string();
        let golden = golden(&format!("{tag}-{}-{}", section.version, section.index), section.content);
        assert!(
            section.content == golden,
            "the layout of {tag} changed: give it version {} in `patina_snapshot::sections`",
            section.version + 1
        );
        seen.push(section.tag);
    }
    assert!(KNOWN.iter().all(|kind| seen.contains(&kind.tag)), "a section without a golden file");
}

fn error(bytes: &[u8], host: &HostFacts) -> String {
    patina_daemon::chain(&read(bytes, host).expect_err("a refused state"))
}

/// As [`write`], with another kind of section in the place of one.
fn with(kind: Kind, index: u16, content: &impl Layout) -> Vec<u8> {
    let mut writer = Writer::new(&facts());
    writer.section(&kind, index, content);
    let bytes = write(&sample(), &facts()).expect("a state");
    let container = Container::read(&bytes).expect("a container");
    for section in container.sections().iter().skip(1) {
        if (section.tag, section.index) != (kind.tag, index) {
            let known = KNOWN.iter().find(|known| known.tag == section.tag).expect("known");
            writer.section(known, section.index, &Raw(section.content.to_vec()));
        }
    }
    writer.finish().expect("a state")
}

/// Bytes without their number.
struct Raw(Vec<u8>);

impl Layout for Raw {
    fn encode(&self, to: &mut patina_snapshot::layout::Encoder) {
        to.put(&self.0);
    }

    fn decode(
        _: &mut patina_snapshot::layout::Decoder<'_>,
    ) -> Result<Self, patina_snapshot::layout::LayoutError> {
        Ok(Self(Vec::new()))
    }
}

#[test]
fn a_state_of_another_release_is_refused() {
    for version in [0, 2] {
        let newer = with(Kind { version, ..VCPU }, 0, &vcpu());
        assert_eq!(
            error(&newer, &facts()),
            format!(
                "read the VM's state: section VCPU has version {version}, and this release reads version 1; use the \
                 release that wrote the state, or boot the VM anew"
            )
        );
        let mut bytes = write(&sample(), &facts()).expect("a state");
        bytes[8] = u8::try_from(version).expect("small");
        assert_eq!(
            error(&bytes, &facts()),
            format!(
                "read the VM's state: its format is version {version}, and this release reads version 1; use the \
                 release that wrote it, or boot the VM anew"
            )
        );
    }
    let unknown = with(required(*b"GPU ", 1), 0, &1_u64);
    assert_eq!(
        error(&unknown, &facts()),
        "read the VM's state: this release does not know its section GPU, which is required; use the release that wrote \
         the state, or a later one"
    );
    let optional = with(Kind { is_required: false, ..required(*b"NOTE", 9) }, 0, &1_u64);
    assert_eq!(read(&optional, &facts()).expect("an optional section").0, sample());
}

/// As the release before containers wrote it: RAM of 256 MiB in one extent, and so on.
#[test]
fn a_state_without_a_container_is_refused() {
    let postcard = b"\x80\x02\x01\x00\x80\x80\x80\x80\x01\x00\x00\x01\x02";
    assert_eq!(
        error(postcard, &facts()),
        "read the VM's state: it does not begin as a state does; a VM that an older release started has another form of \
         state: boot it anew"
    );
}

#[test]
fn a_state_of_another_host_is_refused() {
    let bytes = write(&sample(), &facts()).expect("a state");
    let intel = HostFacts { vendor: *b"GenuineIntel", ..facts() };
    assert_eq!(
        error(&bytes, &intel),
        "the VM ran on a CPU AuthenticAMD family 25 model 0 stepping 0, and this host has GenuineIntel family 25 model 0 \
         stepping 0; use a host with a CPU of the same vendor and family"
    );
    let software = HostFacts { kvm_kind: KvmKind::Software, ..facts() };
    assert_eq!(
        error(&bytes, &software),
        "the VM ran on AMD-V, and this host has KVM without hardware virtualization; use a host with AMD-V"
    );
    // What the VM has enabled counts, and not what it was offered.
    let narrow = HostFacts { xcr0: 3, ..facts() };
    assert_eq!(
        error(&bytes, &narrow),
        "the VM has enabled the CPU state 0x7 (XCR0), and this host offers 0x3; use a host with a CPU that has all of it"
    );
}

#[test]
fn parts_that_are_missing_or_too_many_are_refused() {
    let shape = Shape { memory_mib: 64, is_held: true, vcpus: 2, transports: 4 };
    let missing = with(MACHINE, 0, &shape);
    assert_eq!(
        error(&missing, &facts()),
        "read the VM's state: section VCPU 1 is missing; the state was not written by Patina"
    );
    let more = with(CONSOLE, 1, &sample().console);
    assert_eq!(
        error(&more, &facts()),
        "read the VM's state: it has a section CONS 1, and should have 1 of that kind; the state was not written by \
         Patina"
    );
    // A shape that names more vCPUs than there is memory for.
    let shape = Shape { vcpus: u16::MAX, ..shape };
    assert!(error(&with(MACHINE, 0, &shape), &facts()).contains("VCPU 1 is missing"));
    let short = with(CLOCK, 0, &1_u64);
    assert_eq!(
        error(&short, &facts()),
        "read the VM's state: section CLCK 0: it ends at byte 8, and 4 more bytes are expected"
    );
}

/// In three ways for each byte, and for each length.
#[test]
fn no_changed_and_no_cut_state_is_accepted() {
    let good = write(&sample(), &facts()).expect("a state");
    let mut bytes = good.clone();
    for at in 0..good.len() {
        for change in [1, 0x80, 0xff] {
            bytes[at] = good[at] ^ change;
            assert!(read(&bytes, &facts()).is_err(), "byte {at} with {change:#x}");
        }
        bytes[at] = good[at];
        assert!(read(&good[..at], &facts()).is_err(), "{at} bytes");
    }
    assert!(read(&bytes, &facts()).is_ok());
}

/// The largest VM that can be made: 16 vCPUs with all that KVM can have of each, all extents.
#[test]
fn the_largest_vm_has_room_in_a_state() {
    let most =
        VcpuState { cpuid: vec![CpuidEntry::default(); 256], msrs: vec![Msr::default(); 256], ..vcpu() };
    let pages =
        (0..crate::memory::extents::EXTENTS_MAX as u64 / 2).map(|at| at * 0x2000..at * 0x2000 + 0x1000);
    let memory = Extents::whole(64 << 20).overlay(&pages.collect::<Vec<_>>(), 1);
    assert_eq!(memory.as_slice().len(), crate::memory::extents::EXTENTS_MAX);
    let state = MachineState { vcpus: vec![most; 16], memory, ..sample() };
    let bytes = write(&state, &facts()).expect("the largest state");
    assert_eq!(read(&bytes, &facts()).expect("the largest state").0, state);
    assert!(Container::read(&bytes).expect("a container").sections().len() < SECTIONS_MAX);
}
