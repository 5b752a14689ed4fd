//! The address on which a daemon listens: a Unix socket for its own user and the members of a
//! group, or TCP with TLS. Used by the scheduler and by `vmmd`.

pub use crate::accept::{Aside, Asides, Connection, Incoming};
use crate::{
    accept, chain, peer,
    tls::{Security, TlsError},
};
use rustix::net::sockopt::socket_peercred;
use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::fd::AsRawFd,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown},
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    str::FromStr,
};
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// An address and port of this machine.
    Tcp(SocketAddr),
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither form.
    #[error("write unix:/PATH or tcp:ADDRESS:PORT, not {0:?}")]
    Form(String),
    /// A path that depends on the folder.
    #[error("the path {0:?} is relative: write an absolute path")]
    Relative(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", path)) => Err(AddressError::Relative(path.to_owned())),
            Some(("tcp", address)) => {
                address.parse().map(Self::Tcp).map_err(|_| AddressError::Form(text.to_owned()))
            }
            _ => Err(AddressError::Form(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl Address {
    /// Removes the socket at the daemon's end. Where it cannot be removed the log says so; whoever
    /// listens there next replaces it.
    pub fn remove(&self) {
        if let Self::Unix(path) = self
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(socket = %path.display(), error = %chain(&error), "remove");
        }
    }
}

/// Why a daemon cannot listen on an address.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens on the socket.
    #[error("listen on {path}: another process{} listens there; stop it, or use another --listen", suffix(.pid))]
    InUse {
        /// The socket's path.
        path: PathBuf,
        /// The pid of the other process, if it is known.
        pid: Option<i32>,
    },
    /// The file at the path is no socket.
    #[error(
        "listen on {path}: a file that is not a socket is in the way; move it away, or use another --listen"
    )]
    NotASocket {
        /// The file's path.
        path: PathBuf,
    },
    /// Others could do everything.
    #[error(
        "listen on {address}: everyone who can connect would have full control; name certificates with --tls-dir (`vmctl pki` makes them), use unix:/PATH, or allow it with --insecure"
    )]
    Plain {
        /// The address on which the daemon was to listen.
        address: Address,
    },
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The kernel refuses to listen there.
    #[error("listen on {address}{}", rights(.source))]
    Io {
        /// The address on which the daemon was to listen.
        address: Address,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

fn rights(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run this as root, or use another --listen",
        io::ErrorKind::AddrInUse => "; stop what listens there, or use another --listen",
        _ => "",
    }
}

fn suffix(pid: &Option<i32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// Listens. A socket that nobody listens on any more is replaced. Connections that are not for gRPC
/// go to `asides`.
///
/// # Errors
/// Somebody listens there, the kernel refuses, or it is TCP without protection.
pub async fn listen(address: &Address, security: &Security, asides: Asides) -> Result<Incoming, ListenError> {
    let failed = |source| ListenError::Io { address: address.clone(), source };
    match address {
        Address::Unix(path) => {
            make_folder(path).map_err(failed)?;
            clear(path).map_err(|error| error.unwrap_or_else(failed))?;
            let listener = bind(path, peer::group()).map_err(failed)?;
            Ok(accept::unix(UnixListenerStream::new(listener), asides))
        }
        Address::Tcp(tcp) => {
            let tls = match security {
                Security::UnixOnly => return Err(ListenError::Plain { address: address.clone() }),
                Security::Insecure => None,
                Security::Tls(tls) => {
                    // Clients take no other certificate for a server's.
                    tls.host_id()?;
                    Some(tls.clone())
                }
            };
            let listener = TcpListener::bind(tcp).await.map_err(failed)?;
            let accepted = TcpListenerStream::new(listener);
            Ok(match tls {
                Some(tls) => accept::secured(accepted, asides, tls),
                None => {
                    tracing::warn!(%address, "--insecure: everyone who can connect there can do anything");
                    accept::open(accepted, asides)
                }
            })
        }
    }
}

/// Makes the socket where nobody else can reach it, gives it its group and mode, and only then its
/// name: the umask may be anything, and whoever has connected stays connected.
fn bind(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let closed = tempfile::Builder::new()
        .prefix(".listen-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(folder)?;
    let made = closed.path().join("s");
    // A socket's path has at most 107 bytes: it is named through its open folder, and moved by its
    // own name.
    let open = fs::File::open(closed.path())?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/s", open.as_raw_fd()))?;
    let mode = match group.map(|group| chown(&made, None, Some(group))) {
        Some(Ok(())) => 0o660,
        None => 0o600,
        Some(Err(error)) => {
            tracing::warn!(error = %chain(&error), "the group {} cannot use the socket; run this as root", peer::GROUP);
            0o600
        }
    };
    fs::set_permissions(&made, fs::Permissions::from_mode(mode))?;
    fs::rename(&made, path)?;
    Ok(listener)
}

fn make_folder(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

/// Outcome of [`clear`]: our own error, or the kernel's to be wrapped.
enum Clear {
    Ours(ListenError),
    Kernel(io::Error),
}

impl Clear {
    fn unwrap_or_else(self, wrap: impl FnOnce(io::Error) -> ListenError) -> ListenError {
        match self {
            Self::Ours(error) => error,
            Self::Kernel(error) => wrap(error),
        }
    }
}

fn clear(path: &Path) -> Result<(), Clear> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Clear::Kernel(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Clear::Ours(ListenError::NotASocket { path: path.to_owned() }));
        }
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Ok(stream) => {
            let pid = socket_peercred(&stream).ok().map(|peer| peer.pid.as_raw_nonzero().get());
            Err(Clear::Ours(ListenError::InUse { path: path.to_owned(), pid }))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "a socket that nobody listens on is replaced");
            fs::remove_file(path).map_err(Clear::Kernel)
        }
        Err(error) => Err(Clear::Kernel(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn addresses_read_back() {
        for text in ["unix:/run/x.sock", "tcp:127.0.0.1:80", "tcp:[::1]:80"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert!(matches!("unix:x".parse::<Address>(), Err(AddressError::Relative(_))));
        assert!(matches!("/run/x".parse::<Address>(), Err(AddressError::Form(_))));
        assert!(matches!("tcp:localhost:1".parse::<Address>(), Err(AddressError::Form(_))));
        assert!("tcp:10.0.0.1:1".parse::<Address>().is_ok());
    }

    #[tokio::test]
    async fn tcp_without_protection_is_refused_also_on_loopback_unless_somebody_says_so() {
        for text in ["tcp:127.0.0.1:0", "tcp:[::1]:0", "tcp:0.0.0.0:0"] {
            let address = text.parse().unwrap();
            let Err(error) = listen(&address, &Security::UnixOnly, None).await else { panic!("{text}") };
            assert!(error.to_string().contains("--tls-dir") && error.to_string().contains("--insecure"));
        }
        assert!(listen(&"tcp:127.0.0.1:0".parse().unwrap(), &Security::Insecure, None).await.is_ok());
    }

    #[tokio::test]
    async fn a_group_gets_the_socket_and_others_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.sock");
        let group = rustix::process::getgid().as_raw();
        let _listener = bind(&path, Some(group)).unwrap();
        let facts = fs::metadata(&path).unwrap();
        assert_eq!((facts.permissions().mode() & 0o777, facts.gid()), (0o660, group));
    }

    #[tokio::test]
    async fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/d.sock");
        let address = Address::Unix(path.clone());
        let first = listen(&address, &Security::UnixOnly, None).await.unwrap();
        let mode = if peer::group().is_some() { 0o660 } else { 0o600 };
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        let Err(error) = listen(&address, &Security::UnixOnly, None).await else {
            panic!("two listen on one path")
        };
        let text = error.to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        drop(first);
        assert!(listen(&address, &Security::UnixOnly, None).await.is_ok());
        address.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_is_nobody_elses_from_its_first_moment_on_whatever_the_umask() {
        use rustix::fs::inotify;
        use std::mem::MaybeUninit;
        let folder = tempfile::tempdir().unwrap();
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, folder.path(), inotify::WatchFlags::ALL_EVENTS).unwrap();
        let path = folder.path().join("d.sock");
        let _listener = listen(&Address::Unix(path.clone()), &Security::UnixOnly, None).await.unwrap();
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut space);
        let mut told = Vec::new();
        while let Ok(event) = events.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.as_deref() == Some("d.sock") {
                told.push(event.events());
            }
        }
        // Moved there as it is to be: neither made there nor changed afterwards.
        assert!(told.iter().any(|e| e.contains(inotify::ReadFlags::MOVED_TO)), "{told:?}");
        assert!(
            !told.iter().any(|e| e.intersects(inotify::ReadFlags::CREATE | inotify::ReadFlags::ATTRIB)),
            "{told:?}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else stays");
        StdUnixStream::connect(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_not_deleted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let result = listen(&Address::Unix(file.path().to_owned()), &Security::UnixOnly, None).await;
        assert!(matches!(result, Err(ListenError::NotASocket { .. })));
        assert!(file.path().exists());
    }
}
