//! `vmctl pki`: makes the certificates with which hosts, schedulers and operators know each other
//! over TCP.

use crate::{
    error::CtlError,
    output::{self, Format},
};
use clap::Subcommand;
use patina_daemon::tls::{Identity, Role};
use patina_pki::{Address, Authority, Made, Name, Validity};
use serde::Serialize;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What to make.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an authority: the folder with the key that signs all certificates. Keep it where no
    /// host can read it.
    Init {
        /// Where the authority and all that it signs is kept.
        #[command(flatten)]
        place: Place,
        /// How many days it is valid.
        #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Make a certificate for a host's vmmd, or for a scheduler.
    Host {
        /// The host's name, by which others reach it.
        name: Name,
        /// Another name or an IP address by which others reach it; may be repeated.
        #[arg(long = "address", value_name = "ADDRESS")]
        addresses: Vec<Address>,
        /// The id of a vmmd that has run before, as `vmctl host ls` or its file `host-id` says
        /// [default: a new one].
        #[arg(long, value_name = "UUID")]
        id: Option<Uuid>,
        /// Where the authority is, and how long the certificate is valid.
        #[command(flatten)]
        signing: Signing,
    },
    /// Make a certificate for an operator: a person or a program that calls.
    Operator {
        /// The operator's name, for logs.
        name: Name,
        /// What the operator may do: `view` looks; `use` makes, clones, uses and ends VMs too, and
        /// reserves room for them; `admin` may do everything.
        #[arg(long, value_parser = role_parser())]
        role: Role,
        /// Where the authority is, and how long the certificate is valid.
        #[command(flatten)]
        signing: Signing,
    },
}

/// Where the authority is.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// The folder of the authority.
    #[arg(long, value_name = "DIR", default_value = "patina-pki", env = "PATINA_PKI_DIR")]
    dir: PathBuf,
}

/// What every certificate needs.
#[derive(Debug, clap::Args)]
pub struct Signing {
    #[command(flatten)]
    place: Place,
    /// How many days it is valid.
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Make a new certificate in the place of an earlier one. A host keeps its id and its
    /// addresses.
    #[arg(long)]
    renew: bool,
}

fn role_parser() -> impl clap::builder::TypedValueParser<Value = Role> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(Role::ALL.map(Role::name)).try_map(|text| text.parse::<Role>())
}

/// What was made, as `-o json` prints it.
#[derive(Debug, Serialize)]
struct MadeView {
    folder: PathBuf,
    host_id: Option<String>,
    role: Option<&'static str>,
}

/// Makes it, and says which file goes where.
pub fn run(format: Format, command: Command) -> Result<(), CtlError> {
    let (view, words) = match command {
        Command::Init { place, days } => {
            Authority::create(&place.dir, Validity::days(days))?;
            let words = init_words(&place.dir);
            (MadeView { folder: place.dir, host_id: None, role: None }, words)
        }
        Command::Host { name, addresses, id, signing } => {
            let authority = Authority::open(&signing.place.dir);
            let made = authority.host(&name, id, &addresses, Validity::days(signing.days), signing.renew)?;
            let words = host_words(&made);
            (view(made), words)
        }
        Command::Operator { name, role, signing } => {
            let authority = Authority::open(&signing.place.dir);
            let made = authority.operator(&name, role, Validity::days(signing.days), signing.renew)?;
            let words = operator_words(&made);
            (view(made), words)
        }
    };
    match format {
        Format::Json => output::json(&view),
        Format::Table => output::line(&words),
    }
}

fn view(made: Made) -> MadeView {
    let (host_id, role) = match made.identity {
        Identity::Host { id } => (Some(id.to_string()), None),
        Identity::Operator { role, .. } => (None, Some(role.name())),
    };
    MadeView { folder: made.folder, host_id, role }
}

fn init_words(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "{dir}/ca.pem      the authority's certificate; every certificate's folder has a copy\n\
         {dir}/ca-key.pem  the authority's key: whoever reads it can make every certificate; it stays here\n\
         Next: vmctl pki host NAME --address ADDRESS, and vmctl pki operator NAME --role ROLE"
    )
}

fn host_words(made: &Made) -> String {
    format!(
        "{}  for {}\n\
         Copy ca.pem, cert.pem and key.pem from there to a folder of the host that only its vmmd can \
         read, /etc/patina/tls for example, and start vmmd or the scheduler with --tls-dir /etc/patina/tls",
        made.folder.display(),
        made.identity
    )
}

fn operator_words(made: &Made) -> String {
    format!(
        "{}  for {}\n\
         Give ca.pem, cert.pem and key.pem from there to the operator, who names their folder with \
         PATINA_TLS_DIR or vmctl --tls-dir",
        made.folder.display(),
        made.identity
    )
}
