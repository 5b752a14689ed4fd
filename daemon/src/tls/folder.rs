//! What a folder of certificates holds, checked.

use super::{Identity, Problem, TlsError};
use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_rustls::rustls::{
    ClientConfig, Error as RustlsError, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};

/// The certificate of the authority, or several.
pub const AUTHORITY: &str = "ca.pem";
/// The own certificate, with those between it and the authority behind it.
pub const CERTIFICATE: &str = "cert.pem";
/// The private key of the own certificate.
pub const KEY: &str = "key.pem";
/// Gone through from the first to the last byte of a file: it is not larger than this.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// What both sides speak.
const PROTOCOL: &[u8] = b"h2";

/// What tells a file from the one that replaces it.
pub(super) type Stamp = (u64, i64, i64, u64);

/// Of the three files. Their order is that of their use.
pub(super) fn stamps(folder: &Path) -> io::Result<[Stamp; 3]> {
    let of = |name: &str| {
        let facts = fs::metadata(folder.join(name))?;
        Ok::<_, io::Error>((facts.ino(), facts.mtime(), facts.mtime_nsec(), facts.len()))
    };
    Ok([of(AUTHORITY)?, of(CERTIFICATE)?, of(KEY)?])
}

/// What a folder of certificates holds.
#[derive(Debug)]
pub(super) struct Loaded {
    pub identity: Identity,
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
    path: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl Loaded {
    /// Reads the folder, and checks that its certificate is of its authority, valid now, and of its
    /// key.
    pub fn read(folder: &Path) -> Result<Self, TlsError> {
        let path = folder.join(CERTIFICATE);
        let own = |error: &RustlsError| TlsError::Own { path: path.clone(), problem: error.into() };
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(roots(&folder.join(AUTHORITY))?);
        let chain = certificates(&path)?;
        let key = private_key(&folder.join(KEY))?;
        let verifier = verifier(&roots, &provider, &folder.join(AUTHORITY))?;
        let first = chain.first().ok_or_else(|| TlsError::Form { path: path.clone() })?;
        verifier.verify_client_cert(first, &chain[1..], UnixTime::now()).map_err(|error| own(&error))?;
        let identity =
            Identity::of(first).map_err(|problem| TlsError::Own { path: path.clone(), problem })?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| own(&error))?;
        // A session that is resumed is not checked again: a certificate that has expired meanwhile
        // would still do.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key)
            .map_err(|error| own(&error))?;
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        let (server, client) = (Arc::new(server), Arc::new(client));
        Ok(Self { identity, server, client, path, chain, verifier })
    }

    /// The file of the own certificate.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks the own certificate as the other side will, so long from now.
    pub fn check(&self, ahead: Duration) -> Result<(), TlsError> {
        let then = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + ahead);
        let Some((first, rest)) = self.chain.split_first() else { return Ok(()) };
        self.verifier
            .verify_client_cert(first, rest, then)
            .map(|_| ())
            .map_err(|error| TlsError::Own { path: self.path.clone(), problem: Problem::from(&error) })
    }
}

fn verifier(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    path: &Path,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|_| TlsError::Form { path: path.to_owned() })
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|_| TlsError::Form { path: path.to_owned() })?;
    }
    Ok(roots)
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = contents(path)?;
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|error| TlsError::pem(path, error))?;
    if certificates.is_empty() { Err(TlsError::Form { path: path.to_owned() }) } else { Ok(certificates) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = contents(path)?;
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(read)?.permissions().mode() & 0o007 != 0 {
        return Err(TlsError::OpenKey { path: path.to_owned() });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| TlsError::pem(path, error))
}

fn contents(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let facts = fs::metadata(path).map_err(read)?;
    if !facts.is_file() || facts.len() > FILE_MAX_BYTES {
        return Err(TlsError::Form { path: path.to_owned() });
    }
    fs::read(path).map_err(read)
}
