//! Hosts that run nothing, and calls in short.

use crate::server::{SOON, Server};
use patina_proto::v1::{
    self, AdmitClonesRequest, CpuidLeaf, HostFacts, HostInfo, KillClones, KvmKind, RequestTicketRequest,
    ReserveVmidsRequest, RunningClone, Ticket, UseTicketRequest, VmEnd,
};
use scheduler::{
    client::{Client, HostClient},
    host::{Clones, HostLink, Present, Registration},
};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::time::timeout;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

pub const MEMORY_MIB: u32 = 256;

/// What is really free of each host's memory.
pub const FREE_MIB: u64 = 77;

/// What each host's VMs rely on.
pub fn facts() -> HostFacts {
    HostFacts {
        cpu_vendor: b"AuthenticAMD".to_vec(),
        cpu_family: 25,
        kvm_kind: KvmKind::Svm.into(),
        page_bytes: 4096,
        kernel: "6.18.1".into(),
        cpuid: vec![CpuidLeaf { leaf: 7, ebx: 5, ..CpuidLeaf::default() }],
        lazy_memory: true,
        ..HostFacts::default()
    }
}

/// Its clones are numbers.
pub struct FakeHost {
    pub id: Uuid,
    cpus: u32,
    client: HostClient,
    link: OnceLock<HostLink>,
    running: Mutex<Vec<RunningClone>>,
    /// The families whose master it has; None: it does not say.
    pub masters: Mutex<Option<Vec<String>>>,
    /// The kernels and root file systems that it has; None: it does not say.
    pub images: Mutex<Option<Vec<Vec<u8>>>>,
    /// Kill orders are obeyed only while this is set.
    obeys: Mutex<bool>,
}

impl Clones for FakeHost {
    fn present(&self) -> Present {
        let (running, masters) = (self.running.lock().unwrap().clone(), self.masters.lock().unwrap().clone());
        Present { running, masters, ..Present::default() }
    }

    fn free_memory_mib(&self) -> Option<u64> {
        Some(FREE_MIB)
    }

    fn images(&self) -> Option<Vec<Vec<u8>>> {
        self.images.lock().unwrap().clone()
    }

    fn kill(&self, order: KillClones) {
        if !*self.obeys.lock().unwrap() {
            return;
        }
        for vmid in order.vmids {
            self.end(&order.family, vmid, VmEnd::Killed);
        }
    }
}

impl FakeHost {
    /// One that is registered.
    pub async fn start(server: &Server, cpus: u32) -> Arc<Self> {
        Self::with(server, Uuid::new_v4(), cpus, Vec::new()).await
    }

    /// The same host, with what runs there: its daemon was started again.
    pub async fn starts_again(&self, server: &Server) -> Arc<Self> {
        let running = self.running.lock().unwrap().clone();
        Self::with(server, self.id, self.cpus, running).await
    }

    async fn with(server: &Server, id: Uuid, cpus: u32, running: Vec<RunningClone>) -> Arc<Self> {
        let client = server.host_client();
        let info = HostInfo {
            id: id.to_string(),
            name: format!("host-{cpus}"),
            address: "unix:/nowhere".into(),
            cpus,
            memory_mib: u64::from(cpus) * u64::from(MEMORY_MIB),
            facts: Some(facts()),
            ..HostInfo::default()
        };
        let host = Arc::new(Self {
            id,
            cpus,
            client: client.clone(),
            link: OnceLock::new(),
            running: Mutex::new(running),
            masters: Mutex::new(None),
            images: Mutex::new(None),
            obeys: Mutex::new(true),
        });
        let link = HostLink::start(client, info, Arc::clone(&host) as Arc<dyn Clones>);
        assert!(host.link.set(link).is_ok());
        host.registered().await;
        host
    }

    pub fn link(&self) -> &HostLink {
        self.link.get().unwrap()
    }

    /// The epoch of the registration that it has or gets.
    pub async fn registered(&self) -> u64 {
        let mut registration = self.link().registration();
        let registered = registration.wait_for(|state| matches!(state, Registration::Registered { .. }));
        match &*timeout(SOON, registered).await.expect("it registers").unwrap() {
            Registration::Registered { epoch, .. } => *epoch,
            Registration::Away { why } => panic!("{why}"),
        }
    }

    pub async fn away(&self) -> Registration {
        let mut registration = self.link().registration();
        let away = registration.wait_for(|state| matches!(state, Registration::Away { .. }));
        timeout(SOON, away).await.expect("it notices").unwrap().clone()
    }

    /// The scheduler knows of all that have ended.
    pub async fn all_noted(&self) {
        for _ in 0..SOON.as_millis() / 10 {
            if self.link().unnoted() == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{} ends are not noted", self.link().unnoted());
    }

    pub fn obeys(&self, obeys: bool) {
        *self.obeys.lock().unwrap() = obeys;
    }

    /// "Makes" the clones.
    pub async fn clone_with(
        &self,
        ticket: &Ticket,
        parent_vmid: u32,
        vmids: &[u32],
    ) -> Result<Ticket, Status> {
        let request = UseTicketRequest {
            id: ticket.id.clone(),
            family: ticket.family.clone(),
            epoch: ticket.epoch,
            host_id: self.id.to_string(),
            parent_vmid,
            vmids: vmids.to_vec(),
            host_epoch: 0,
            ..UseTicketRequest::default()
        };
        let used = self.client.clone().use_ticket(request).await?.into_inner();
        self.makes(&used, parent_vmid, vmids);
        Ok(used)
    }

    /// Uses its part of a ticket for VM 0 of a host, and "makes" the clones.
    pub async fn clone_part(&self, ticket: &Ticket, home: Uuid, vmids: &[u32]) -> Result<Ticket, Status> {
        let request = UseTicketRequest {
            id: ticket.id.clone(),
            family: ticket.family.clone(),
            epoch: ticket.epoch,
            host_id: self.id.to_string(),
            vmids: vmids.to_vec(),
            keep_others: true,
            parent_host_id: home.to_string(),
            ..UseTicketRequest::default()
        };
        let used = self.client.clone().use_ticket(request).await?.into_inner();
        self.makes(&used, 0, vmids);
        Ok(used)
    }

    /// Vmids of a family: the first of them.
    pub async fn reserve(&self, family: &str, count: u32, request_id: &str) -> Result<u32, Status> {
        let request = ReserveVmidsRequest {
            family: family.to_owned(),
            host_id: self.id.to_string(),
            count,
            request_id: request_id.to_owned(),
            ..ReserveVmidsRequest::default()
        };
        Ok(self.client.clone().reserve_vmids(request).await?.into_inner().first)
    }

    /// A ticket of a clone that was requested by count.
    pub async fn admit(&self, family: &str, vmid: u32) -> Result<Ticket, Status> {
        let request = AdmitClonesRequest {
            family: family.to_owned(),
            host_id: self.id.to_string(),
            vmids: vec![vmid],
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            ..AdmitClonesRequest::default()
        };
        let used = self.client.clone().admit_clones(request).await?.into_inner();
        self.makes(&used, 0, &[vmid]);
        Ok(used)
    }

    fn makes(&self, used: &Ticket, parent_vmid: u32, vmids: &[u32]) {
        self.running.lock().unwrap().extend(vmids.iter().map(|vmid| RunningClone {
            ticket: used.id.clone(),
            family: used.family.clone(),
            vmid: *vmid,
            vcpus: used.vcpus,
            memory_mib: used.memory_mib,
            parent_vmid: Some(parent_vmid),
            parent_host_id: String::new(),
        }));
    }

    /// A clone ends.
    pub fn end(&self, family: &str, vmid: u32, end: VmEnd) {
        let mut running = self.running.lock().unwrap();
        let place = running.iter().position(|clone| clone.family == family && clone.vmid == vmid);
        // First said, then left out: see HostLink::ended.
        if let Some(place) = place {
            self.link().ended(running[place].clone(), end);
            running.remove(place);
        }
    }

    pub fn running(&self) -> usize {
        self.running.lock().unwrap().len()
    }
}

pub fn family() -> String {
    Uuid::new_v4().to_string()
}

pub fn request(family: &str, vms: u32) -> RequestTicketRequest {
    RequestTicketRequest {
        family: family.to_owned(),
        max_cpus: vms,
        min_vms: vms,
        min_cpus_per_vm: 1,
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        ..RequestTicketRequest::default()
    }
}

/// Without what changes as time passes, so that tickets can be compared.
pub fn still(answer: Response<Ticket>) -> Ticket {
    Ticket { expires_in_ms: 0, ..answer.into_inner() }
}

pub async fn grant(client: &Client, family: &str, vms: u32) -> Result<Ticket, Status> {
    client.clone().request_ticket(request(family, vms)).await.map(still)
}

pub async fn get(client: &Client, id: &str) -> Result<Ticket, Status> {
    let request = v1::GetTicketRequest { id: id.to_owned(), family: String::new() };
    client.clone().get_ticket(request).await.map(still)
}

pub async fn release(client: &Client, id: &str) -> Result<Ticket, Status> {
    let request = v1::ReleaseTicketRequest { id: id.to_owned(), family: String::new() };
    client.clone().release_ticket(request).await.map(still)
}

pub async fn all_tickets(client: &Client) -> Vec<Ticket> {
    let mut all = Vec::new();
    let mut request = v1::ListTicketsRequest::default();
    loop {
        let page = client.clone().list_tickets(request.clone()).await.unwrap().into_inner();
        all.extend(page.tickets.into_iter().map(|ticket| still(Response::new(ticket))));
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

pub async fn hosts(client: &Client) -> Vec<v1::HostStatus> {
    client.clone().list_hosts(v1::ListHostsRequest::default()).await.unwrap().into_inner().hosts
}

/// Code and reason of an error.
pub fn why<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.expect_err("it is refused");
    let reason = status.get_details_error_info().map(|info| info.reason);
    (status.code(), reason.unwrap_or_else(|| status.message().to_owned()))
}

/// Numbers that look random, the same for the same seed.
pub struct Dice(pub u64);

impl Dice {
    /// Below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}
