//! The command line of `vmmd`.

use crate::{net::VXLAN_PORT, plan::address::Range};
use clap::Parser;
use patina_daemon::{
    REVISION,
    listen::Address,
    values::{age, factor, mebibytes, ttl},
};
use scheduler::client::Target;
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Above what only a scheduler of one's own heeds.
const BUILT_IN: &str = "Built-in scheduler (--standalone)";
/// What no option says.
const ENVIRONMENT: &str = "\
Environment:
  PATINA_LOG  what is logged: error, warn, info (the default), debug, trace; or by module, info,vmmd::vms=debug";

/// The daemon of a Patina host: runs VMs and answers `vmctl`.
#[derive(Debug, Clone, Parser)]
#[command(name = "vmmd", version = REVISION, after_help = ENVIRONMENT, max_term_width = 100)]
pub struct Options {
    /// Serve this host alone, with a scheduler built in
    #[arg(long, required_unless_present = "scheduler", conflicts_with = "scheduler")]
    pub standalone: bool,

    /// The scheduler of the cluster that this host belongs to: unix:PATH, or
    /// tcp:HOST:PORT with --tls-dir
    #[arg(long, value_name = "ADDRESS", env = "PATINA_VMMD_SCHEDULER")]
    pub scheduler: Option<Target>,

    /// Where the cluster reaches this vmmd, for its list of hosts [default: --listen]
    #[arg(long, value_name = "ADDRESS", env = "PATINA_VMMD_ADVERTISE")]
    pub advertise: Option<String>,

    /// Where to listen: unix:PATH, or tcp:ADDRESS:PORT with --tls-dir
    #[arg(long, default_value = "unix:/run/patina/vmmd.sock", env = "PATINA_VMMD_LISTEN")]
    pub listen: Address,

    /// The folder with this host's certificate, as `vmctl pki host` makes it: ca.pem, cert.pem and
    /// key.pem. A new certificate there is used at once
    #[arg(long, value_name = "DIR", env = "PATINA_VMMD_TLS_DIR", conflicts_with = "insecure")]
    pub tls_dir: Option<PathBuf>,

    /// Serve TCP and call the scheduler without TLS: everyone who can connect can do everything
    #[arg(long)]
    pub insecure: bool,

    /// Where state is kept: VMs and their logs
    #[arg(long, value_name = "DIR", default_value = "/var/lib/patina", env = "PATINA_VMMD_STATE_DIR")]
    pub state_dir: PathBuf,

    /// The range that families of VMs take their networks from, a /20 each
    #[arg(long, value_name = "RANGE", default_value = "100.64.0.0/10", env = "PATINA_VMMD_NETWORK")]
    pub network: Range,

    /// Let the VMs of a family that are on several hosts reach each other: the address of this host
    /// to which the other hosts send what is for its VMs (VXLAN, not encrypted), and the UDP port,
    /// 4789 if none is given. All hosts have the same port, or none has --overlay
    #[arg(long, value_name = "ADDRESS[:PORT]", env = "PATINA_VMMD_OVERLAY", value_parser = overlay)]
    pub overlay: Option<SocketAddr>,

    /// On which hosts guests get tickets: `any` that can go on with their VMs, this one first, or
    /// only this one
    #[arg(long, value_enum, default_value_t = TicketHosts::Any, env = "PATINA_VMMD_TICKETS")]
    pub tickets: TicketHosts,

    /// Kernel of VMs that name none: a vmlinux or a bzImage [default: /usr/lib/patina/vmlinux, or
    /// else the one that `cargo xtask image` built last, default/vmlinux in the cache]
    #[arg(long, value_name = "FILE", env = "PATINA_KERNEL")]
    pub kernel: Option<PathBuf>,

    /// Root file system of VMs that name none [default: likewise, rootfs.erofs]
    #[arg(long, value_name = "FILE", env = "PATINA_ROOTFS")]
    pub rootfs: Option<PathBuf>,

    /// The vmm program [default: `vmm` beside this program]
    #[arg(long, value_name = "FILE", env = "PATINA_VMMD_VMM")]
    pub vmm: Option<PathBuf>,

    /// The pager program [default: `pager` beside this program]
    #[arg(long, value_name = "FILE", env = "PATINA_VMMD_PAGER")]
    pub pager: Option<PathBuf>,

    /// Where images of booted VMs are kept, from which later VMs of the same kind start: a folder
    /// that only vmmd may write to, or `none`: every VM boots [default: `images` in the state
    /// folder]
    #[arg(long, value_name = "DIR|none", env = "PATINA_VMMD_IMAGE_CACHE")]
    pub image_cache: Option<PathBuf>,

    /// Most disk space of all images, MiB, or with a unit 512M or 8G; those that were used least
    /// recently go
    #[arg(long, value_name = "SIZE", default_value = "8G", env = "PATINA_VMMD_IMAGE_CACHE_SIZE", value_parser = mebibytes)]
    pub image_cache_size: u64,

    /// How long an image is kept after its last use: 12h, 30days
    #[arg(long, value_name = "TIME", default_value = "30days", env = "PATINA_VMMD_IMAGE_CACHE_AGE", value_parser = age)]
    pub image_cache_age: Duration,

    /// Most disk space of kernels and root file systems that come from other hosts, because clones
    /// of VMs there are made here, MiB, or with a unit 512M or 8G; those that were used least
    /// recently go, but none that a VM uses
    #[arg(long, value_name = "SIZE", default_value = "8G", env = "PATINA_VMMD_FETCHED_SIZE", value_parser = mebibytes)]
    pub fetched_size: u64,

    /// How many warm vmm processes each family has ready for its next clones, once a VM of it is
    /// ready
    #[arg(long, value_name = "N", default_value_t = 2, env = "PATINA_VMMD_WARM", value_parser = clap::value_parser!(u16).range(0..=256))]
    pub warm: u16,

    /// How many spare vmm processes are ready for VMs that are restored or start from an image, for
    /// each of the two kinds of machine (root file system, vCPUs, memory) that did so last
    #[arg(long, value_name = "N", default_value_t = 1, env = "PATINA_VMMD_SPARE", value_parser = clap::value_parser!(u16).range(0..=16))]
    pub spare: u16,

    /// Send the memory of VMs to other hosts compressed (LZ4), where it is shorter then. It pays if
    /// the network is slow (about 2 Gbit/s or less), or if much of the memory is nearly empty
    #[arg(long, env = "PATINA_VMMD_COMPRESS_PAGES")]
    pub compress_pages: bool,

    /// Most clones at once on this host, those that guests have tickets for included
    #[arg(long, value_name = "N", default_value_t = 256, env = "PATINA_VMMD_MAX_VMS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_vms: u32,

    /// Most clones that have ended and are kept for `vmctl ls` and `logs`; the oldest go. Masters
    /// stay until `vmctl rm`
    #[arg(long, value_name = "N", default_value_t = 256, env = "PATINA_VMMD_KEEP_ENDED", value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub keep_ended: u32,

    /// CPUs that clones may have for each CPU of this host: most of them wait most of the time
    #[arg(long, value_name = "FACTOR", default_value = "128", env = "PATINA_VMMD_OVERCOMMIT_CPU", value_parser = factor, allow_negative_numbers = true)]
    pub overcommit_cpu: f64,

    /// Memory that clones may have for each MiB of this host: they share what they do not write
    #[arg(long, value_name = "FACTOR", default_value = "8", env = "PATINA_VMMD_OVERCOMMIT_MEMORY", value_parser = factor, allow_negative_numbers = true)]
    pub overcommit_memory: f64,

    /// Serve metrics in Prometheus's form on this loopback address, for example 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS", env = "PATINA_VMMD_METRICS")]
    pub metrics: Option<SocketAddr>,

    /// Log in JSON
    #[arg(long)]
    pub log_json: bool,

    // The last: its heading is that of all that comes after it.
    /// How the built-in scheduler grants tickets
    #[command(flatten)]
    pub granting: Granting,
}

/// Settings of the scheduler that is built in.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = BUILT_IN)]
pub struct Granting {
    /// How long a ticket may stay unused: 600s, 10m, 1h
    #[arg(long, value_name = "TIME", default_value = "600s", env = "PATINA_VMMD_TICKET_TTL", value_parser = ttl, conflicts_with = "scheduler")]
    pub ticket_ttl: Duration,
}

/// On which hosts guests get tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TicketHosts {
    /// On their own host only.
    Own,
    /// On all hosts that can go on with their VMs.
    Any,
}

/// Where images are kept, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheSettings {
    /// The folder.
    pub folder: PathBuf,
    /// Most bytes of all images on the disk.
    pub bytes_max: u64,
    /// How long an image is kept after its last use.
    pub age_max: Duration,
}

/// Reads where a host receives VXLAN.
fn overlay(text: &str) -> Result<SocketAddr, String> {
    let bare = || Some(SocketAddr::new(text.parse().ok()?, VXLAN_PORT));
    let given = text.parse().ok().or_else(bare);
    let is_one = |given: &SocketAddr| {
        let ip = given.ip();
        given.port() > 0 && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback()
    };
    given.filter(is_one).ok_or_else(|| {
        "write an address that other hosts reach, as 192.0.2.7, 192.0.2.7:4789 or [2001:db8::7]:4789".into()
    })
}

impl Options {
    /// Where other daemons of the cluster reach this one.
    #[must_use]
    pub fn own_address(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    /// Where images of booted VMs are kept, and how many; None: nowhere.
    #[must_use]
    pub fn image_cache(&self) -> Option<CacheSettings> {
        let folder = match &self.image_cache {
            None => self.state_dir.join("images"),
            Some(none) if none.as_os_str() == "none" => return None,
            Some(folder) => folder.clone(),
        };
        let bytes_max = self.image_cache_size.saturating_mul(1 << 20);
        Some(CacheSettings { folder, bytes_max, age_max: self.image_cache_age })
    }

    /// The kernel of VMs that name none. Whether it is there is seen when a VM needs it.
    #[must_use]
    pub fn default_kernel(&self) -> PathBuf {
        self.kernel.clone().unwrap_or_else(|| patina_images::default_product(patina_images::KERNEL_FILE))
    }

    /// The root file system of VMs that name none.
    #[must_use]
    pub fn default_rootfs(&self) -> PathBuf {
        self.rootfs.clone().unwrap_or_else(|| patina_images::default_product(patina_images::ROOTFS_FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::path::Path;

    #[test]
    fn the_command_line_is_sound_and_needs_no_configuration() {
        Options::command().debug_assert();
        let options = Options::try_parse_from(["vmmd", "--standalone"]).unwrap();
        assert_eq!(options.listen.to_string(), "unix:/run/patina/vmmd.sock");
        assert_eq!((options.warm, options.spare), (2, 1));
        assert_eq!((options.max_vms, options.keep_ended), (256, 256));
        assert_eq!((options.overcommit_cpu, options.overcommit_memory), (128.0, 8.0));
        let images = options.image_cache().unwrap();
        assert_eq!(images.folder, Path::new("/var/lib/patina/images"));
        assert_eq!((images.bytes_max, images.age_max.as_secs()), (8 << 30, 30 * 86_400));
        assert_eq!(options.granting.ticket_ttl, Duration::from_secs(600));
        assert_eq!(options.tickets, TicketHosts::Any);
        let own = Options::try_parse_from(["vmmd", "--standalone", "--tickets", "own"]).unwrap();
        assert_eq!(own.tickets, TicketHosts::Own);
        assert!(Options::try_parse_from(["vmmd"]).is_err(), "either way must be said");
    }

    #[test]
    fn images_are_kept_where_an_option_says_or_nowhere() {
        let cache = |words: &str| {
            let line = format!("vmmd --standalone {words}");
            Options::try_parse_from(line.split_whitespace()).unwrap().image_cache()
        };
        assert_eq!(cache("--image-cache none"), None);
        assert_eq!(cache("--state-dir /s").unwrap().folder, Path::new("/s/images"));
        let all = cache("--image-cache /i --image-cache-size 512M --image-cache-age 12h").unwrap();
        let age_max = Duration::from_secs(12 * 3600);
        assert_eq!(all, CacheSettings { folder: "/i".into(), bytes_max: 512 << 20, age_max });
    }

    #[test]
    fn an_overlay_is_an_address_that_other_hosts_reach() {
        let overlay = |words: &str| {
            let line = format!("vmmd --standalone {words}");
            Options::try_parse_from(line.split_whitespace()).map(|options| options.overlay)
        };
        let is = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        assert_eq!(overlay("").unwrap(), None);
        assert_eq!(overlay("--overlay 192.0.2.7").unwrap(), is("192.0.2.7:4789"));
        assert_eq!(overlay("--overlay 192.0.2.7:9").unwrap(), is("192.0.2.7:9"));
        assert_eq!(overlay("--overlay 2001:db8::7").unwrap(), is("[2001:db8::7]:4789"));
        assert_eq!(overlay("--overlay [2001:db8::7]:9").unwrap(), is("[2001:db8::7]:9"));
        for wrong in ["host", "0.0.0.0", "127.0.0.1", "224.0.0.1", "192.0.2.7:0", "192.0.2.7:x"] {
            let error = overlay(&format!("--overlay {wrong}")).unwrap_err().to_string();
            assert!(error.contains("an address that other hosts reach"), "{error}");
        }
    }

    #[test]
    fn only_what_the_built_in_scheduler_heeds_stands_under_its_heading() {
        let command = Options::command();
        let under: Vec<_> = command
            .get_arguments()
            .filter(|argument| argument.get_help_heading().is_some())
            .map(|argument| (argument.get_id().as_str(), argument.get_help_heading()))
            .collect();
        assert_eq!(under, [("ticket_ttl", Some(BUILT_IN))]);
    }

    #[test]
    fn variables_are_vmmds_own_but_for_the_images() {
        let command = Options::command();
        let variables = command.get_arguments().filter_map(|argument| argument.get_env()?.to_str());
        let shared: Vec<_> = variables.filter(|variable| !variable.starts_with("PATINA_VMMD_")).collect();
        assert_eq!(shared, ["PATINA_KERNEL", "PATINA_ROOTFS"]);
    }

    #[test]
    fn a_scheduler_is_named_in_all_the_ways_that_vmctl_takes() {
        for (written, read) in [
            ("unix:/s", "unix:/s"),
            ("http://127.0.0.1:7000", "http://127.0.0.1:7000"),
            ("https://127.0.0.1:7000", "https://127.0.0.1:7000"),
            ("tcp:127.0.0.1:7000", "tcp:127.0.0.1:7000"),
        ] {
            let options = Options::try_parse_from(["vmmd", "--scheduler", written]).unwrap();
            assert_eq!(options.scheduler.unwrap().to_string(), read);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let refused = |words: &str| {
            let line = format!("vmmd {words}");
            Options::try_parse_from(line.split_whitespace()).unwrap_err().to_string()
        };
        assert!(refused("--standalone --scheduler unix:/s").contains("cannot be used with"));
        assert!(refused("--scheduler unix:/s --ticket-ttl 5m").contains("cannot be used with"));
        let text = refused("--standalone --network 100.64.0.0/24");
        assert!(text.contains("/20"), "{text}");
        assert!(refused("--standalone --insecure --tls-dir /t").contains("cannot be used with"));
        for words in [
            "--warm 257",
            "--spare 17",
            "--max-vms 0",
            "--keep-ended 1025",
            "--overcommit-cpu 0",
            "--image-cache-size x",
            "--image-cache-age 0s",
        ] {
            let text = refused(&format!("--standalone {words}"));
            assert!(text.contains(words.split(' ').next().unwrap()), "{text}");
        }
    }
}
