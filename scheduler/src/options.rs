//! The command line.

use crate::core::{api, ticket::Policy};
use clap::{Parser, ValueEnum};
use patina_daemon::{
    REVISION,
    listen::Address,
    values::{ValueError, factor, milliseconds, percent, time, ttl},
};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// What no option says.
const ENVIRONMENT: &str = "\
Environment:
  PATINA_LOG  what is logged: error, warn, info (the default), debug, trace; or by module, info,scheduler::core=debug";

/// The scheduler of a Patina cluster: grants tickets, places VMs on hosts, keeps the ledger.
#[derive(Debug, Clone, Parser)]
#[command(name = "scheduler", version = REVISION, after_help = ENVIRONMENT, max_term_width = 100)]
pub struct Options {
    /// Where to listen: unix:PATH, or tcp:ADDRESS:PORT with --tls-dir
    #[arg(long, default_value = "unix:/run/patina/scheduler.sock", env = "PATINA_SCHEDULER_LISTEN")]
    pub listen: Address,

    /// The folder with this scheduler's certificate, as `vmctl pki host` makes it: ca.pem, cert.pem
    /// and key.pem. A new certificate there is used at once
    #[arg(long, value_name = "DIR", env = "PATINA_SCHEDULER_TLS_DIR", conflicts_with = "insecure")]
    pub tls_dir: Option<PathBuf>,

    /// Serve TCP without TLS: everyone who can connect can do everything
    #[arg(long)]
    pub insecure: bool,

    /// Where the ledger is kept
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/patina-scheduler",
        env = "PATINA_SCHEDULER_STATE_DIR"
    )]
    pub state_dir: PathBuf,

    /// How long a ticket may stay unused: 600s, 10m, 1h
    #[arg(long, value_name = "TIME", default_value = "600s", env = "PATINA_SCHEDULER_TICKET_TTL", value_parser = ttl)]
    pub ticket_ttl: Duration,

    /// How long a host may be silent before it is suspect: it is granted nothing new, and nothing
    /// is ended
    #[arg(long, value_name = "TIME", default_value = "10s", env = "PATINA_SCHEDULER_LEASE", value_parser = lease)]
    pub lease: Duration,

    /// How long a host may be silent before it is lost, and its tickets are fenced; not shorter
    /// than the lease
    #[arg(long, value_name = "TIME", default_value = "5m", env = "PATINA_SCHEDULER_LOST_AFTER", value_parser = lost_after)]
    pub lost_after: Duration,

    /// How long a ticket is remembered after its end
    #[arg(long, value_name = "TIME", default_value = "24h", env = "PATINA_SCHEDULER_REMEMBER", value_parser = remember)]
    pub remember: Duration,

    /// CPUs that may be granted for each CPU of a host that does not say so itself
    #[arg(long, value_name = "FACTOR", default_value = "1.0", env = "PATINA_SCHEDULER_OVERCOMMIT_CPU", value_parser = factor, allow_negative_numbers = true)]
    pub overcommit_cpu: f64,

    /// Memory that may be granted for each MiB of a host that does not say so itself
    #[arg(long, value_name = "FACTOR", default_value = "1.0", env = "PATINA_SCHEDULER_OVERCOMMIT_MEMORY", value_parser = factor, allow_negative_numbers = true)]
    pub overcommit_memory: f64,

    /// How VMs are placed on hosts, where a request does not say
    #[arg(long, value_enum, default_value_t = Placing::Pack, env = "PATINA_SCHEDULER_POLICY")]
    pub policy: Placing,

    /// Serve metrics in Prometheus's form on this loopback address, for example 127.0.0.1:9465
    #[arg(long, value_name = "ADDRESS", env = "PATINA_SCHEDULER_METRICS")]
    pub metrics: Option<SocketAddr>,

    /// Log in JSON
    #[arg(long)]
    pub log_json: bool,
}

/// A [`Policy`] as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Placing {
    /// As few hosts as possible, the fullest first
    Pack,
    /// The emptiest first, evenly
    Spread,
}

impl Options {
    /// For the core.
    #[must_use]
    pub fn core(&self) -> api::Options {
        api::Options {
            ttl_ms: milliseconds(self.ticket_ttl),
            lease_ms: milliseconds(self.lease),
            // A host is not lost before it is suspect.
            lost_after_ms: milliseconds(self.lost_after.max(self.lease)),
            remember_ms: milliseconds(self.remember),
            cpu_percent: percent(self.overcommit_cpu),
            memory_percent: percent(self.overcommit_memory),
            policy: match self.policy {
                Placing::Pack => Policy::Pack,
                Placing::Spread => Policy::Spread,
            },
        }
    }
}

fn lease(text: &str) -> Result<Duration, ValueError> {
    time(text, Duration::from_millis(100), Duration::from_secs(3600))
}

fn lost_after(text: &str) -> Result<Duration, ValueError> {
    time(text, Duration::from_millis(100), Duration::from_secs(30 * 24 * 3600))
}

fn remember(text: &str) -> Result<Duration, ValueError> {
    time(text, Duration::from_secs(1), Duration::from_secs(30 * 24 * 3600))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound_and_needs_no_configuration() {
        Options::command().debug_assert();
        let options = Options::try_parse_from(["scheduler"]).unwrap();
        let core = options.core();
        assert_eq!((core.ttl_ms, core.lease_ms, core.cpu_percent), (600_000, 10_000, 100));
        assert_eq!(core.lost_after_ms, 300_000);
        assert_eq!(options.listen.to_string(), "unix:/run/patina/scheduler.sock");
    }

    /// Those of `vmmd` and `vmctl`, which may run in the same environment, have other names.
    #[test]
    fn its_variables_are_its_own() {
        let command = Options::command();
        let variables = command.get_arguments().filter_map(clap::Arg::get_env);
        let variables: Vec<_> = variables.map(|name| name.to_str().unwrap().to_owned()).collect();
        assert_eq!(variables.len(), 11);
        assert!(variables.iter().all(|name| name.starts_with("PATINA_SCHEDULER_")), "{variables:?}");
        assert!(Options::command().render_help().to_string().contains("PATINA_LOG"));
    }

    #[test]
    fn times_and_factors_have_units_and_bounds() {
        let words = ["scheduler", "--ticket-ttl", "2h", "--lease", "500ms", "--overcommit-cpu", "1.25"];
        let core = Options::try_parse_from(words).unwrap().core();
        assert_eq!((core.ttl_ms, core.lease_ms, core.cpu_percent), (7_200_000, 500, 125));
        let slow = ["scheduler", "--lease", "10m", "--lost-after", "1s"];
        let core = Options::try_parse_from(slow).unwrap().core();
        assert_eq!((core.lease_ms, core.lost_after_ms), (600_000, 600_000));
        let refused = |option: &str, value: &str, says: &str| {
            let error = Options::try_parse_from(["scheduler", option, value]).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused("--lease", "0s", "between 100ms and 3600s");
        refused("--lease", "10 parsecs", "500ms, 10s, 5m or 2h");
        refused("--ticket-ttl", "18446744073709551615h", "500ms, 10s");
        for value in ["0", "-1", "nan", "inf", "1025"] {
            refused("--overcommit-memory", value, "factor between 0.01 and 1024");
        }
    }
}
