//! Over TCP: who is refused, and who may do what.

use crate::{
    fake::{family, request, why},
    server::{SOON, Server, free_port},
};
use patina_daemon::tls::{AUTHORITY, CERTIFICATE, KEY, Role, Security, Tls};
use patina_pki::{Authority, Validity};
use patina_proto::v1::{
    self, AdmitClonesRequest, FenceHostRequest, HostInfo, KillClones, ListFamilyRequest, ListHostsRequest,
    ListTicketsRequest, ReserveVmidsRequest, SetHostSchedulingRequest, UnuseTicketRequest, UseTicketRequest,
};
use scheduler::{
    client::{self, Connection, Target},
    host::{Clones, HostLink, Present, Registration},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};
use tonic::{Code, Status};
use uuid::Uuid;

/// An authority, and a scheduler with a certificate of it.
struct Place {
    folder: TempDir,
    authority: Authority,
    server: Server,
}

fn days() -> Validity {
    Validity::days(30)
}

fn over() -> Validity {
    let day = Duration::from_secs(86_400);
    Validity { from: SystemTime::now() - 2 * day, to: SystemTime::now() - day }
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("pki"), days()).unwrap();
        let addresses = ["127.0.0.1".parse().unwrap()];
        let made = authority.host(&"s".parse().unwrap(), None, &addresses, days(), false).unwrap();
        let used = folder.path().join("used");
        fs::create_dir(&used).unwrap();
        for name in [AUTHORITY, CERTIFICATE, KEY] {
            replace(&made.folder, &used, name);
        }
        let server = Server::on_tcp(&["--tls-dir", used.to_str().unwrap()]);
        Self { folder, authority, server }
    }

    /// What the scheduler uses.
    fn used(&self) -> PathBuf {
        self.folder.path().join("used")
    }

    fn operator(&self, role: Role) -> Connection {
        let name = role.name().parse().unwrap();
        self.connect(&self.authority.operator(&name, role, days(), false).unwrap().folder)
    }

    fn host(&self, name: &str, id: Uuid) -> Connection {
        let made = self.authority.host(&name.parse().unwrap(), Some(id), &[], days(), false).unwrap();
        self.connect(&made.folder)
    }

    fn connect(&self, folder: &Path) -> Connection {
        let target = Target::Https { host: "127.0.0.1".into(), port: self.server.port() };
        client::connect(&target, &Security::Tls(Tls::open(folder).unwrap())).unwrap()
    }

    /// Connects as one who checks nothing of its own: the server's certificate, once it has taken
    /// the client's.
    async fn raw(&self, own: Option<&Path>) -> io::Result<CertificateDer<'static>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.used().join(AUTHORITY)).unwrap()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let chain = vec![CertificateDer::from_pem_file(own.join(CERTIFICATE)).unwrap()];
                let key = PrivateKeyDer::from_pem_file(own.join(KEY)).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(("127.0.0.1", self.server.port())).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let answer = timeout(SOON, stream.read_u8()).await.unwrap();
        answer.map(|_| stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
    }
}

/// In the way of a copy that a program may read at any moment.
fn replace(from: &Path, to: &Path, name: &str) {
    let beside = to.join("new");
    fs::copy(from.join(name), &beside).unwrap();
    fs::rename(beside, to.join(name)).unwrap();
}

fn role() -> (Code, String) {
    (Code::PermissionDenied, "ROLE".to_owned())
}

fn foreign() -> (Code, String) {
    (Code::PermissionDenied, "FOREIGN_HOST".to_owned())
}

#[test]
fn tcp_without_tls_is_refused_at_the_start_also_on_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let start = |more: &[&str]| {
        // One that starts is ended: the test fails and does not wait for ever.
        let mut command = Command::new("timeout");
        command.arg("20").arg(env!("CARGO_BIN_EXE_scheduler"));
        command.arg(format!("--listen=tcp:127.0.0.1:{}", free_port()));
        command.arg("--state-dir").arg(folder.path().join("state")).args(more);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = start(&[]);
    assert!(said.contains("--tls-dir") && said.contains("--insecure"), "{said}");
    let said = start(&["--tls-dir", folder.path().to_str().unwrap()]);
    assert!(said.contains("vmctl pki"), "{said}");
    let authority = Authority::create(&folder.path().join("pki"), days()).unwrap();
    let operator = authority.operator(&"a".parse().unwrap(), Role::Admin, days(), false).unwrap();
    let said = start(&["--tls-dir", operator.folder.to_str().unwrap()]);
    assert!(said.contains("a server needs one of `vmctl pki host`"), "{said}");
}

#[tokio::test]
async fn tcp_without_tls_works_where_somebody_has_said_so() {
    let server = Server::on_tcp(&["--insecure"]);
    let target: Target = format!("tcp:127.0.0.1:{}", server.port()).parse().unwrap();
    let mut client = client::connect(&target, &Security::Insecure).unwrap().client();
    assert!(client.list_hosts(ListHostsRequest::default()).await.is_ok());
    assert!(client::connect(&target, &Security::UnixOnly).is_err());
}

#[tokio::test]
async fn who_shows_no_certificate_or_a_wrong_one_gets_no_connection() {
    let place = Place::new();
    let good = place.authority.operator(&"a".parse().unwrap(), Role::View, days(), false).unwrap();
    assert!(place.raw(Some(&good.folder)).await.is_ok());
    let none = place.raw(None).await.unwrap_err().to_string();
    assert!(none.contains("CertificateRequired"), "{none}");
    let late = place.authority.operator(&"b".parse().unwrap(), Role::Admin, over(), false).unwrap();
    let late = place.raw(Some(&late.folder)).await.unwrap_err().to_string();
    assert!(late.contains("CertificateExpired"), "{late}");
    let other = Authority::create(&place.folder.path().join("other"), days()).unwrap();
    let foreign = other.operator(&"a".parse().unwrap(), Role::Admin, days(), false).unwrap();
    let foreign = place.raw(Some(&foreign.folder)).await.unwrap_err().to_string();
    assert!(foreign.contains("UnknownCA") || foreign.contains("DecryptError"), "{foreign}");
    // In plain text.
    let mut stream = TcpStream::connect(("127.0.0.1", place.server.port())).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await.unwrap().ok();
    assert!(answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21), "no more than an alert");
    // The scheduler is none the worse.
    assert!(place.raw(Some(&good.folder)).await.is_ok());
}

#[tokio::test]
async fn a_client_that_says_nothing_holds_up_no_other() {
    let place = Place::new();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(("127.0.0.1", place.server.port())).await.unwrap());
    }
    let mut client = place.operator(Role::View).client();
    timeout(Duration::from_secs(4), client.list_hosts(ListHostsRequest::default())).await.unwrap().unwrap();
}

#[tokio::test]
async fn operators_may_do_what_their_role_says() {
    let place = Place::new();
    let fence = || FenceHostRequest { host_id: Uuid::new_v4().to_string() };
    let ask = || request(&family(), 1);
    let mut view = place.operator(Role::View).client();
    assert!(view.list_hosts(ListHostsRequest::default()).await.is_ok());
    assert!(view.list_tickets(ListTicketsRequest::default()).await.is_ok());
    assert_eq!(why(view.request_ticket(ask()).await), role());
    assert_eq!(why(view.fence_host(fence()).await), role());
    let using = place.operator(Role::Use);
    let mut client = using.client();
    assert!(client.list_hosts(ListHostsRequest::default()).await.is_ok());
    assert_eq!(why(client.request_ticket(ask()).await).1, "NO_CAPACITY");
    assert_eq!(why(client.fence_host(fence()).await), role());
    let admin = place.operator(Role::Admin);
    assert_eq!(why(admin.client().fence_host(fence()).await).1, "UNKNOWN_HOST");
    // Nobody but a host speaks as one.
    let spent = UseTicketRequest::default();
    assert_eq!(why(admin.host_client().use_ticket(spent).await), role());
}

/// A host without clones, and with these masters.
struct Masters(Vec<String>);

impl Clones for Masters {
    fn present(&self) -> Present {
        Present { masters: Some(self.0.clone()), ..Present::default() }
    }
    fn kill(&self, _: KillClones) {}
}

/// How a registration ends. It lasts as long as the link.
async fn link(connection: &Connection, id: Uuid, masters: &[&str]) -> (HostLink, Registration) {
    let info =
        HostInfo { id: id.to_string(), name: "h".into(), cpus: 8, memory_mib: 1024, ..HostInfo::default() };
    let masters = masters.iter().map(|family| (*family).to_owned()).collect();
    let link = HostLink::start(connection.host_client(), info, Arc::new(Masters(masters)));
    let mut state = link.registration();
    let told = state.wait_for(|now| !matches!(now, Registration::Away { why } if why == "not asked yet"));
    let told = timeout(SOON, told).await.unwrap().unwrap().clone();
    (link, told)
}

async fn registered(connection: &Connection, id: Uuid) -> Registration {
    link(connection, id, &[]).await.1
}

#[tokio::test]
async fn a_host_speaks_for_itself_alone() {
    let place = Place::new();
    let (own, other) = (Uuid::new_v4(), Uuid::new_v4());
    let connection = place.host("h", own);
    assert!(matches!(registered(&connection, own).await, Registration::Registered { .. }));
    let Registration::Away { why: said } = registered(&connection, other).await else { panic!("registered") };
    assert!(said.contains(&format!("vmctl pki host NAME --id {other}")), "{said}");
    let mut client = connection.host_client();
    let ticket = || Uuid::new_v4().to_string();
    let by = |host: Uuid| UseTicketRequest {
        id: ticket(),
        host_id: host.to_string(),
        vmids: vec![1],
        ..UseTicketRequest::default()
    };
    assert_eq!(why(client.use_ticket(by(own)).await).1, "UNKNOWN_TICKET");
    assert_eq!(why(client.use_ticket(by(other)).await), foreign());
    let back = |host: Uuid| UnuseTicketRequest {
        id: ticket(),
        host_id: host.to_string(),
        ..UnuseTicketRequest::default()
    };
    assert_eq!(why(client.unuse_ticket(back(own)).await).1, "UNKNOWN_TICKET");
    assert_eq!(why(client.unuse_ticket(back(other)).await), foreign());
    let admit = |host: Uuid| AdmitClonesRequest {
        family: family(),
        host_id: host.to_string(),
        vmids: vec![1],
        vcpus: 1,
        memory_mib: 1,
        ..AdmitClonesRequest::default()
    };
    assert_eq!(why(client.admit_clones(admit(other)).await), foreign());
    assert_ne!(why(client.admit_clones(admit(own)).await).0, Code::PermissionDenied);
    let vmids = |host: Uuid| ReserveVmidsRequest {
        family: family(),
        host_id: host.to_string(),
        count: 2,
        ..ReserveVmidsRequest::default()
    };
    assert_eq!(why(client.reserve_vmids(vmids(other)).await), foreign());
    let reserved = client.reserve_vmids(vmids(own)).await;
    assert!(!matches!(reserved, Err(status) if status.code() == Code::PermissionDenied));
    let list = |host: Uuid| ListFamilyRequest { family: family(), host_id: host.to_string() };
    assert_eq!(why(client.list_family(list(other)).await), foreign());
    assert!(client.list_family(list(own)).await.is_ok());
    let operator = place.operator(Role::Admin);
    assert_eq!(why(operator.host_client().reserve_vmids(vmids(own)).await), role());
    // For its guests it may ask for tickets; it takes no host out of use.
    let list = ListTicketsRequest { family: family(), ..ListTicketsRequest::default() };
    assert!(connection.client().list_tickets(list).await.is_ok());
    let set = SetHostSchedulingRequest { host_id: own.to_string(), ..SetHostSchedulingRequest::default() };
    assert_eq!(why(connection.client().set_host_scheduling(set).await), role());
}

/// What comes of a call.
fn said<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    if result.is_ok() { (Code::Ok, String::new()) } else { why(result) }
}

/// Each call that a host can make for a family: what comes of it.
async fn calls_for(connection: &Connection, host: Uuid, family: &str, ticket: &str) -> Vec<(Code, String)> {
    let (mut client, mut host_client) = (connection.client(), connection.host_client());
    let (family, ticket, host_id) = (family.to_owned(), ticket.to_owned(), host.to_string());
    let wait = v1::JoinWait { vmid: 0, timeout_ms: 1 };
    let kill = v1::KillRequest { family: family.clone(), vmids: vec![1], ..v1::KillRequest::default() };
    vec![
        said(client.request_ticket(request(&family, 1)).await),
        said(client.get_ticket(v1::GetTicketRequest { id: ticket.clone(), family: String::new() }).await),
        said(
            client
                .list_tickets(ListTicketsRequest { family: family.clone(), ..ListTicketsRequest::default() })
                .await,
        ),
        said(client.watch_tickets(v1::WatchTicketsRequest { family: family.clone() }).await),
        said(
            client
                .sync(v1::SyncRequest {
                    ticket: ticket.clone(),
                    family: family.clone(),
                    timeout_ms: 1,
                    ..v1::SyncRequest::default()
                })
                .await,
        ),
        said(
            client
                .join(v1::JoinRequest {
                    ticket: ticket.clone(),
                    family: family.clone(),
                    side: Some(v1::join_request::Side::Wait(wait)),
                })
                .await,
        ),
        said(
            client
                .get_join_data(v1::GetJoinDataRequest {
                    ticket: ticket.clone(),
                    family: family.clone(),
                    vmid: 1,
                })
                .await,
        ),
        said(client.kill(kill).await),
        said(
            host_client
                .admit_clones(AdmitClonesRequest {
                    family: family.clone(),
                    host_id: host_id.clone(),
                    vmids: vec![9],
                    vcpus: 1,
                    memory_mib: 1,
                    ..AdmitClonesRequest::default()
                })
                .await,
        ),
        said(
            host_client
                .reserve_vmids(ReserveVmidsRequest {
                    family: family.clone(),
                    host_id: host_id.clone(),
                    count: 2,
                    ..ReserveVmidsRequest::default()
                })
                .await,
        ),
        said(host_client.list_family(ListFamilyRequest { family, host_id }).await),
        said(client.release_ticket(v1::ReleaseTicketRequest { id: ticket, family: String::new() }).await),
    ]
}

#[tokio::test]
async fn a_host_calls_only_for_families_that_live_on_it() {
    let place = Place::new();
    let (own, other) = (Uuid::new_v4(), Uuid::new_v4());
    let (home, stranger) = (place.host("h", own), place.host("o", other));
    let (family, refused) = (family(), (Code::PermissionDenied, "FOREIGN_FAMILY".to_owned()));
    let (_home, registration) = link(&home, own, &[&family]).await;
    assert!(matches!(registration, Registration::Registered { .. }), "{registration:?}");
    // One that says that the same master is on it is not believed.
    let (_stranger, registration) = link(&stranger, other, &[&family]).await;
    assert!(matches!(registration, Registration::Registered { .. }), "{registration:?}");
    // The second host's room is not for it: else the family has a place there.
    let here = v1::RequestTicketRequest { host_ids: vec![own.to_string()], ..request(&family, 1) };
    let ticket = home.client().request_ticket(here).await.unwrap().into_inner().id;
    for (number, said) in calls_for(&stranger, other, &family, &ticket).await.into_iter().enumerate() {
        assert_eq!(said, refused, "call {number}");
    }
    // Nor sees it what is of all families.
    let mut client = stranger.client();
    assert_eq!(why(client.list_tickets(ListTicketsRequest::default()).await), refused);
    assert_eq!(why(client.watch_tickets(v1::WatchTicketsRequest::default()).await), refused);
    // A new family is of the host that calls first.
    assert_ne!(said(client.request_ticket(request(&Uuid::new_v4().to_string(), 1)).await), refused);
    // With a place on it, the family lives there, too.
    let there = v1::RequestTicketRequest { host_ids: vec![other.to_string()], ..request(&family, 1) };
    home.client().request_ticket(there).await.unwrap();
    for connection in [(&home, own), (&stranger, other)] {
        for (number, said) in
            calls_for(connection.0, connection.1, &family, &ticket).await.into_iter().enumerate()
        {
            assert_ne!(said, refused, "call {number}");
        }
    }
    // Operators see all.
    let mut operator = place.operator(Role::View).client();
    assert!(operator.list_tickets(ListTicketsRequest::default()).await.is_ok());
}

#[tokio::test]
async fn a_new_certificate_is_used_without_a_restart_once_it_is_whole() {
    let place = Place::new();
    let operator = place.authority.operator(&"a".parse().unwrap(), Role::View, days(), false).unwrap();
    let serving = || async { place.raw(Some(&operator.folder)).await.unwrap() };
    let on_disk = |folder: &Path| CertificateDer::from_pem_file(folder.join(CERTIFICATE)).unwrap();
    let first = on_disk(&place.used());
    assert_eq!(serving().await, first);
    let made = place.authority.host(&"s".parse().unwrap(), None, &[], days(), true).unwrap();
    assert_ne!(on_disk(&made.folder), first);
    replace(&made.folder, &place.used(), CERTIFICATE);
    assert_eq!(serving().await, first, "its key has not come yet");
    replace(&made.folder, &place.used(), KEY);
    assert_eq!(serving().await, on_disk(&made.folder));
    // One that is for somebody else is not used.
    let addresses = ["127.0.0.1".parse().unwrap()];
    let stranger = place.authority.host(&"t".parse().unwrap(), None, &addresses, days(), false).unwrap();
    for name in [CERTIFICATE, KEY] {
        replace(&stranger.folder, &place.used(), name);
    }
    assert_eq!(serving().await, on_disk(&made.folder));
}

#[tokio::test]
async fn a_client_takes_only_a_host_of_its_authority_with_the_name_that_it_calls() {
    let place = Place::new();
    let operator = place.authority.operator(&"a".parse().unwrap(), Role::View, days(), false).unwrap();
    let tls = Tls::open(&operator.folder).unwrap();
    let port = place.server.port();
    assert!(tls.connect("127.0.0.1", port).await.is_ok());
    let said = tls.connect("localhost", port).await.unwrap_err().to_string();
    assert!(said.contains("is for another name or address"), "{said}");
    let other = Authority::create(&place.folder.path().join("other"), days()).unwrap();
    let foreign = other.operator(&"a".parse().unwrap(), Role::View, days(), false).unwrap();
    let said = Tls::open(&foreign.folder).unwrap().connect("127.0.0.1", port).await.unwrap_err().to_string();
    assert!(said.contains("its certificate is of another authority"), "{said}");
    // As the one whom the server does not know, with an authority that it does: its own is refused
    // by the other side.
    fs::write(
        foreign.folder.join(AUTHORITY),
        [operator.folder.join(AUTHORITY), foreign.folder.join(AUTHORITY)]
            .map(|path| fs::read_to_string(path).unwrap())
            .concat(),
    )
    .unwrap();
    let said = Tls::open(&foreign.folder).unwrap().connect("127.0.0.1", port).await.unwrap_err().to_string();
    assert!(said.contains("it says that the certificate"), "{said}");
    let nobody = tls.connect("127.0.0.1", free_port()).await.unwrap_err();
    assert!(matches!(nobody, patina_daemon::tls::TlsError::Connect { .. }), "{nobody:?}");
}
