//! The address on which a daemon listens: a Unix socket for its own user, or TCP on a loopback
//! address. Used by the scheduler and by `vmmd`.

use crate::chain;
use futures::{Stream, StreamExt, stream::BoxStream};
use rustix::net::sockopt::socket_peercred;
use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::fd::AsRawFd,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    time::sleep,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::transport::server::Connected;

/// How long a daemon rests after a connection could not be accepted.
const REST: Duration = Duration::from_millis(100);

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// An address and port of the loopback interface.
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
    /// Others could reach it.
    #[error(
        "{0} is not a loopback address: there is no TLS and no authentication yet, so everyone who can connect would have full control; use tcp:127.0.0.1:PORT, or unix:/PATH through ssh"
    )]
    Open(SocketAddr),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", path)) => Err(AddressError::Relative(path.to_owned())),
            Some(("tcp", address)) => {
                let address: SocketAddr = address.parse().map_err(|_| AddressError::Form(text.to_owned()))?;
                if address.ip().is_loopback() {
                    Ok(Self::Tcp(address))
                } else {
                    Err(AddressError::Open(address))
                }
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

/// A connection of either kind.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

impl Connected for Box<dyn Connection> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Clients as they come.
pub type Incoming = BoxStream<'static, io::Result<Box<dyn Connection>>>;

/// Listens. A socket that nobody listens on any more is replaced.
///
/// # Errors
/// Somebody listens there, or the kernel refuses.
pub async fn listen(address: &Address) -> Result<Incoming, ListenError> {
    let failed = |source| ListenError::Io { address: address.clone(), source };
    match address {
        Address::Unix(path) => {
            make_folder(path).map_err(failed)?;
            clear(path).map_err(|error| error.unwrap_or_else(failed))?;
            let listener = bind(path).map_err(failed)?;
            Ok(rested(UnixListenerStream::new(listener)).map(|c| c.map(|c| Box::new(c) as _)).boxed())
        }
        Address::Tcp(tcp) => {
            tracing::warn!(%address, "every user of this host can connect there, and do anything");
            let listener = TcpListener::bind(tcp).await.map_err(failed)?;
            let streams = rested(TcpListenerStream::new(listener)).map(|stream| {
                let stream = stream?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream) as _)
            });
            Ok(streams.boxed())
        }
    }
}

/// With a pause after each error. If there are no descriptors, the next try would fail at once, and
/// whoever serves the stream tries again at once.
fn rested<T>(accepted: impl Stream<Item = io::Result<T>>) -> impl Stream<Item = io::Result<T>> {
    accepted.then(|accepted| async move {
        if let Err(error) = &accepted {
            tracing::warn!(error = %chain(error), "accept a connection; it is tried again");
            sleep(REST).await;
        }
        accepted
    })
}

/// Makes the socket where nobody else can reach it, gives it its mode, and only then its name: the
/// umask may be anything, and whoever has connected stays connected.
fn bind(path: &Path) -> io::Result<UnixListener> {
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
    fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
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

    #[test]
    fn addresses_read_back() {
        for text in ["unix:/run/x.sock", "tcp:127.0.0.1:80", "tcp:[::1]:80"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert!(matches!("unix:x".parse::<Address>(), Err(AddressError::Relative(_))));
        assert!(matches!("/run/x".parse::<Address>(), Err(AddressError::Form(_))));
        assert!(matches!("tcp:localhost:1".parse::<Address>(), Err(AddressError::Form(_))));
        assert!(matches!("tcp:10.0.0.1:1".parse::<Address>(), Err(AddressError::Open(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_without_descriptors_does_not_try_again_at_once() {
        let errors = [Err(io::Error::from_raw_os_error(24)), Err(io::ErrorKind::OutOfMemory.into())];
        let accepted = futures::stream::iter(errors.into_iter().chain([Ok(1), Ok(2)]));
        let before = tokio::time::Instant::now();
        let came: Vec<_> = rested(accepted).map(|came| came.ok()).collect().await;
        assert_eq!(came, [None, None, Some(1), Some(2)]);
        assert_eq!(before.elapsed(), REST * 2, "no pause after those that came");
    }

    #[tokio::test]
    async fn a_live_socket_is_left_alone_and_a_stale_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/d.sock");
        let address = Address::Unix(path.clone());
        let first = listen(&address).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let Err(error) = listen(&address).await else { panic!("two listen on one path") };
        let text = error.to_string();
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        drop(first);
        assert!(listen(&address).await.is_ok());
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
        let _listener = listen(&Address::Unix(path.clone())).await.unwrap();
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
        let result = listen(&Address::Unix(file.path().to_owned())).await;
        assert!(matches!(result, Err(ListenError::NotASocket { .. })));
        assert!(file.path().exists());
    }
}
