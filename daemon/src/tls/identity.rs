//! Who a certificate is for.
//!
//! It stands in the certificate's subject alternative names, as URIs:
//! - of a host, `patina:host:UUID`, with the host's id;
//! - of an operator, `patina:operator:NAME` and `patina:role:ROLE`.
//!
//! The names that a host's server is reached by stand beside it as DNS names and IP addresses.

use super::{Problem, TlsError};
use std::{fmt, path::Path, str::FromStr};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};
use uuid::Uuid;
use webpki::EndEntityCert;

const HOST: &str = "patina:host:";
const OPERATOR: &str = "patina:operator:";
const ROLE: &str = "patina:role:";

/// What an operator may do. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    View,
    /// Make, clone, use and end VMs, and reserve room for them.
    Use,
    /// Everything.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::View, Self::Use, Self::Admin];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Use => "use",
            Self::Admin => "admin",
        }
    }
}

/// A text is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write view, use or admin, not {0:?}")]
pub struct RoleError(String);

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| RoleError(text.to_owned()))
    }
}

/// Who a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A host: its vmmd, or a scheduler.
    Host {
        /// The host's id.
        id: Uuid,
    },
    /// A person or a program that calls.
    Operator {
        /// Who, for the log.
        name: String,
        /// What it may do.
        role: Role,
    },
}

impl Identity {
    /// As a certificate carries it.
    #[must_use]
    pub fn uris(&self) -> Vec<String> {
        match self {
            Self::Host { id } => vec![format!("{HOST}{id}")],
            Self::Operator { name, role } => {
                vec![format!("{OPERATOR}{name}"), format!("{ROLE}{}", role.name())]
            }
        }
    }

    /// From a certificate whose signature has been checked. One that says it in two ways says
    /// nothing.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, Problem> {
        let certificate = EndEntityCert::try_from(certificate).map_err(|_| Problem::Nobody)?;
        Self::read(certificate.valid_uri_names()).ok_or(Problem::Nobody)
    }

    /// Who the certificate of a file says that it is for. Nothing else of it is checked.
    ///
    /// # Errors
    /// It cannot be read, or says nothing.
    pub fn of_file(path: &Path) -> Result<Self, TlsError> {
        let certificate = CertificateDer::from_pem_file(path).map_err(|error| TlsError::pem(path, error))?;
        Self::of(&certificate).map_err(|problem| TlsError::Own { path: path.to_owned(), problem })
    }

    fn read<'a>(uris: impl Iterator<Item = &'a str>) -> Option<Self> {
        let ours: Vec<&str> = uris.filter(|uri| uri.starts_with("patina:")).collect();
        match ours.as_slice() {
            [host] => {
                let id: Uuid = host.strip_prefix(HOST)?.parse().ok()?;
                Some(Self::Host { id })
            }
            [first, second] => {
                let operator = [first, second].into_iter().find_map(|uri| uri.strip_prefix(OPERATOR))?;
                let role = [first, second].into_iter().find_map(|uri| uri.strip_prefix(ROLE))?;
                Some(Self::Operator { name: operator.to_owned(), role: role.parse().ok()? })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { id } => write!(f, "host {id}"),
            Self::Operator { name, role } => write!(f, "operator {name} ({})", role.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_read_back_and_anything_ambiguous_is_nobody() {
        let host = Identity::Host { id: Uuid::from_u128(7) };
        let operator = |role| Identity::Operator { name: "ada".into(), role };
        let read = |uris: &[String]| Identity::read(uris.iter().map(String::as_str));
        for identity in [host.clone()].into_iter().chain(Role::ALL.map(operator)) {
            let mut uris = identity.uris();
            assert_eq!(read(&uris), Some(identity.clone()));
            uris.push("https://elsewhere".into());
            uris.reverse();
            assert_eq!(read(&uris), Some(identity));
        }
        let both = [host.uris(), operator(Role::View).uris()].concat();
        assert_eq!(read(&both), None);
        let roles = ["patina:role:view", "patina:role:admin", "patina:operator:a"].map(str::to_owned);
        for wrong in [&roles[..], &roles[..2], &roles[..1], &roles[2..], &[], &["patina:host:x".to_owned()]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        assert!(Role::View < Role::Use && Role::Use < Role::Admin);
    }
}
