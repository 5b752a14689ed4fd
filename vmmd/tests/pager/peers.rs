//! Layers of another host: two state folders with a pager each, and what becomes of the connections
//! between them when a `vmmd` starts anew. The test plays the vmmd that takes connections.

use crate::host::{Host, RUNS, Vmm, until, word};
use patina_control::pager::Id;
use rustix::process::Signal;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixListener,
    runtime::{Builder, Runtime},
    time::{advance, pause, resume},
};
use uuid::Uuid;
use vmmd::{
    pager::{
        Pager,
        book::{LazyLayer, LazyMemory},
        lender::{HELLO_BYTES, Lender, Of, lease_of},
        parts::number_of,
    },
    process::generation::Generation,
};

/// Longer than a pager stays that nobody needs.
const IDLE: Duration = Duration::from_secs(15);

async fn pass_time() {
    pause();
    advance(IDLE).await;
    resume();
    // For what it has woken.
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// A lease, and where the connections for it are taken.
pub struct Lease {
    socket: PathBuf,
    pub lender: Lender,
}

impl Lease {
    pub fn new(host: &Host) -> Self {
        let socket = host.state().join("vmmd.sock");
        let address = format!("unix:{}", socket.display());
        let credential = patina_pki::credential().unwrap();
        Self { socket, lender: Lender { address, lease: Uuid::new_v4(), credential, of: Of::default() } }
    }

    /// Takes connections, and gives them to a pager that has the layers.
    async fn serve(&self, pager: Pager, layers: Vec<Arc<LazyLayer>>) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let lender = self.lender.clone();
        tokio::spawn(async move {
            loop {
                let mut stream = listener.accept().await.unwrap().0;
                let mut hello = [0; HELLO_BYTES];
                stream.read_exact(&mut hello).await.unwrap();
                assert_eq!(lease_of(&hello), Some(lender.lease));
                let with = (stream.into_std().unwrap().into(), lender.credential.clone(), false);
                // Without a pager it is hung up, and comes again.
                drop(pager.serve_peer(Uuid::new_v4(), &layers, with).await);
            }
        });
    }
}

/// Has a pager lend the layers of a host's snapshot.
pub async fn lend(of: &Host, pager: &Pager, lease: &Lease) {
    let generation = pager.generation(of.snapshot()).await.unwrap();
    generation.completed().await.unwrap();
    let find = |file| pager.find(number_of(&file).unwrap()).unwrap();
    let layers = generation.open().unwrap().layers.into_iter().map(find).collect();
    lease.serve(pager.clone(), layers).await;
}

/// A VM on layers of the other host.
pub async fn borrow(from: &Host, host: &Host, pager: &Pager, lease: &Lease) -> (Generation, Vmm, LazyMemory) {
    let snapshot = from.snapshot();
    let generation = pager.generation_of_peer(snapshot.manifest(), b"a state", lease.lender.clone());
    let generation = generation.await.unwrap();
    let (uuid, dir) = (Uuid::new_v4(), host.vm_dir("web"));
    let (filling, memory) = pager.serve(uuid, &dir, &generation).await.unwrap();
    let vmm = Vmm::start(dir, uuid, &generation, filling.expect("it is not filled yet"));
    let memory = memory.unwrap();
    memory.has_started();
    (generation, vmm, memory)
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn other_hosts_go_on_reading_when_vmmd_starts_anew() {
    let (lender, borrower) = (Host::new(), Host::new());
    let lease = Lease::new(&lender);
    let (before, there) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let pager = before.block_on(async { lender.pager() });
    before.block_on(lend(&lender, &pager, &lease));
    let borrowing = there.block_on(async { borrower.pager() });
    let (generation, vmm, memory) = there.block_on(borrow(&lender, &borrower, &borrowing, &lease));
    assert_eq!(vmm.read(RUNS / 2), word(RUNS / 2));
    // It needs more, and does not ask for it yet.
    borrower.signal(Signal::STOP);
    let pid = lender.pid();
    drop(pager.left_when_dropped());
    drop((pager, before));

    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let pager = lender.pager();
        // Whoever adopts a VM waits until it is known which pager there is.
        let dir = lender.vm_dir("lost");
        dir.save_lazy_layers(&[Id::try_from("f".repeat(64)).unwrap()]).unwrap();
        drop(pager.adopt(Uuid::new_v4(), &dir, std::process::id()).await.unwrap());
        pager.forget_unused();
        // The keeper forgets the layers first, and then waits.
        for _ in 0..10 {
            pass_time().await;
        }
        assert_eq!(lender.pid(), pid, "it serves another host");
        borrower.signal(Signal::CONT);
        let waits = vmm.read_beside(RUNS - 1);
        assert_eq!(waits.done().await.unwrap(), word(RUNS - 1));
        let sockets = lender.sockets().len();
        drop((generation, vmm, memory));
        until("the connections end", || lender.sockets().len() == sockets - 2).await;
        // The keeper hears of it, and has begun to wait, before the time has passed.
        while lender.pid().is_some() {
            pass_time().await;
        }
    });
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn a_layer_of_another_host_is_read_on_when_vmmd_and_the_pagers_have_died() {
    let (lender, borrower) = (Host::new(), Host::new());
    let lease = Lease::new(&lender);
    let (there, before) = (Runtime::new().unwrap(), Runtime::new().unwrap());
    let lending = there.block_on(async { lender.pager() });
    there.block_on(lend(&lender, &lending, &lease));
    let pager = before.block_on(async { borrower.pager() });
    let (generation, vmm, memory) = before.block_on(borrow(&lender, &borrower, &pager, &lease));
    assert_eq!(vmm.read(RUNS / 2), word(RUNS / 2));
    let first = lender.signal(Signal::STOP);
    assert_eq!(generation.filling().len(), 1, "it needs more");
    drop(pager.left_when_dropped());
    drop((generation, memory, pager, before));

    Runtime::new().unwrap().block_on(async {
        let pager = borrower.pager();
        let memory = pager.adopt(vmm.uuid, &vmm.dir, std::process::id()).await.unwrap();
        pager.forget_unused();
        // The connections break: this vmmd makes new ones.
        lender.signal(Signal::KILL);
        let waits = vmm.read_beside(RUNS - 1);
        assert_eq!(waits.done().await.unwrap(), word(RUNS - 1));
        let second = lender.signal(Signal::STOP);
        assert_ne!(first, second);
        // And so does the next pager here.
        borrower.signal(Signal::KILL);
        let waits = vmm.read_beside(RUNS - 2);
        lender.signal(Signal::CONT);
        assert_eq!(waits.done().await.unwrap(), word(RUNS - 2));
        drop(memory);
    });
}
