//! Mutual TLS for everything outside Unix sockets: both sides show a certificate of one authority.
//!
//! - [`Security`]: how TCP is protected. [`Tls`]: the certificates of a folder, for both sides; a
//!   new one is used as soon as it is there.
//! - `folder`: what the folder holds. [`Identity`]: who a certificate is for. [`TlsError`]: what
//!   is wrong, and with whose certificate.

mod error;
mod folder;
mod identity;

pub use error::{Problem, TlsError};
pub use folder::{AUTHORITY, CERTIFICATE, KEY};
pub use identity::{Identity, Role, RoleError};

use crate::{chain, lock};
use folder::{Loaded, Stamp, stamps};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{io::AsyncBufReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, client,
    rustls::pki_types::{CertificateDer, ServerName},
    server,
};

/// How long the other side may take for each step until both know each other.
const PATIENCE: Duration = Duration::from_secs(5);
/// A certificate that ends sooner is warned of.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// How TCP is protected.
#[derive(Debug, Clone)]
pub enum Security {
    /// By TLS.
    Tls(Tls),
    /// Not at all, as somebody has said in so many words.
    Insecure,
    /// There is no TCP.
    UnixOnly,
}

impl Security {
    /// As the options `--tls-dir` and `--insecure` say.
    ///
    /// # Errors
    /// The folder's certificates cannot be used.
    pub fn new(folder: Option<&Path>, insecure: bool) -> Result<Self, TlsError> {
        match folder {
            Some(folder) => Tls::open(folder).map(Self::Tls),
            None if insecure => Ok(Self::Insecure),
            None => Ok(Self::UnixOnly),
        }
    }
}

/// The certificates of a folder. Clones share them.
#[derive(Debug, Clone)]
pub struct Tls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    loaded: Arc<Loaded>,
    stamps: [Stamp; 3],
    /// Of files that could not be used, so that the log says it once.
    refused: Option<[Stamp; 3]>,
}

impl Tls {
    /// Reads the folder: [`AUTHORITY`], [`CERTIFICATE`] and [`KEY`].
    ///
    /// # Errors
    /// A file is missing, or the certificate is not valid, not of the authority or not of the key.
    pub fn open(folder: &Path) -> Result<Self, TlsError> {
        let stamps = stamps(folder).map_err(|source| TlsError::Read { path: folder.to_owned(), source })?;
        let loaded = Arc::new(Loaded::read(folder)?);
        warn_if_soon(&loaded);
        let kept = Mutex::new(Kept { loaded, stamps, refused: None });
        Ok(Self(Arc::new(Inner { folder: folder.to_owned(), kept })))
    }

    /// Who the own certificate is for.
    #[must_use]
    pub fn identity(&self) -> Identity {
        lock(&self.0.kept).loaded.identity.clone()
    }

    /// The id of the host that the own certificate is for.
    ///
    /// # Errors
    /// It is an operator's.
    pub fn host_id(&self) -> Result<uuid::Uuid, TlsError> {
        match self.identity() {
            Identity::Host { id } => Ok(id),
            Identity::Operator { .. } => {
                Err(TlsError::Own { path: self.0.folder.join(CERTIFICATE), problem: Problem::NotAHost })
            }
        }
    }

    /// The certificates as they are on the disk now; the earlier ones where those cannot be used,
    /// because a copy has only half arrived, for example. Three looks at the file system, for each
    /// connection.
    fn current(&self) -> Arc<Loaded> {
        let mut kept = lock(&self.0.kept);
        let Ok(now) = stamps(&self.0.folder) else { return Arc::clone(&kept.loaded) };
        if now == kept.stamps {
            return Arc::clone(&kept.loaded);
        }
        let read = Loaded::read(&self.0.folder).and_then(|new| {
            let is_same = new.identity == kept.loaded.identity;
            let problem = Problem::OtherIdentity;
            if is_same { Ok(new) } else { Err(TlsError::Own { path: new.path().to_owned(), problem }) }
        });
        match read {
            Ok(new) => {
                warn_if_soon(&new);
                tracing::info!(folder = %self.0.folder.display(), "new certificates are used from now on");
                *kept = Kept { loaded: Arc::new(new), stamps: now, refused: None };
            }
            Err(error) if kept.refused != Some(now) => {
                tracing::warn!(error = %chain(&error), "the earlier certificates are used on");
                kept.refused = Some(now);
            }
            Err(_) => {}
        }
        Arc::clone(&kept.loaded)
    }

    /// Does the handshake with a client that has connected: who it is.
    ///
    /// # Errors
    /// It shows no certificate, or one that is not valid, or it is too slow.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<(server::TlsStream<TcpStream>, Identity), TlsError> {
        let handshake = TlsAcceptor::from(Arc::clone(&self.current().server)).accept(stream);
        let stream = timeout(PATIENCE, handshake).await.map_err(|_| TlsError::Slow)?;
        let stream = stream.map_err(TlsError::accepting)?;
        let peer = peer(stream.get_ref().1.peer_certificates()).map_err(TlsError::Client)?;
        Ok((stream, peer))
    }

    /// Connects to a server, which must have a certificate for the name or address `host`. When
    /// this returns, the server has taken the own certificate.
    ///
    /// # Errors
    /// There is nobody, or one side does not take the certificate of the other.
    pub async fn connect(&self, host: &str, port: u16) -> Result<client::TlsStream<TcpStream>, TlsError> {
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let loaded = self.current();
        loaded.check(Duration::ZERO)?;
        let kernel = |source| TlsError::Connect { address: address.clone(), source };
        let silent = |problem| TlsError::Silent { address: address.clone(), problem };
        let late = |_| silent("it does not answer");
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| kernel(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = timeout(PATIENCE, TcpStream::connect((host, port))).await.map_err(late)?;
        let stream = stream.map_err(kernel)?;
        stream.set_nodelay(true).map_err(kernel)?;
        let handshake = TlsConnector::from(Arc::clone(&loaded.client)).connect(name, stream);
        let failed = |source| TlsError::connecting(&address, loaded.path(), source);
        let mut stream = timeout(PATIENCE, handshake).await.map_err(late)?.map_err(failed)?;
        match peer(stream.get_ref().1.peer_certificates()) {
            Ok(Identity::Host { .. }) => {}
            Ok(Identity::Operator { .. }) => {
                return Err(TlsError::Server { address, problem: Problem::NotAHost });
            }
            Err(problem) => return Err(TlsError::Server { address, problem }),
        }
        // In TLS 1.3 a client is done before the server has looked at its certificate. The first
        // that a server of HTTP/2 says unasked, its settings, follows that look.
        let first = timeout(PATIENCE, stream.fill_buf()).await.map_err(late)?.map_err(failed)?;
        if first.is_empty() {
            return Err(silent("it ended the connection"));
        }
        Ok(stream)
    }
}

fn peer(chain: Option<&[CertificateDer<'_>]>) -> Result<Identity, Problem> {
    chain.and_then(<[_]>::first).ok_or(Problem::Nobody).and_then(Identity::of)
}

fn warn_if_soon(loaded: &Loaded) {
    if loaded.check(SOON).is_err() {
        tracing::warn!(certificate = %loaded.path().display(), "it expires within {} days; make a new one with `vmctl pki`, and copy it here", SOON.as_secs() / 86_400);
    }
}
