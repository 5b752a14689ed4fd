//! Another host takes the place of one that lends layers and fails: three state folders with a
//! pager each. The test plays who finds the other host.

use crate::{
    host::{Host, RUNS, word},
    peers::{Lease, borrow, lend},
};
use futures::future::BoxFuture;
use patina_daemon::lock;
use rustix::process::Signal;
use std::{
    fs,
    sync::{Arc, Mutex},
};
use tokio::runtime::Runtime;
use vmmd::pager::{
    Pager,
    holders::{Fault, Found, Holders, Sought},
    lender::Lender,
};

/// One other host has all layers.
#[derive(Debug)]
struct Second {
    lender: Lender,
    asked: Mutex<Vec<Fault>>,
}

impl Holders for Second {
    fn find(&self, sought: Sought, found: Box<dyn Fn(Found) + Send + Sync>) -> BoxFuture<'static, ()> {
        lock(&self.asked).push(sought.fault);
        let lender = self.lender.clone();
        Box::pin(async move {
            let connections = lender.dial().await.expect("it is there");
            found(Found { lender, layers: sought.layers, connections });
        })
    }
}

/// Three hosts: one that lends, one that has all and may lend, one that reads at the first.
struct Three {
    /// The vmmd of the first host.
    first: Option<(Runtime, Pager)>,
    rest: Runtime,
    /// They end their pagers when they are dropped: after the runtimes, in which pagers are
    /// replaced.
    hosts: [Host; 3],
    second: Arc<Second>,
    lease: Lease,
}

impl Three {
    fn new() -> Self {
        let hosts = [Host::new(), Host::new(), Host::new()];
        let (lease, other) = (Lease::new(&hosts[0]), Lease::new(&hosts[1]));
        let (runtime, rest) = (Runtime::new().unwrap(), Runtime::new().unwrap());
        let lending = runtime.block_on(async { hosts[0].pager() });
        runtime.block_on(lend(&hosts[0], &lending, &lease));
        rest.block_on(async {
            let pager = hosts[1].pager();
            lend(&hosts[0], &pager, &other).await;
            // It has them as long as this vmmd runs.
            std::mem::forget(pager);
        });
        let second = Second { lender: other.lender, asked: Mutex::default() };
        Self { first: Some((runtime, lending)), rest, hosts, second: Arc::new(second), lease }
    }

    /// A VM of the third host reads its last word after `fail` has happened to the first host.
    fn read_after(&mut self, fail: impl FnOnce(&Host, &mut Option<(Runtime, Pager)>)) {
        let [first, _, third] = &self.hosts;
        self.rest.block_on(async {
            let pager = third.pager();
            pager.find_holders_with(Arc::clone(&self.second) as Arc<dyn Holders>);
            let (generation, vmm, memory) = borrow(first, third, &pager, &self.lease).await;
            assert_eq!(vmm.read(RUNS / 2), word(RUNS / 2));
            first.signal(Signal::STOP);
            assert_eq!(generation.filling().len(), 1, "it needs more");
            fail(first, &mut self.first);
            let waits = vmm.read_beside(RUNS - 1);
            assert_eq!(waits.done().await.unwrap(), word(RUNS - 1));
            generation.completed().await.unwrap();
            // What the next vmmd reads.
            let folder = third.state().join("pager");
            let saved = fs::read_dir(folder).unwrap().flatten().map(|file| file.path());
            let saved: Vec<_> = saved.filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
            assert_eq!(saved.len(), 1);
            let saved = fs::read_to_string(&saved[0]).unwrap();
            assert!(saved.contains(&self.second.lender.lease.to_string()), "{saved}");
            drop(memory);
        });
    }
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn another_holder_takes_over_when_the_lender_and_its_vmmd_die() {
    let mut three = Three::new();
    three.read_after(|lender, first| {
        let (runtime, lending) = first.take().unwrap();
        drop(lending.left_when_dropped());
        runtime.shutdown_background();
        // It is stopped, and ends all the same.
        lender.signal(Signal::KILL);
    });
    assert!(!lock(&three.second.asked).is_empty());
}

#[test]
#[ignore = "needs root and Linux 6.7"]
fn another_holder_takes_over_when_the_lender_says_nothing() {
    let mut three = Three::new();
    three.read_after(|_, _| {});
    assert_eq!(lock(&three.second.asked).first(), Some(&Fault::Failing));
}
