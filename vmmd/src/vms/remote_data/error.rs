//! Why clones are not made on other hosts, or not for them.

use crate::{
    pager::error::PagerError, plan::address::ForeignNet, process::generation::GenerationError,
    vms::members_data::error::TellError,
};
use blake3::Hash;
use patina_control::pager::{CREDENTIAL_MAX_BYTES, Credential};
use patina_pki::KeyError;
use patina_snapshot::{directory::DigestError, manifest::ManifestError};
use scheduler::client::TargetError;
use std::{io, net::Ipv4Addr, time::Duration};
use uuid::Uuid;

/// How long another host may take to make clones.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long another host may take to get the kernels and root file systems that it lacks.
pub const FETCH_PATIENCE: Duration = Duration::from_secs(1200);
/// The reason of a host that lacks a kernel or a root file system, for programs.
pub const MISSING_IMAGE: &str = "MISSING_IMAGE";
/// Most leases at a time.
pub const LEASES_MAX: usize = 512;

/// Why another host does not make clones.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The scheduler does not know where it is.
    #[error("find host {host}: the scheduler does not list it; see `vmctl host ls`")]
    NoHost {
        /// The host's name.
        host: String,
    },
    /// Its address cannot be used.
    #[error(
        "call host {host} at {address:?}; give that vmmd an address that this one reaches with --advertise"
    )]
    Address {
        /// The host's name.
        host: String,
        /// The address that it tells.
        address: String,
        /// Why not.
        #[source]
        source: TargetError,
    },
    /// It says no, or nothing.
    #[error("make clones on host {host}: {}", .status.message())]
    Refused {
        /// The host's name.
        host: String,
        /// What it says.
        status: Box<tonic::Status>,
    },
    /// It lacks a kernel or a root file system, and does not get it.
    #[error("make clones on host {host}: {}", .status.message())]
    NotFetched {
        /// The host's name.
        host: String,
        /// What it says.
        status: Box<tonic::Status>,
    },
    /// It lacks a kernel or a root file system, and it takes too long to get it.
    #[error(
        "make clones on host {host}: it lacks the VM's kernel or root file system, and has not got it within {FETCH_PATIENCE:?}; copy \
         the file there, and start its vmmd with it"
    )]
    FetchLate {
        /// The host's name.
        host: String,
    },
    /// It does not answer.
    #[error("make clones on host {host}: it does not answer within {PATIENCE:?}")]
    Silent {
        /// The host's name.
        host: String,
    },
    /// One clone was not made there.
    #[error("on host {host}: {reason}")]
    Clone {
        /// The host's name.
        host: String,
        /// That host's reason.
        reason: String,
    },
    /// Its answer lacks a clone.
    #[error("make clones on host {host}: its answer does not tell of this one; see the log of its vmmd")]
    Untold {
        /// The host's name.
        host: String,
    },
    /// The family's network to other hosts cannot be made. For all hosts.
    #[error("make the family's network to other hosts: {0}")]
    Network(String),
    /// The generation cannot be described or lent. For all hosts.
    #[error("prepare the VM's memory for other hosts: {0}")]
    Prepare(PrepareError),
}

/// Why a generation cannot be described or lent.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A layer cannot be read.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// It cannot be described.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its files cannot be used.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The pager does not keep a layer.
    #[error(transparent)]
    Pager(#[from] PagerError),
    /// Too much is lent.
    #[error(transparent)]
    Leases(#[from] TooManyLeases),
    /// There is no certificate for the connections.
    #[error("make a certificate for the connections of the pagers")]
    Key(#[from] KeyError),
}

/// Why another host's pager does not get a connection.
#[derive(Debug, thiserror::Error)]
pub enum PagesError {
    /// It does not say for which lease it has come.
    #[error("it says nothing for {0:?}")]
    Silent(Duration),
    /// It is gone.
    #[error("it broke")]
    Broken(#[source] io::Error),
    /// What it says is of no known form.
    #[error("it is none of this release; give all hosts the same release of vmmd")]
    Foreign,
    /// Nothing is lent under this name.
    #[error("there is no lease {0}; it has ended, or this vmmd was started anew")]
    NoLease(Uuid),
    /// The pager does not serve it.
    #[error(transparent)]
    Pager(#[from] PagerError),
}

/// Why the clones of a VM of another host cannot be made here.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// A field of the call is wrong.
    #[error("the call's {field} is {found:?}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
    },
    /// The description of the generation is wrong.
    #[error("read the description of the VM's memory")]
    Manifest(#[from] ManifestError),
    /// The state is not the one that was described.
    #[error("the VM's state is damaged")]
    State,
    /// The call is for another host.
    #[error(
        "the call is for host {wanted}, and this is host {own}; give that vmmd an address of its own with --listen or --advertise"
    )]
    OtherHost {
        /// The host that was to be called.
        wanted: Uuid,
        /// This host.
        own: String,
    },
    /// This host has not the VM's kernel or root file system.
    #[error("this host has no {field} with the content that the VM has (blake3 {wanted}): {tried}")]
    NoImage {
        /// `kernel` or `rootfs`.
        field: &'static str,
        /// The digest of the file that is needed.
        wanted: Hash,
        /// The files that were looked at, and what is wrong with each.
        tried: String,
    },
    /// No other host may read a file with this content here.
    #[error("this host gives no file with content blake3 {0}")]
    NotOffered(Hash),
    /// This host has none of the layers completely.
    #[error("this host has none of these layers completely")]
    NotHeld,
    /// The calling host may not have the layers.
    #[error("family {family} has no VM on host {host}, as far as this host knows, or none here")]
    Stranger {
        /// The calling host.
        host: Uuid,
        /// The family.
        family: Uuid,
    },
    /// The layers cannot be lent.
    #[error(transparent)]
    NotLent(PrepareError),
    /// Other hosts read many files.
    #[error("other hosts read many files here, the most; try again")]
    Reading,
    /// This kernel cannot run VMs whose memory has not arrived.
    #[error("this host's kernel is older than Linux 6.7")]
    Kernel,
    /// The memory cannot be served.
    #[error("have the VM's memory served")]
    Pager(#[from] PagerError),
    /// Another family has the network.
    #[error("family {other} has its network {base}/20 here; end that family, or move clones to another host")]
    Network {
        /// The first address.
        base: Ipv4Addr,
        /// The family that has the network.
        other: Uuid,
    },
    /// Another network of the machine has the bridge's name.
    #[error(
        "another vmmd of this machine has bridge {bridge}; hosts that share a network namespace cannot share a family"
    )]
    Bridge {
        /// The bridge.
        bridge: String,
    },
    /// The calling host has no network for families over several hosts, and this one has.
    #[error(
        "the calling host's vmmd has no --overlay, and this one's has; start vmmd with --overlay on all hosts, or on none"
    )]
    CallerAlone,
    /// This host has no network for families over several hosts, and the calling one has.
    #[error(
        "the calling host's vmmd has --overlay, and this one's has not; start vmmd with --overlay on all hosts, or on none"
    )]
    CalledAlone,
    /// A VM that lives here has a vmid that the other host gives.
    #[error("VM {0} of the family runs here already")]
    Lives(u32),
    /// What the other host says of the family's VMs cannot be.
    #[error(transparent)]
    Members(#[from] TellError),
    /// The network is not one of this host's.
    #[error(transparent)]
    Range(ForeignNet),
}

impl ReceiveError {
    /// A field that is wrong; so much of its value is told as a line has room for.
    #[must_use]
    pub fn field(field: &'static str, found: &str) -> Self {
        Self::Field { field, found: found.chars().take(64).collect() }
    }

    /// A field that is a UUID.
    ///
    /// # Errors
    /// It is none.
    pub fn uuid(field: &'static str, text: &str) -> Result<Uuid, Self> {
        text.parse().map_err(|_| Self::field(field, text))
    }

    /// The credential of a lease, as another host has sent it.
    ///
    /// # Errors
    /// One of its parts has a length that none has.
    pub fn credential(certificate: Vec<u8>, key: Vec<u8>) -> Result<Credential, Self> {
        let is_part = |bytes: &Vec<u8>| (1..=CREDENTIAL_MAX_BYTES).contains(&bytes.len());
        if [&certificate, &key].into_iter().all(is_part) {
            Ok(Credential { certificate, key })
        } else {
            Err(Self::field("certificate of the lease", "of a length that none has"))
        }
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
#[error(
    "lend a generation to another host: {LEASES_MAX} are lent, the most; try again when clones elsewhere have their memory"
)]
pub struct TooManyLeases;
