//! A `scheduler` for the benchmark alone, on loopback, with its ledger in a folder.

use patina_daemon::tls::Security;
use patina_proto::v1::{HostInfo, KillClones};
use scheduler::{
    client::{self, Client, Connection, Target, TargetError},
    host::{Clones, HostLink, Present, Registration},
};
use std::{
    error::Error,
    fs::File,
    net::TcpListener,
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};
use tokio::time::timeout;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// A host with no clones, ever.
struct Idle;

impl Clones for Idle {
    fn present(&self) -> Present {
        Present::default()
    }

    fn kill(&self, _: KillClones) {}
}

/// A running scheduler; killed when it is dropped.
pub struct Daemon {
    child: Child,
    target: Target,
}

impl Daemon {
    /// Waits until it is ready.
    pub fn start(program: &Path, folder: &Path) -> Result<Self, Box<dyn Error>> {
        // A free port; nobody else is likely to take it in between.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let notify = folder.join("notify");
        let manager = UnixDatagram::bind(&notify)?;
        manager.set_read_timeout(Some(PATIENCE))?;
        let child = Command::new(program)
            .arg("--listen")
            .arg(format!("tcp:127.0.0.1:{port}"))
            .arg("--insecure")
            .arg("--state-dir")
            .arg(folder.join("state"))
            .env("NOTIFY_SOCKET", &notify)
            .stderr(File::create(folder.join("log"))?)
            .spawn()?;
        let daemon = Self { child, target: Target::Http { host: "127.0.0.1".into(), port } };
        let ready = manager.recv(&mut [0; 16]);
        ready.map_err(|_| std::fs::read_to_string(folder.join("log")).unwrap_or_default())?;
        Ok(daemon)
    }

    /// A client with a connection of its own.
    pub fn client(&self) -> Result<Client, TargetError> {
        self.connection().map(|connection| connection.client())
    }

    fn connection(&self) -> Result<Connection, TargetError> {
        client::connect(&self.target, &Security::Insecure)
    }

    /// Registers a host that is large enough for everything.
    pub async fn host(&self) -> Result<HostLink, Box<dyn Error>> {
        let info = HostInfo {
            id: Uuid::new_v4().to_string(),
            name: "bench".into(),
            address: String::new(),
            cpus: 65_536,
            memory_mib: 1 << 30,
            ..HostInfo::default()
        };
        let link = HostLink::start(self.connection()?.host_client(), info, Arc::new(Idle));
        let mut registration = link.registration();
        let registered = registration.wait_for(|state| matches!(state, Registration::Registered { .. }));
        timeout(PATIENCE, registered).await??;
        Ok(link)
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<(), Box<dyn Error>> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Err(error) = self.child.kill().and_then(|()| self.child.wait())
        {
            patina_daemon::say!("clean up: {error}");
        }
    }
}
