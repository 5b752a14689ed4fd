//! The thread that works on the VM for the control thread. A freeze or a start may have to wait for
//! the guest's memory, which a pager serves. The control thread never does: it can always kill the
//! VM, and give it another pager.
//!
//! ```text
//!  control thread ──Order──▶ this thread ──Event::Done──▶ control thread
//! ```

use super::mailbox::{Event, Mailbox};
use super::vm::VmControl;
use patina_abi::link::Vmcoreinfo;
use patina_control::best_effort;
use patina_control::config::Member;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// What the VM's thread is to do, one after another. [`Order::Started`] and [`Order::Ready`] are
/// not answered.
#[derive(Debug)]
pub enum Order {
    /// [`VmControl::freeze`].
    Freeze {
        /// Whether the guest's other processes are held.
        is_held: bool,
        /// When the agent may release them. None: no agent has prepared.
        until: Option<Instant>,
    },
    /// [`VmControl::start`].
    Start {
        /// What came with the request.
        descriptors: Vec<OwnedFd>,
        /// The layers that are still being filled.
        filling: Vec<u8>,
        /// Who the VM is, of a spare vmm.
        member: Option<Box<Member>>,
    },
    /// [`VmControl::prefault_list`].
    PrefaultList,
    /// [`VmControl::free_pages`].
    FreePages {
        /// The number of the generation.
        frozen: u64,
        /// Where the guest's kernel describes itself, if that is known.
        note: Option<Vmcoreinfo>,
    },
    /// [`VmControl::started`].
    Started,
    /// [`VmControl::ready`].
    Ready,
}

/// The thread, as the control thread sees it.
#[derive(Debug)]
pub struct Orders {
    orders: Sender<Order>,
    finished: Receiver<()>,
}

impl Orders {
    /// Starts the thread. It answers to `mailbox`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(machine: impl VmControl, mailbox: Mailbox) -> io::Result<Self> {
        let (orders, receiver) = channel();
        let (sender, finished) = channel();
        let thread = std::thread::Builder::new().name("orders".into());
        thread.spawn(move || serve(machine, &receiver, &mailbox, &sender))?;
        Ok(Self { orders, finished })
    }

    /// Orders. False: the thread has ended.
    pub fn send(&self, order: Order) -> bool {
        self.orders.send(order).is_ok()
    }

    /// Stops the devices when the current order is done, and waits for that, but not longer than
    /// this: it may be waiting for memory that never arrives.
    pub fn finish(self, patience: Duration) {
        drop(self.orders);
        best_effort(self.finished.recv_timeout(patience), "the process ends either way");
    }
}

fn serve(mut machine: impl VmControl, orders: &Receiver<Order>, mailbox: &Mailbox, finished: &Sender<()>) {
    while let Ok(order) = orders.recv() {
        let outcome = match order {
            Order::Freeze { is_held, until } => machine.freeze(is_held, until),
            Order::Start { descriptors, filling, member } => machine.start(descriptors, filling, member),
            Order::PrefaultList => machine.prefault_list(),
            Order::FreePages { frozen, note } => machine.free_pages(frozen, note),
            Order::Started => {
                machine.started();
                continue;
            }
            Order::Ready => {
                machine.ready();
                continue;
            }
        };
        mailbox.send(Event::Done(outcome));
    }
    machine.finish();
    best_effort(finished.send(()), "nobody listens if the process ends without waiting any longer");
}
