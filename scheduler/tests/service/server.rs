//! A `scheduler` of one's own.

use patina_daemon::tls::Security;
use scheduler::client::{self, Client, Connection, HostClient, Target};
use std::{
    fs::File,
    io::ErrorKind,
    net::TcpListener,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// For whatever should happen soon.
pub const SOON: Duration = Duration::from_secs(30);

/// Nobody else is likely to take it in between.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub struct Server {
    folder: TempDir,
    options: Vec<String>,
    /// Where it listens; None: on its socket.
    port: Option<u16>,
    /// In a mount namespace of its own, with a small disk for its state.
    disk_kib: Option<u32>,
    child: Option<Child>,
}

impl Server {
    pub fn start(options: &[&str]) -> Self {
        Self::begin(options, None, None)
    }

    /// On a TCP port of the loopback interface.
    pub fn on_tcp(options: &[&str]) -> Self {
        Self::begin(options, None, Some(free_port()))
    }

    /// With its state on a disk of that size.
    pub fn on_small_disk(disk_kib: u32) -> Self {
        Self::begin(&[], Some(disk_kib), None)
    }

    fn begin(options: &[&str], disk_kib: Option<u32>, port: Option<u16>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = options.iter().map(|&word| word.to_owned()).collect();
        let mut server = Self { folder, options, port, disk_kib, child: None };
        server.start_again();
        server
    }

    /// After [`Server::kill`] or [`Server::stop`].
    pub fn start_again(&mut self) {
        self.start_as(self.command());
    }

    /// Starts it again with a log that takes nothing.
    pub fn start_with_log(&mut self, log: Stdio) {
        let mut command = self.command();
        command.stderr(log);
        self.start_as(command);
    }

    fn start_as(&mut self, mut command: Command) {
        let notify = self.folder.path().join("notify");
        if notify.exists() {
            std::fs::remove_file(&notify).unwrap();
        }
        let manager = UnixDatagram::bind(&notify).unwrap();
        let mut child = command.env("NOTIFY_SOCKET", &notify).spawn().unwrap();
        manager.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut text = [0; 16];
        // Each round lasts until the message or for a while: the process may have ended instead.
        for _ in 0..SOON.as_millis() / 100 {
            match manager.recv(&mut text) {
                Ok(length) => {
                    assert_eq!(&text[..length], b"READY=1");
                    self.child = Some(child);
                    return;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the scheduler has ended: {status}\n{}", self.log());
            }
        }
        panic!("the scheduler is not ready\n{}", self.log());
    }

    /// One that is not waited for.
    pub fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_scheduler");
        let mut command = match self.disk_kib {
            None => Command::new(program),
            Some(kib) => {
                let script = format!(
                    "mkdir -p \"$1\" && mount -t tmpfs -o size={kib}k disk \"$1\" && shift && exec \"$@\""
                );
                let mut command = Command::new("unshare");
                // Who is not root is, in there.
                command.args(rustix::process::geteuid().is_root().then_some("--mount").or(Some("-rm")));
                command.args(["--propagation", "private", "sh", "-ec", &script, "sh"]);
                command.arg(self.state()).arg(program);
                command
            }
        };
        let address = match self.port {
            Some(port) => format!("tcp:127.0.0.1:{port}"),
            None => format!("unix:{}", self.socket().display()),
        };
        command.arg("--listen").arg(address);
        command.arg("--state-dir").arg(self.state()).args(&self.options).arg("--log-json");
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        command.stderr(log).stdin(Stdio::null());
        command
    }

    fn connection(&self) -> Connection {
        client::connect(&Target::Unix(self.socket()), &Security::UnixOnly).unwrap()
    }

    pub fn client(&self) -> Client {
        self.connection().client()
    }

    pub fn host_client(&self) -> HostClient {
        self.connection().host_client()
    }

    /// A channel of one's own: `set_up` says how.
    pub async fn channel(&self, set_up: impl FnOnce(Endpoint) -> Endpoint) -> Channel {
        let socket = self.socket();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        set_up(Endpoint::from_static("http://x")).connect_with_connector(connector).await.unwrap()
    }

    /// Of [`Server::on_tcp`].
    pub fn port(&self) -> u16 {
        self.port.unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s.sock")
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The state as the process sees it: a small disk is there for nobody else.
    pub fn state_within(&self) -> PathBuf {
        Path::new("/proc")
            .join(self.pid().to_string())
            .join("root")
            .join(self.state().strip_prefix("/").unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// As a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// As an operator would.
    pub fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.kill();
    }
}
