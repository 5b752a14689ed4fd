//! `vmctl ticket request`: reserves clones for a family.

use crate::{
    commands::Context,
    error::CtlError,
    output::{self, Format},
    tickets::TicketView,
    values,
};
use patina_proto::v1::{HostFacts, PlacementPolicy, RequestTicketRequest, Vm};
use tonic::Code;

/// Arguments of `vmctl ticket request`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// For whom: any of the family's VMs' names, or its UUID.
    #[arg(long, value_name = "NAME|UUID")]
    family: String,
    /// Most CPUs in all.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_cpus: u32,
    /// Fewest clones: all of them, or none.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    min_vms: u32,
    /// CPUs that each clone must have.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    min_cpus_per_vm: u32,
    /// Wait for room at most this long, seconds; 0: not at all.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    timeout: u64,
    /// How long it may stay unused, seconds [default: as the scheduler is set up].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    ttl: Option<u64>,
    /// On any host of the scheduler. Else on the host that --host names: clones start where the VM
    /// is that they are made of.
    #[arg(long)]
    anywhere: bool,
    /// On the host that --host names, as far as it has room, then on other hosts that can go on
    /// with its VMs: the placement of the tickets that guests request. The VM that will clone is to
    /// be on that host.
    #[arg(long, conflicts_with = "anywhere")]
    prefer_local: bool,
    /// A kernel or a root file system of the VM that will clone, by its BLAKE3 digest; up to 8
    /// times. Of hosts that are as good otherwise, those are chosen that have all of them. `vmctl
    /// host inspect HOST` prints the digests of the files that a host has.
    #[arg(long = "image-digest", value_name = "DIGEST", value_parser = values::digest)]
    image_digests: Vec<[u8; 32]>,
    /// How to choose hosts [default: as the scheduler is set up].
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// The same id gives the same ticket: so a request can be made again, 1 to 64 characters.
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// CPUs of each clone [default: as the family's VMs have].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: Option<u32>,
    /// RAM of each clone: MiB, or with a unit 512M or 2G [default: as the family's VMs have].
    #[arg(short, long, value_parser = values::memory_mib, value_name = "SIZE")]
    memory: Option<u32>,
}

/// How hosts are chosen.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Policy {
    /// As few hosts as possible, the fullest first.
    Pack,
    /// The emptiest first, evenly.
    Spread,
}

/// Asks for it, and prints the ticket.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let size = size(context, &arguments).await?;
    let own_host = match arguments.anywhere {
        true => None,
        // Only the scheduler's own address leaves no host to name.
        false => context.host_id().await?,
    };
    if arguments.prefer_local && own_host.is_none() {
        return Err(CtlError::NoHost);
    }
    let request = message(arguments, size, own_host);
    let granted = context.scheduler().await?.request_ticket(request).await?.into_inner();
    match context.format {
        Format::Json => output::json(&TicketView::from(granted)),
        Format::Table => output::line(&granted.id),
    }
}

/// Who asks, and how large its VMs are.
struct Size {
    family: String,
    vcpus: u32,
    memory_mib: u32,
    /// What its VMs need of a host, if that is not what the host offers.
    needs: Option<HostFacts>,
}

async fn size(context: &Context, arguments: &Arguments) -> Result<Size, CtlError> {
    let family = context.family(&arguments.family).await?;
    if let (Some(vcpus), Some(memory_mib), false) =
        (arguments.vcpus, arguments.memory, arguments.prefer_local)
    {
        return Ok(Size { family, vcpus, memory_mib, needs: None });
    }
    let vms = match context.vms().await {
        // A scheduler of its own has no VMs.
        Err(CtlError::Call(status)) if status.code() == Code::Unimplemented => Vec::new(),
        vms => vms?,
    };
    let vm = member(&vms, &family);
    let sized = |given: Option<u32>, of: fn(&Vm) -> u32| given.or_else(|| vm.map(of));
    let unsized_family = || CtlError::Unsized(family.clone());
    let vcpus = sized(arguments.vcpus, |vm| vm.vcpus).ok_or_else(unsized_family)?;
    let memory_mib = sized(arguments.memory, |vm| vm.memory_mib).ok_or_else(unsized_family)?;
    Ok(Size { needs: vm.and_then(|vm| vm.needs.clone()), family, vcpus, memory_mib })
}

/// The master of a family, or, where that is on another host, one of its clones.
fn member<'a>(vms: &'a [Vm], family: &str) -> Option<&'a Vm> {
    vms.iter().filter(|vm| vm.family == family).min_by_key(|vm| vm.vmid)
}

/// The host is the one that the command line names, if that matters.
fn message(arguments: Arguments, size: Size, own_host: Option<String>) -> RequestTicketRequest {
    let own_host_ids: Vec<String> = own_host.into_iter().collect();
    let (host_ids, local) = match arguments.prefer_local {
        true => (Vec::new(), own_host_ids.concat()),
        false => (own_host_ids, String::new()),
    };
    let policy = match arguments.policy {
        None => PlacementPolicy::Unspecified,
        Some(Policy::Pack) => PlacementPolicy::Pack,
        Some(Policy::Spread) => PlacementPolicy::Spread,
    };
    let Size { family, vcpus, memory_mib, needs } = size;
    RequestTicketRequest {
        family,
        request_id: arguments.request_id.unwrap_or_default(),
        max_cpus: arguments.max_cpus,
        min_vms: arguments.min_vms,
        min_cpus_per_vm: arguments.min_cpus_per_vm,
        vcpus,
        memory_mib,
        timeout_ms: arguments.timeout * 1000,
        host_ids,
        policy: policy.into(),
        ttl_ms: arguments.ttl.map_or(0, |seconds| seconds * 1000),
        prefer_host_id: local.clone(),
        parent_host_id: local,
        parent_needs: needs.filter(|_| arguments.prefer_local),
        image_digests: arguments.image_digests.iter().map(|digest| digest.to_vec()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn parsed(words: &str) -> Result<Arguments, clap::Error> {
        let line = format!("vmctl ticket request {words}");
        let arguments = crate::cli::Arguments::try_parse_from(line.split_whitespace())?;
        let crate::cli::Command::Ticket(super::super::Command::Request(arguments)) = arguments.command else {
            panic!("not a request")
        };
        Ok(arguments)
    }

    fn size(vcpus: u32, memory_mib: u32) -> Size {
        let needs = Some(HostFacts { cpu_model: 7, ..HostFacts::default() });
        Size { family: "f".into(), vcpus, memory_mib, needs }
    }

    #[test]
    fn a_request_has_what_was_said_and_the_familys_size() {
        let arguments = parsed(
            "--family web --max-cpus 8 --min-vms 2 --timeout 30 --ttl 60 --policy spread --request-id job-7 -m 1G",
        )
        .unwrap();
        assert_eq!(arguments.memory, Some(1024));
        let request = message(arguments, size(2, 1024), Some("h".into()));
        let wanted = RequestTicketRequest {
            family: "f".into(),
            request_id: "job-7".into(),
            max_cpus: 8,
            min_vms: 2,
            min_cpus_per_vm: 1,
            vcpus: 2,
            memory_mib: 1024,
            timeout_ms: 30_000,
            policy: PlacementPolicy::Spread.into(),
            ttl_ms: 60_000,
            host_ids: vec!["h".into()],
            ..RequestTicketRequest::default()
        };
        assert_eq!(request, wanted);
        let plain = message(parsed("--family web --max-cpus 8 --min-vms 2").unwrap(), size(1, 256), None);
        assert_eq!((plain.timeout_ms, plain.ttl_ms, plain.policy), (0, 0, 0));
    }

    #[test]
    fn a_host_may_come_first_and_those_with_the_images_before_others() {
        let [kernel, rootfs] = [[0xab; 32], [0x1f; 32]];
        let words = format!(
            "--family web --max-cpus 8 --min-vms 2 --prefer-local --image-digest {} --image-digest {}",
            "ab".repeat(32),
            "1F".repeat(32),
        );
        let request = message(parsed(&words).unwrap(), size(1, 256), Some("h".into()));
        assert_eq!((request.prefer_host_id.as_str(), request.parent_host_id.as_str()), ("h", "h"));
        assert!(request.host_ids.is_empty());
        assert_eq!(request.image_digests, [kernel.to_vec(), rootfs.to_vec()]);
        assert_eq!(request.parent_needs.unwrap().cpu_model, 7);
        // Without it the host is the only one, and any other may lack what the VM needs.
        let own = parsed("--family web --max-cpus 8 --min-vms 2").unwrap();
        let request = message(own, size(1, 256), Some("h".into()));
        assert_eq!(request.parent_needs, None);
        assert_eq!(
            (request.host_ids, request.prefer_host_id, request.parent_host_id),
            (vec!["h".to_owned()], String::new(), String::new())
        );
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for wrong in [
            "--max-cpus 8 --min-vms 2",
            "--family web --min-vms 2",
            "--family web --max-cpus 0 --min-vms 2",
            "--family web --max-cpus 8 --min-vms 0",
            "--family web --max-cpus 8 --min-vms 257",
            "--family web --max-cpus -1 --min-vms 1",
            "--family web --max-cpus 8 --min-vms 2 --timeout 86401",
            "--family web --max-cpus 8 --min-vms 2 --memory lots",
            "--family web --max-cpus 8 --min-vms 2 --policy best",
            "--family web --max-cpus 8 --min-vms 2 --prefer-local --anywhere",
            "--family web --max-cpus 8 --min-vms 2 --image-digest abcd",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_family_is_known_by_its_master_or_what_is_here() {
        let vm = |name: &str, family: &str, vmid| Vm {
            name: name.into(),
            family: family.into(),
            vmid,
            ..Vm::default()
        };
        let vms = [vm("b.2", "2", 2), vm("a.1", "1", 1), vm("a", "1", 0), vm("b.1", "2", 1)];
        assert_eq!(member(&vms, "1").unwrap().name, "a");
        assert_eq!(member(&vms, "2").unwrap().name, "b.1");
        assert!(member(&vms, "3").is_none());
    }
}
