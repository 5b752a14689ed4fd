//! Why there is no TLS with a peer, in words that say whose certificate is at fault.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error as RustlsError, pki_types::pem};

/// What is wrong with a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Its time is over.
    Expired,
    /// Its time has not begun.
    NotYet,
    /// Another authority has signed it.
    OtherAuthority,
    /// It is for another name or address.
    OtherName,
    /// It says neither host nor operator.
    Nobody,
    /// It is an operator's where a host's is needed.
    NotAHost,
    /// It is not for this use: a client's where a server's is needed, or the reverse.
    OtherUse,
    /// The private key is another one's.
    OtherKey,
    /// It is for somebody else than the one before it.
    OtherIdentity,
    /// Something else.
    Other(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "has expired; make a new one with `vmctl pki`",
            Self::NotYet => "is not valid yet; check the clocks of both machines",
            Self::OtherAuthority => "is of another authority; both sides need certificates of one `vmctl pki init`",
            Self::OtherName => {
                "is for another name or address; use a name that it has, or make one with `vmctl pki host --address`"
            }
            Self::Nobody => "names neither a host nor an operator; make one with `vmctl pki`",
            Self::NotAHost => "is an operator's; a server needs one of `vmctl pki host`",
            Self::OtherUse => "is not for this use; a server needs one of `vmctl pki host`",
            Self::OtherKey => "is not of the private key in key.pem; copy both of one certificate",
            Self::OtherIdentity => "is for somebody else than the one before; restart to use it",
            Self::Other(words) => words,
        })
    }
}

impl From<&RustlsError> for Problem {
    fn from(error: &RustlsError) -> Self {
        match error {
            RustlsError::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYet,
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::OtherAuthority,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::OtherName
                }
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                    Self::OtherUse
                }
                other => Self::Other(format!("is refused: {other}")),
            },
            RustlsError::InconsistentKeys(_) => Self::OtherKey,
            // What the other side says of our certificate.
            RustlsError::AlertReceived(alert) => match alert {
                AlertDescription::CertificateExpired => Self::Expired,
                AlertDescription::UnknownCA | AlertDescription::DecryptError => Self::OtherAuthority,
                AlertDescription::UnsupportedCertificate => Self::OtherUse,
                other => Self::Other(format!("is refused: {other:?}")),
            },
            other => Self::Other(format!("is refused: {other}")),
        }
    }
}

/// Why there is no TLS with a peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the folder.
    #[error("read {path}; make certificates with `vmctl pki`, and copy ca.pem, cert.pem and key.pem there")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A file of the folder holds something else.
    #[error("read {path}: it does not hold what it should, in PEM; copy it again")]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// Every user of the machine can read the private key.
    #[error("use {path}: every user can read this private key; chmod 600 it")]
    OpenKey {
        /// The file.
        path: PathBuf,
    },
    /// Our own certificate.
    #[error("use {path}: the certificate {problem}")]
    Own {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Problem,
    },
    /// There is no connection.
    #[error("connect to {address}")]
    Connect {
        /// Where to.
        address: String,
        /// The kernel's reason, or TLS's.
        #[source]
        source: io::Error,
    },
    /// The certificate of the server.
    #[error("connect to {address}: its certificate {problem}")]
    Server {
        /// Where to.
        address: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The server does not like our certificate.
    #[error("connect to {address}: it says that the certificate {path} {problem}")]
    Refused {
        /// Where to.
        address: String,
        /// Our certificate.
        path: PathBuf,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The server ended the connection, or says nothing.
    #[error("connect to {address}: {problem}; is it a vmmd or a scheduler with --tls-dir? Its log says more")]
    Silent {
        /// Where to.
        address: String,
        /// What it did.
        problem: &'static str,
    },
    /// A client that connects to us.
    #[error("take a connection")]
    Accept(#[source] io::Error),
    /// The certificate of a client that connects to us.
    #[error("take a connection: the client's certificate {0}")]
    Client(Problem),
    /// A client that takes too long.
    #[error("take a connection: the client is too slow")]
    Slow,
    /// The folder's certificates cannot be used for TLS at all.
    #[error("set up TLS")]
    Setup(#[source] RustlsError),
}

impl TlsError {
    /// Of a file of the folder.
    pub(super) fn pem(path: &Path, error: pem::Error) -> Self {
        match error {
            pem::Error::Io(source) => Self::Read { path: path.to_owned(), source },
            _ => Self::Form { path: path.to_owned() },
        }
    }

    /// Of a handshake as a client, or of what follows it.
    pub(super) fn connecting(address: &str, own: &Path, source: io::Error) -> Self {
        let address = address.to_owned();
        match source.get_ref().and_then(|inner| inner.downcast_ref::<RustlsError>()) {
            Some(error @ RustlsError::InvalidCertificate(_)) => {
                Self::Server { address, problem: error.into() }
            }
            Some(error @ RustlsError::AlertReceived(_)) => {
                Self::Refused { address, path: own.to_owned(), problem: error.into() }
            }
            Some(RustlsError::InvalidMessage(_)) => {
                Self::Silent { address, problem: "its answer is not TLS" }
            }
            _ if source.kind() == io::ErrorKind::UnexpectedEof => {
                Self::Silent { address, problem: "it ended the connection" }
            }
            _ => Self::Connect { address, source },
        }
    }

    /// Of a handshake as a server.
    pub(super) fn accepting(source: io::Error) -> Self {
        match source.get_ref().and_then(|inner| inner.downcast_ref::<RustlsError>()) {
            Some(RustlsError::NoCertificatesPresented) => {
                Self::Client(Problem::Other("is missing: it shows none".to_owned()))
            }
            Some(error @ RustlsError::InvalidCertificate(_)) => Self::Client(error.into()),
            _ => Self::Accept(source),
        }
    }
}
