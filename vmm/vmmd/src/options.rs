//! The command line.

use crate::plan::address::Range;
use clap::Parser;
use scheduler::{client::Target, listen::Address};
use std::{net::SocketAddr, path::PathBuf};

/// The daemon of a Patina host: runs VMs and answers `vmctl`.
#[derive(Debug, Clone, Parser)]
#[command(name = "vmmd", version = crate::REVISION)]
pub struct Options {
    /// Serve this host alone, with a scheduler built in
    #[arg(long, required_unless_present = "scheduler", conflicts_with = "scheduler")]
    pub standalone: bool,

    /// The scheduler of the cluster that this host belongs to: unix:PATH or http://HOST:PORT
    #[arg(long, value_name = "ADDRESS", env = "PATINA_SCHEDULER")]
    pub scheduler: Option<Target>,

    /// Where the cluster reaches this vmmd, for its list of hosts [default: --listen]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Option<String>,

    /// How the built-in scheduler grants tickets
    #[command(flatten)]
    pub granting: Granting,

    /// Where to listen: unix:PATH, or tcp:ADDRESS:PORT on a loopback address
    #[arg(long, default_value = "unix:/run/patina/vmmd.sock", env = "PATINA_LISTEN")]
    pub listen: Address,

    /// Where state is kept: VMs and their logs
    #[arg(long, value_name = "DIR", default_value = "/var/lib/patina", env = "PATINA_STATE_DIR")]
    pub state_dir: PathBuf,

    /// The range that families of VMs take their networks from, a /20 each
    #[arg(long, value_name = "RANGE", default_value = "100.64.0.0/10", env = "PATINA_NETWORK")]
    pub network: Range,

    /// Kernel of VMs that name none: a vmlinux or a bzImage [default: /usr/lib/patina/vmlinux, or else the one
    /// that `cargo xtask image` built last, default/vmlinux in the cache]
    #[arg(long, value_name = "FILE", env = "PATINA_KERNEL")]
    pub kernel: Option<PathBuf>,

    /// Root file system of VMs that name none [default: likewise, rootfs.erofs]
    #[arg(long, value_name = "FILE", env = "PATINA_ROOTFS")]
    pub rootfs: Option<PathBuf>,

    /// The vmm program [default: `vmm` beside this program]
    #[arg(long, value_name = "FILE", env = "PATINA_VMM")]
    pub vmm: Option<PathBuf>,

    /// How many warm vmm processes each family has ready for its next clones, once a VM of it is ready
    #[arg(long, value_name = "N", default_value_t = 2, env = "PATINA_WARM", value_parser = clap::value_parser!(u16).range(0..=256))]
    pub warm: u16,

    /// Most clones at once on this host, those that guests have tickets for included
    #[arg(long, value_name = "N", default_value_t = 256, env = "PATINA_MAX_VMS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_vms: u32,

    /// Serve metrics in Prometheus's form on this loopback address, for example 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS", env = "PATINA_METRICS")]
    pub metrics: Option<SocketAddr>,

    /// Log in JSON
    #[arg(long)]
    pub log_json: bool,
}

/// Settings of the scheduler that is built in.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Built-in scheduler")]
pub struct Granting {
    /// How long a ticket may stay unused, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, env = "PATINA_TICKET_TTL", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub ticket_ttl: u64,

    /// CPUs that clones may have for each CPU of the host: most of them wait most of the time
    #[arg(long, value_name = "N", default_value_t = 128, env = "PATINA_OVERCOMMIT_CPU", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub overcommit_cpu: u32,

    /// Memory that clones may have for each MiB of the host: they share what they do not write
    #[arg(long, value_name = "N", default_value_t = 8, env = "PATINA_OVERCOMMIT_MEMORY", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub overcommit_memory: u32,
}

impl Options {
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

    #[test]
    fn the_command_line_is_sound_and_needs_no_configuration() {
        Options::command().debug_assert();
        let options = Options::try_parse_from(["vmmd", "--standalone"]).unwrap();
        assert_eq!(options.listen.to_string(), "unix:/run/patina/vmmd.sock");
        assert_eq!((options.warm, options.max_vms), (2, 256));
        assert!(Options::try_parse_from(["vmmd"]).is_err(), "either way must be said");
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let refused = |args: &[&str]| {
            let args = ["vmmd", "--standalone"].iter().chain(&args[1..]);
            Options::try_parse_from(args).unwrap_err().to_string()
        };
        assert!(refused(&["vmmd", "--scheduler", "unix:/s"]).contains("cannot be used with"));
        let text = refused(&["vmmd", "--network", "100.64.0.0/24"]);
        assert!(text.contains("/20"), "{text}");
        let text = refused(&["vmmd", "--listen", "tcp:0.0.0.0:1"]);
        assert!(text.contains("TLS comes later"), "{text}");
        assert!(refused(&["vmmd", "--warm", "257"]).contains("257"));
        assert!(refused(&["vmmd", "--max-vms", "0"]).contains("--max-vms"));
    }
}
