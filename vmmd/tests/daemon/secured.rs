//! vmmd over TCP: who it is, whom it lets do what, and how its scheduler knows it.

use crate::{
    bench::{Bench, Client, kill, ready, tell, vm},
    steps::until,
};
use hyper_util::rt::TokioIo;
use patina_daemon::tls::{Role, Tls};
use patina_pki::{Address, Authority, Made, Validity};
use patina_proto::v1::{
    self, GetHostRequest, ListHostsRequest, ListVmsRequest, scheduler_client::SchedulerClient,
    vmmd_client::VmmdClient,
};
use std::{
    path::Path,
    process::{Command, Stdio},
};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

const VMMD: u16 = 7001;
const SCHEDULER: u16 = 7000;

/// vmmd's command with other addresses, and certificates.
fn over_tcp(bench: &Bench, more: &[&str]) -> Command {
    let plain = bench.command("state", "vmmd.sock");
    let mut command = Command::new(plain.get_program());
    let listen = format!("unix:{}", bench.path("vmmd.sock").display());
    for word in plain.get_args() {
        if word.to_str() == Some(&listen) {
            command.arg(format!("tcp:127.0.0.1:{VMMD}"));
        } else if word.to_str().is_some_and(|word| word.starts_with("--scheduler=")) {
            command.arg(format!("--scheduler=tcp:127.0.0.1:{SCHEDULER}"));
        } else {
            command.arg(word);
        }
    }
    command.args(more).stdin(Stdio::null());
    command
}

/// What vmmd says instead of starting.
fn refused(bench: &Bench, more: &[&str]) -> String {
    let output = over_tcp(bench, more).output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

async fn channel(folder: &Path, port: u16) -> Channel {
    let tls = Tls::open(folder).unwrap();
    let connect = tower::service_fn(move |_| {
        let tls = tls.clone();
        async move { tls.connect("127.0.0.1", port).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://x").connect_with_connector(connect).await.unwrap()
}

struct Pki(Authority);

impl Pki {
    fn new(bench: &Bench) -> Self {
        Self(Authority::create(&bench.path("pki"), Validity::days(1)).unwrap())
    }

    fn host(&self, name: &str) -> Made {
        let addresses: [Address; 1] = ["127.0.0.1".parse().unwrap()];
        self.0.host(&name.parse().unwrap(), None, &addresses, Validity::days(1), false).unwrap()
    }

    fn operator(&self, role: Role) -> Made {
        self.0.operator(&role.name().parse().unwrap(), role, Validity::days(1), false).unwrap()
    }
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn operators_over_tcp_may_do_what_their_certificate_says() {
    tell(|mut bench| async move {
        let said = refused(&bench, &[]);
        assert!(said.contains("--tls-dir") && said.contains("--insecure"), "{said}");
        let pki = Pki::new(&bench);
        let tls = format!("--tls-dir={}", pki.host("h").folder.display());
        let mut command = over_tcp(&bench, &[&tls]);
        bench.start_as(&mut command).await;
        let client = |made: Made| async move { VmmdClient::new(channel(&made.folder, VMMD).await) };
        let mut using: Client = client(pki.operator(Role::Use)).await;
        ready(&mut using, vm("web", "")).await;
        let mut view = client(pki.operator(Role::View)).await;
        let all = view.list_vms(ListVmsRequest::default()).await.unwrap().into_inner().vms;
        assert_eq!(all.len(), 1);
        assert_eq!(view.create_vm(vm("db", "")).await.unwrap_err().code(), Code::PermissionDenied);
        let ended = view.kill_vm(v1::KillVmRequest { name: "web".into() }).await.unwrap_err();
        assert_eq!(ended.code(), Code::PermissionDenied);
        let prune = || v1::PruneImagesRequest::default();
        assert_eq!(using.prune_images(prune()).await.unwrap_err().code(), Code::PermissionDenied);
        let mut admin = client(pki.operator(Role::Admin)).await;
        let pruned = admin.prune_images(prune()).await;
        assert_ne!(pruned.map_err(|status| status.code()).err(), Some(Code::PermissionDenied));
        // Another host is no operator.
        let mut host = client(pki.host("other")).await;
        let listed = host.list_vms(ListVmsRequest::default()).await.unwrap_err();
        assert_eq!(listed.code(), Code::PermissionDenied);
        // The scheduler that is built in is behind the same door.
        let view = pki.0.operator(&"v".parse().unwrap(), Role::View, Validity::days(1), false).unwrap();
        let mut scheduler = SchedulerClient::new(channel(&view.folder, VMMD).await);
        let release = v1::ReleaseTicketRequest { id: Uuid::new_v4().to_string(), family: String::new() };
        assert_eq!(scheduler.release_ticket(release).await.unwrap_err().code(), Code::PermissionDenied);
        kill(&mut using, "web").await;
    });
}

#[test]
#[ignore = "needs root and /dev/kvm"]
fn a_host_registers_over_tcp_under_the_id_of_its_certificate_and_no_other() {
    tell(|mut bench| async move {
        let pki = Pki::new(&bench);
        let listen = format!("--listen=tcp:127.0.0.1:{SCHEDULER}");
        let tls = format!("--tls-dir={}", pki.host("s").folder.display());
        bench.start_scheduler_as(&[&listen, &tls]).await;
        let host = pki.host("h");
        let tls = format!("--tls-dir={}", host.folder.display());
        let mut command = over_tcp(&bench, &[&tls]);
        bench.start_as(&mut command).await;
        let view = pki.operator(Role::View);
        let mut vmmd = VmmdClient::new(channel(&view.folder, VMMD).await);
        let known = vmmd.get_host(GetHostRequest {}).await.unwrap().into_inner();
        assert_eq!(host.identity.uris(), [format!("patina:host:{}", known.id)]);
        assert_eq!(known.scheduler, format!("https://127.0.0.1:{SCHEDULER}"));
        let scheduler = SchedulerClient::new(channel(&view.folder, SCHEDULER).await);
        until("the host is registered", async || {
            let hosts =
                scheduler.clone().list_hosts(ListHostsRequest::default()).await.unwrap().into_inner().hosts;
            hosts.iter().any(|host| host.info.as_ref().is_some_and(|info| info.id == known.id))
        })
        .await;
        bench.stop(rustix::process::Signal::TERM);
        // The folder keeps its id: another host's certificate does not do.
        let other = format!("--tls-dir={}", pki.host("other").folder.display());
        let said = refused(&bench, &[&other]);
        assert!(said.contains(&format!("vmctl pki host NAME --id {}", known.id)), "{said}");
    });
}
