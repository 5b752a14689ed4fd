//! An authority: a folder with its certificate and its key, and with the certificates that it has
//! signed.

use crate::{
    files,
    names::{Address, Name},
};
use patina_daemon::tls::{AUTHORITY, CERTIFICATE, Identity, KEY, Role, Tls, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use uuid::Uuid;

/// The authority's private key.
const AUTHORITY_KEY: &str = "ca-key.pem";
/// By which a host is reached, one a line: for the next certificate.
const ADDRESSES: &str = "addresses";
/// Certificates are valid for so long already when they are made: clocks differ.
const SKEW: Duration = Duration::from_secs(3600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Nothing is written over.
    #[error("make {0}: it is there already; use another --dir, or --renew for a new certificate")]
    Exists(PathBuf),
    /// No authority.
    #[error("read the authority's key {path}; make an authority with `vmctl pki init`, or name its --dir")]
    NoAuthority {
        /// The key.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Nothing to renew.
    #[error("renew {path}; leave out --renew for a first certificate")]
    NotThere {
        /// The folder.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A certificate that is to be renewed is of another kind.
    #[error("renew {0}: it is not a host's certificate; move the folder away")]
    NotAHost(PathBuf),
    /// A file.
    #[error("write {path}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The certificate cannot be made.
    #[error("sign a certificate")]
    Sign(#[from] rcgen::Error),
    /// The certificate that was made is of no use.
    #[error("check the new certificate")]
    Check(#[from] TlsError),
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From then on.
    pub from: SystemTime,
    /// Until then.
    pub to: SystemTime,
}

impl Validity {
    /// So many days from now on.
    #[must_use]
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self { from: now - SKEW, to: now + Duration::from_secs(u64::from(days) * 86_400) }
    }

    fn is_now(&self) -> bool {
        (self.from..self.to).contains(&SystemTime::now())
    }
}

/// A folder of certificates, as `--tls-dir` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The folder.
    pub folder: PathBuf,
    /// Who the certificate is for.
    pub identity: Identity,
}

/// An authority.
#[derive(Debug, Clone)]
pub struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Makes an authority in a folder that has none. The folder is its owner's alone.
    ///
    /// # Errors
    /// There is something under that name, or the folder cannot be written.
    pub fn create(folder: &Path, validity: Validity) -> Result<Self, PkiError> {
        let write = |source| PkiError::Write { path: folder.to_owned(), source };
        if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(PkiError::Exists(folder.to_owned()));
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = authority(validity).self_signed(&key)?;
        if let Some(parent) = folder.parent() {
            files::folder(parent).map_err(write)?;
        }
        let made = files::beside(folder).map_err(write)?;
        files::write(&made.path().join(AUTHORITY), &certificate.pem(), files::PUBLIC).map_err(write)?;
        files::write(&made.path().join(AUTHORITY_KEY), &key.serialize_pem(), files::SECRET).map_err(write)?;
        named(files::name(made, folder), folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The authority of a folder.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// A certificate for a host's vmmd, or for a scheduler: for both ends of connections. Without
    /// an id it gets a new one. `renew`: in the place of an earlier one, whose id and addresses it
    /// gets.
    ///
    /// # Errors
    /// There is one of that name, or none that is to be renewed, or the folder cannot be written.
    pub fn host(
        &self,
        name: &Name,
        id: Option<Uuid>,
        addresses: &[Address],
        validity: Validity,
        renew: bool,
    ) -> Result<Made, PkiError> {
        let folder = self.folder.join("hosts").join(name.as_str());
        let mut lines: Vec<String> = addresses.iter().map(Address::to_string).collect();
        let mut id = id;
        if renew {
            match earlier(&folder)? {
                Identity::Host { id: earlier } => id = id.or(Some(earlier)),
                Identity::Operator { .. } => return Err(PkiError::NotAHost(folder)),
            }
            if lines.is_empty() {
                let text = fs::read_to_string(folder.join(ADDRESSES));
                let text = text.map_err(|source| PkiError::NotThere { path: folder.clone(), source })?;
                lines = text.lines().map(str::to_owned).collect();
            }
        }
        let identity = Identity::Host { id: id.unwrap_or_else(Uuid::new_v4) };
        let mut params = leaf(name, &identity, validity)?;
        for address in [name.as_str()].into_iter().chain(lines.iter().map(String::as_str)) {
            params.subject_alt_names.push(match address.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(address.try_into()?),
            });
        }
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        let extra = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        self.sign(&params, &folder, identity, validity, renew, Some(&extra))
    }

    /// A certificate for an operator: for the client's end of connections.
    ///
    /// # Errors
    /// There is one of that name, or none that is to be renewed, or the folder cannot be written.
    pub fn operator(
        &self,
        name: &Name,
        role: Role,
        validity: Validity,
        renew: bool,
    ) -> Result<Made, PkiError> {
        let folder = self.folder.join("operators").join(name.as_str());
        if renew {
            earlier(&folder)?;
        }
        let identity = Identity::Operator { name: name.to_string(), role };
        let params = leaf(name, &identity, validity)?;
        self.sign(&params, &folder, identity, validity, renew, None)
    }

    fn sign(
        &self,
        params: &CertificateParams,
        folder: &Path,
        identity: Identity,
        validity: Validity,
        renew: bool,
        addresses: Option<&str>,
    ) -> Result<Made, PkiError> {
        let path = self.folder.join(AUTHORITY_KEY);
        let missing = |source| PkiError::NoAuthority { path: path.clone(), source };
        let own = KeyPair::from_pem(&fs::read_to_string(&path).map_err(missing)?)?;
        let authority_pem = fs::read_to_string(self.folder.join(AUTHORITY)).map_err(missing)?;
        // Who signs is named by its subject and its key alone.
        let issuer = Issuer::new(authority(validity), own);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &issuer)?;
        let write = |source| PkiError::Write { path: folder.to_owned(), source };
        if let Some(parent) = folder.parent() {
            files::folder(parent).map_err(write)?;
        }
        let made = files::beside(folder).map_err(write)?;
        let put =
            |name: &str, text: &str, mode| files::write(&made.path().join(name), text, mode).map_err(write);
        put(AUTHORITY, &authority_pem, files::PUBLIC)?;
        put(CERTIFICATE, &certificate.pem(), files::PUBLIC)?;
        put(KEY, &key.serialize_pem(), files::SECRET)?;
        let mut names = vec![AUTHORITY, CERTIFICATE, KEY];
        if let Some(addresses) = addresses {
            put(ADDRESSES, addresses, files::PUBLIC)?;
            names.push(ADDRESSES);
        }
        if validity.is_now() {
            Tls::open(made.path())?;
        }
        if renew {
            files::replace(&made, folder, &names).map_err(write)?;
        } else {
            named(files::name(made, folder), folder)?;
        }
        Ok(Made { folder: folder.to_owned(), identity })
    }
}

/// Who the certificate of a folder is for.
fn earlier(folder: &Path) -> Result<Identity, PkiError> {
    let missing = |source| PkiError::NotThere { path: folder.to_owned(), source };
    fs::metadata(folder).map_err(missing)?;
    Ok(Identity::of_file(&folder.join(CERTIFICATE))?)
}

fn named(named: io::Result<()>, folder: &Path) -> Result<(), PkiError> {
    named.map_err(|source| match source.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            PkiError::Exists(folder.to_owned())
        }
        _ => PkiError::Write { path: folder.to_owned(), source },
    })
}

fn authority(validity: Validity) -> CertificateParams {
    let mut params = base("Patina authority", validity);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(name: &Name, identity: &Identity, validity: Validity) -> Result<CertificateParams, PkiError> {
    let mut params = base(name.as_str(), validity);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for uri in identity.uris() {
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    }
    Ok(params)
}

fn base(name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = validity.from.into();
    params.not_after = validity.to.into();
    params
}

#[cfg(test)]
#[path = "authority_test.rs"]
mod tests;
