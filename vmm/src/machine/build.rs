//! Makes a VM from its configuration, in the order that KVM requires.

use super::Machine;
use super::card::{MacError, card_owner, nobody};
use super::connections::{LinkPort, VmConnections};
use super::generation::{LastFrozen, Ram};
use super::host;
use super::origin::{Origin, OriginError};
use super::pager_link::PagerLink;
use super::tune::tune;
use super::wiring::{self, WiringError};
use crate::boot::layout;
use crate::bus::Bus;
use crate::control::mailbox::{Inbox, Mailbox, mailbox};
use crate::control::server::Server;
use crate::control::session::Session;
use crate::devices::console::{self, Console, ConsoleError};
use crate::devices::event_loop::{DeviceLoop, LoopError};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::{Block, SizeError};
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::net::{CardOwner, Net, NetworkGate, Owner, PortError, Tap};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::{Vsock, VsockDialer, VsockError};
use crate::jail::{self, JailError};
use crate::memory::Memory;
use crate::sys::kick::{Target, take_kicks};
use crate::sys::kvm;
use crate::sys::pagemap::Pagemap;
use crate::sys::slot::{SlotError, VmWithMemory};
use crate::sys::userfault::Userfault;
use crate::sys::xstate;
use crate::vcpu::cpuid;
use crate::vcpu::gate::{Gate, Vcpus};
use crate::vcpu::kind;
use crate::vcpu::offer::{self, OfferError};
use crate::vcpu::persist::msr_indices;
use crate::vcpu::run::Runner;
use kvm_bindings::{KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use patina_abi::GUEST_CID;
use patina_control::VERSION;
use patina_control::config::{CONSOLE_LOG_MAX_BYTES, KvmKind, MEMORY_MIB, Start, VCPUS, VmConfig};
use patina_control::messages::State;
use patina_jail::sys::inherit::{InheritError, Inherited};
use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Instant;

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration is of a newer vmmd.
    #[error(
        "make the VM: vmmd speaks version {given} of the control protocol, this vmm only version {VERSION}; install \
         a vmm and a vmmd of the same release"
    )]
    Version {
        /// The version of vmmd.
        given: u32,
    },
    /// A value of the VM's configuration is out of its range.
    #[error("make the VM: {what} is {value}, and must be {least} to {most}")]
    Range {
        /// The value's name: `RAM in MiB`, for example.
        what: &'static str,
        /// The value that was given.
        value: u32,
        /// The least value that is allowed.
        least: u32,
        /// The greatest value that is allowed.
        most: u32,
    },
    /// The descriptor is not KVM, or has another API version.
    #[error(
        "use /dev/kvm: it is not KVM of API version {KVM_API_VERSION}; check the kernel module with `vmctl doctor`"
    )]
    NotKvm,
    /// The CPU's extended state does not fit into the area in which it is saved.
    #[error(
        "make the VM: KVM keeps {0} bytes of extended state for a vCPU, and the vmm saves at most {max}; start vmmd from a program that has not enabled AMX", max = xstate::AREA_BYTES
    )]
    Xstate(i32),
    /// The family's MAC address is invalid.
    #[error("make the VM")]
    Mac(#[from] MacError),
    /// The CPU baseline cannot be used.
    #[error("make the VM")]
    Cpuid(#[from] OfferError),
    /// A VM that boots has no identity.
    #[error("make the VM: it boots, and the configuration does not say who it is")]
    Nobody,
    /// KVM refused.
    #[error("make the VM: {call}")]
    Kvm {
        /// The call.
        call: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// A thread or descriptor could not be made.
    #[error("make the VM: {what}")]
    Io {
        /// What was wanted.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A descriptor is missing.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The first state of the VM could not be made.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// KVM refused the RAM.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The console could not be made.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The size of the root disk could not be read.
    #[error("use the root disk")]
    Disk(#[from] SizeError),
    /// The tap cannot be used.
    #[error("use the tap")]
    Tap(#[from] PortError),
    /// The vsock device could not be made.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The device thread could not be started.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The process could not enter its jail.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// KVM refused to connect a device.
    #[error(transparent)]
    Wiring(#[from] WiringError),
}

fn kvm_failed(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { call, source }
}

fn io_failed(what: &'static str) -> impl Fn(std::io::Error) -> BuildError {
    move |source| BuildError::Io { what, source }
}

/// A VM that runs.
pub struct Running {
    /// The control thread's work, for the main thread.
    pub server: Server<VmConnections>,
    /// The VM, for [`crate::control::orders`].
    pub machine: Machine,
    /// Sends events to the control thread.
    pub mailbox: Mailbox,
    /// The console, whose last output is written when the VM has ended.
    pub console: Arc<Console>,
}

/// The devices of a VM and what is needed to reach them.
struct Devices {
    bus: Arc<Bus>,
    dialer: VsockDialer,
    network_gate: NetworkGate,
    card: Option<CardOwner>,
    device_loop: DeviceLoop,
}

/// Makes and starts the VM that `config` describes.
///
/// # Errors
/// See [`BuildError`]; nothing of the VM is left then.
pub fn build(config: &VmConfig, inherited: &mut Inherited, started: Instant) -> Result<Running, BuildError> {
    check(config)?;
    let (mailbox, inbox) = mailbox().map_err(|error| io_failed("an eventfd")(error.into()))?;
    let kvm = kvm::open(inherited.take(config.kvm_fd)?);
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(BuildError::NotKvm);
    }
    let kind = config.kvm_kind.unwrap_or_else(kind::detect);
    let supported =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm_failed("KVM_GET_SUPPORTED_CPUID"))?;
    let supported = offer::offered(kind, supported, config.cpu_baseline.as_deref())?;
    let origin = Origin::open(&config.start, u64::from(config.memory_mib) << 20, inherited)?;
    let memory = Arc::clone(origin.memory());
    let vm = create_vm(&kvm, &memory)?;

    let Devices { bus, dialer, network_gate, card, mut device_loop } =
        make_devices(config, inherited, vm.vm(), &memory, &mailbox)?;
    let devices = bus.transports.len() as u32;
    let (vcpus, ram) = origin.vcpus(vm.vm(), config.vcpus, devices, (kind, &supported))?;
    let listed = kvm.get_msr_index_list().map_err(kvm_failed("KVM_GET_MSR_INDEX_LIST"))?;
    // A warm VM gets the list with its generation: a vCPU without CPUID does not show all of its
    // MSRs.
    let looked_at = if matches!(ram, Ram::Reserved) { &[] } else { &vcpus[..] };
    let msrs = msr_indices(listed.as_slice(), looked_at).map_err(kvm_failed("KVM_GET_MSRS"))?.into();

    let facts = host::gather(&kvm, kind, &cpuid::for_vcpu(&supported, 0, config.vcpus), vcpus.first());

    let is_warm = matches!(ram, Ram::Reserved);
    let gate = Arc::new(Gate::new(config.vcpus, is_warm));
    let context = VcpuContext {
        bus: Arc::clone(&bus),
        memory,
        kind,
        mailbox: mailbox.clone(),
        gate: Arc::clone(&gate),
    };
    let pagemap = Pagemap::open().map_err(|error| io_failed("its page tables")(error.into()))?;
    let (pagemap, userfault) = if config.avoid_pagemap_scan {
        (pagemap.without_scans(), None)
    } else {
        (pagemap, Userfault::open().map(Arc::new))
    };
    let pager = PagerLink::new(userfault.clone());
    let console = Arc::clone(&bus.serial);
    let connections = VmConnections::new(&console, dialer, network_gate, &pager);
    let server = make_server(config, inherited, inbox, connections, started)?;
    jail::prime().map_err(io_failed("a thread"))?;
    // From here on there are threads, and the guest of a VM that is not warm runs.
    jail::enter()?;
    if is_warm {
        device_loop.prepare()?;
    } else {
        device_loop.start()?;
    }
    let vcpus = start_vcpus(gate, vcpus, &context)?;
    let machine = Machine {
        bus,
        devices: device_loop,
        vcpus,
        vm,
        ram,
        pagemap,
        userfault,
        tracked_since: None,
        pager,
        memory_mib: config.memory_mib,
        merging: None,
        facts,
        msrs,
        to_prefault: Vec::new(),
        frozen: LastFrozen::default(),
        prefault_list: Vec::new(),
        wants_prefault_list: false,
        card,
        tracks_shared: false,
    };
    Ok(Running { server, machine, mailbox, console })
}

fn check(config: &VmConfig) -> Result<(), BuildError> {
    // A newer vmmd may have set an option that the VM depends on and this vmm does not know.
    if config.version > VERSION {
        return Err(BuildError::Version { given: config.version });
    }
    if config.identity.is_none() && config.start != Start::Warm {
        return Err(BuildError::Nobody);
    }
    let (vcpus, memory) = (config.vcpus, config.memory_mib);
    if !VCPUS.contains(&vcpus) {
        let (least, most) = (u32::from(*VCPUS.start()), u32::from(*VCPUS.end()));
        return Err(BuildError::Range { what: "the number of vCPUs", value: vcpus.into(), least, most });
    }
    if !MEMORY_MIB.contains(&memory) {
        let (least, most) = (*MEMORY_MIB.start(), *MEMORY_MIB.end());
        return Err(BuildError::Range { what: "RAM in MiB", value: memory, least, most });
    }
    Ok(())
}

fn create_vm(kvm: &Kvm, memory: &Memory) -> Result<VmWithMemory, BuildError> {
    let vm = kvm.create_vm().map_err(kvm_failed("KVM_CREATE_VM"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(kvm_failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(kvm_failed("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(pit).map_err(kvm_failed("KVM_CREATE_PIT2"))?;
    check_xstate(vm.check_extension_int(Cap::Xsave2))?;
    tune(&vm);
    Ok(VmWithMemory::new(vm, Arc::clone(memory))?)
}

/// KVM's answer to KVM_CAP_XSAVE2, 0 before Linux 5.17: how many bytes of extended state a vCPU
/// has.
fn check_xstate(bytes: i32) -> Result<(), BuildError> {
    let is_more = usize::try_from(bytes).is_ok_and(|bytes| bytes > xstate::AREA_BYTES);
    if is_more { Err(BuildError::Xstate(bytes)) } else { Ok(()) }
}

fn make_devices(
    config: &VmConfig,
    inherited: &mut Inherited,
    vm: &VmFd,
    memory: &Memory,
    mailbox: &Mailbox,
) -> Result<Devices, BuildError> {
    let device_loop = DeviceLoop::new()?;
    let log = File::from(inherited.take(config.console_fd)?);
    let serial = Arc::new(Console::new(log, CONSOLE_LOG_MAX_BYTES)?);
    serial.attach(&device_loop)?;
    vm.register_irqfd(serial.interrupt_line(), console::IRQ).map_err(kvm_failed("KVM_IRQFD"))?;

    let rootfs = File::from(inherited.take(config.rootfs_fd)?);
    let tap = Tap::new(inherited.take(config.tap_fd)?)?;
    let (vsock, dialer) = Vsock::new(u64::from(GUEST_CID), Box::new(LinkPort(mailbox.clone())))?;
    let owner = match &config.identity {
        Some(identity) => card_owner(identity, config.neighbours.as_ref())?,
        None => Owner::nobody(),
    };
    let net = Net::new(Box::new(tap), owner)?;
    let network_gate = net.gate();
    let card = config.identity.is_none().then(|| net.owner());
    let devices: [Box<dyn VirtioDevice>; 4] = [
        Box::new(Block::new(rootfs, true, "root")?),
        Box::new(net),
        Box::new(vsock),
        Box::new(Rng::default()),
    ];
    let mut transports = Vec::new();
    for (index, device) in (0u32..).zip(devices) {
        let transport =
            MmioTransport::new(device, Arc::clone(memory)).map_err(io_failed("a device's events"))?;
        let transport = Arc::new(transport);
        wiring::connect(vm, index, &transport)?;
        transport.attach(&device_loop)?;
        transports.push(transport);
    }
    let bus = Arc::new(Bus { transports, serial });
    Ok(Devices { bus, dialer, network_gate, card, device_loop })
}

fn make_server(
    config: &VmConfig,
    inherited: &mut Inherited,
    inbox: Inbox,
    connections: VmConnections,
    started: Instant,
) -> Result<Server<VmConnections>, BuildError> {
    let listener = UnixListener::from(inherited.take(config.control_fd)?);
    let session = Session::new(config.identity.clone().unwrap_or_else(nobody));
    let state = if config.start == Start::Warm { State::Warm } else { State::Booting };
    Server::new(listener, inbox, connections, session, config.version, (started, state))
        .map_err(io_failed("the control socket"))
}

/// What all vCPUs share.
struct VcpuContext {
    bus: Arc<Bus>,
    memory: Memory,
    kind: KvmKind,
    mailbox: Mailbox,
    gate: Arc<Gate>,
}

impl VcpuContext {
    fn runner(&self, vcpu: VcpuFd, index: u8) -> Runner {
        Runner {
            vcpu,
            index,
            bus: Arc::clone(&self.bus),
            memory: Arc::clone(&self.memory),
            kind: self.kind,
            mailbox: self.mailbox.clone(),
            gate: Arc::clone(&self.gate),
            has_run: false,
            before_entry: None,
        }
    }
}

/// All vCPUs must exist before the first one runs, because the guest's kernel starts the others
/// with interrupts.
fn start_vcpus(
    gate: Arc<Gate>,
    vcpus: Vec<VcpuFd>,
    context: &VcpuContext,
) -> Result<Vcpus<Runner>, BuildError> {
    take_kicks().map_err(io_failed("the handler of its vCPUs' signal"))?;
    let mut threads = Vec::new();
    for (index, vcpu) in (0..).zip(vcpus) {
        let runner = context.runner(vcpu, index);
        let (sender, jobs) = channel();
        let thread = std::thread::Builder::new().name(format!("vcpu{index}"));
        let handle = thread.spawn(move || runner.run(&jobs)).map_err(io_failed("a vCPU's thread"))?;
        threads.push((Target::new(handle), sender));
    }
    Ok(Vcpus::new(gate, threads))
}

#[cfg(test)]
mod tests {
    use super::check_xstate;

    #[test]
    fn extended_state_that_would_be_cut_is_refused_with_what_to_do() {
        // Linux before 5.17, a CPU with AVX only, and all that fits.
        for bytes in [0, 832, 4096] {
            assert!(check_xstate(bytes).is_ok(), "{bytes}");
        }
        // With AMX.
        let error = check_xstate(11_008).expect_err("too much").to_string();
        assert!(error.contains("11008 bytes") && error.contains("4096") && error.contains("AMX"), "{error}");
    }
}
