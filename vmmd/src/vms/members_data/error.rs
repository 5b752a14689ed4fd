//! Why a host does not take what another one says of a family.

use std::net::SocketAddr;
use uuid::Uuid;

/// Why a host does not take what another one says of a family.
#[derive(Debug, thiserror::Error)]
pub enum TellError {
    /// A field of the message is wrong.
    #[error("hear of the VMs of a family on another host: its {field} is {found:?}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
    },
    /// This host has no address for it.
    #[error(
        "hear of the VMs of a family on another host: this host has no network for families over several hosts; start its vmmd with --overlay"
    )]
    NoOverlay,
    /// The hosts have different UDP ports.
    #[error(
        "hear of the VMs of a family on another host: it receives at {theirs}, and this host at {own}; start vmmd with the same port in --overlay on all hosts"
    )]
    Port {
        /// Of the other host.
        theirs: SocketAddr,
        /// Of this one.
        own: SocketAddr,
    },
    /// The message is for another host.
    #[error(
        "hear of the VMs of a family on another host: the call is for host {wanted:?}, and this is host {own}; give that vmmd an address of its own with --listen or --advertise"
    )]
    OtherHost {
        /// The host that was to be called.
        wanted: String,
        /// This host.
        own: String,
    },
    /// The other host has this one's id.
    #[error("hear of the VMs of a family on another host: host {0} is this one")]
    Own(Uuid),
    /// Nobody has said that the other host has VMs of the family.
    #[error(
        "hear of the VMs of a family on another host: no host of the family has named host {0}; it is told again when one has"
    )]
    Unknown(Uuid),
    /// The family has VMs on too many hosts.
    #[error("hear of the VMs of a family on another host: the family is on {0} other hosts, the most")]
    TooMany(usize),
}
