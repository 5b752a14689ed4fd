//! VMs whose memory arrives while they run, and a pager for them within the test: it serves page by
//! page, and holds back what it is told to.

use super::sys::{copy, fault, fill, unregister, wake};
use super::{Generation, Vmm, answer};
use libtest_mimic::Failed;
use patina_control::messages::{Open, Opened};
use patina_control::pager::{Mapping, PagerToVm, VmToPager, layer_memfd, read_sealed};
use patina_control::rights;
use patina_jail::userfaultfd::{UFFDIO_CONTINUE, UFFDIO_POISON, UFFDIO_ZEROPAGE};
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What becomes of a page, by its offset in the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is served.
    Served,
    /// Whoever needs it waits.
    HeldBack,
    /// It is lost: each access fails.
    Lost,
}

/// A layer that is being filled: what it will hold, and what it holds.
pub struct FillingLayer {
    content: File,
    memfd: File,
}

impl FillingLayer {
    /// The lowest layer of a generation, of which nothing has arrived yet.
    pub fn of(generation: &Generation) -> Result<Self, Failed> {
        let content = File::from(generation.layers[0].try_clone()?);
        let memfd = layer_memfd("tiny-layer", content.metadata()?.len())?;
        Ok(Self { content, memfd })
    }

    /// Of the same content, and nothing of it has arrived.
    pub fn of_content(other: &Self) -> Result<Self, Failed> {
        let content = other.content.try_clone()?;
        let memfd = layer_memfd("tiny-layer", content.metadata()?.len())?;
        Ok(Self { content, memfd })
    }

    fn try_clone(&self) -> Result<Self, Failed> {
        Ok(Self { content: self.content.try_clone()?, memfd: self.memfd.try_clone()? })
    }
}

/// A pager. Dropping it is its death.
pub struct Pager {
    orders: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    served: Arc<AtomicUsize>,
    /// The offsets of the pages that are held back and for which somebody waits.
    waited: Receiver<u64>,
}

impl Pager {
    /// A pager, and the vmm's end of its socket.
    fn start(
        layer: &FillingLayer,
        fate: impl Fn(u64) -> Fate + Send + 'static,
    ) -> Result<(Self, UnixStream), Failed> {
        let (stream, theirs) = UnixStream::pair()?;
        let (ordered, orders) = rustix::pipe::pipe()?;
        let (tell, waited) = channel();
        let served = Arc::new(AtomicUsize::new(0));
        let work = Work { layer: layer.try_clone()?, stream, ordered, tell, served: Arc::clone(&served) };
        let thread = std::thread::spawn(move || {
            if let Err(error) = work.run(&fate) {
                patina_daemon::say!("the test's pager: {}", error.message().unwrap_or("?"));
            }
        });
        Ok((Self { orders: Some(orders), thread: Some(thread), served, waited }, theirs))
    }

    /// The next page that somebody waits for in vain.
    pub fn waited(&self) -> Result<u64, Failed> {
        Ok(self.waited.recv_timeout(std::time::Duration::from_secs(60))?)
    }

    /// Waits until the VM closes its connection.
    pub fn left(&self) -> Result<(), Failed> {
        if self.waited()? == LEFT { Ok(()) } else { Err("the VM waits for a page".into()) }
    }

    /// How many pages it has served.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Acquire)
    }

    /// Fills all of the layer. The VM hears that it is complete.
    pub fn complete(&self) -> Result<(), Failed> {
        let orders = self.orders.as_ref().ok_or("it is dead")?;
        rustix::io::write(orders, b"c")?;
        self.waited()?;
        Ok(())
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.orders = None;
        self.thread.take().map(JoinHandle::join);
    }
}

/// In place of an offset: the VM has closed its connection.
const LEFT: u64 = u64::MAX;

/// What a pager's thread has.
struct Work {
    layer: FillingLayer,
    stream: UnixStream,
    /// A byte: the layer is to be completed. The end: the pager dies.
    ordered: OwnedFd,
    tell: Sender<u64>,
    served: Arc<AtomicUsize>,
}

impl Work {
    fn run(&self, fate: &dyn Fn(u64) -> Fate) -> Result<(), Failed> {
        let mut line = [0; 1024];
        let (length, descriptors) = rights::receive(&self.stream, &mut line)?;
        let VmToPager::Attach { tracks_writes, .. } = serde_json::from_slice(&line[..length])? else {
            return Err("it does not attach".into());
        };
        let mut tracks_writes = tracks_writes;
        let [userfault, list]: [OwnedFd; 2] = descriptors.try_into().map_err(|_| "not two descriptors")?;
        let list = read_sealed(&File::from(list), 1 << 20)?;
        let mappings = Mapping::decode(&list, &[self.layer.memfd.metadata()?.len()])?;
        for mapping in &mappings {
            wake(&userfault, mapping.address, mapping.bytes);
        }
        self.say(&PagerToVm::Attached)?;
        loop {
            let mut fds = [
                PollFd::new(&self.ordered, PollFlags::IN),
                PollFd::new(&self.stream, PollFlags::IN),
                PollFd::new(&userfault, PollFlags::IN),
            ];
            poll(&mut fds, None)?;
            if !fds[0].revents().is_empty() {
                if rustix::io::read(&self.ordered, &mut [0u8; 1])? == 0 {
                    return Ok(());
                }
                self.complete((&userfault, &mappings), tracks_writes)?;
            }
            if !fds[1].revents().is_empty() {
                // It tracks writes, or it has ended or needs no pager.
                if (&self.stream).read(&mut line)? == 0 {
                    // Nobody hears it if the pager is being dropped.
                    self.tell.send(LEFT).ok();
                    return Ok(());
                }
                tracks_writes = true;
                self.say(&PagerToVm::TrackingWrites)?;
            }
            while let Some(address) = fault(&userfault)? {
                let mapping = mappings.iter().find(|mapping| mapping.addresses().contains(&address));
                let mapping = mapping.ok_or("a fault outside of all mappings")?;
                let offset = address - mapping.address + mapping.offset;
                match fate(offset) {
                    Fate::Served => self.serve(&userfault, address, offset)?,
                    Fate::HeldBack => self.tell.send(offset)?,
                    Fate::Lost => {
                        fill(&userfault, UFFDIO_POISON, address);
                        wake(&userfault, address, 4096);
                        self.tell.send(offset)?;
                    }
                }
            }
        }
    }

    fn say(&self, message: &PagerToVm) -> Result<(), Failed> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        Ok((&self.stream).write_all(&line)?)
    }

    /// As the real one: zeros are the kernel's page of zeros, or a copy where it refuses that.
    fn serve(&self, userfault: &OwnedFd, address: u64, offset: u64) -> Result<(), Failed> {
        let mut page = [0; 4096];
        self.layer.content.read_exact_at(&mut page, offset)?;
        if page == [0; 4096] {
            if !fill(userfault, UFFDIO_ZEROPAGE, address) {
                copy(userfault, address, &page);
            }
        } else {
            self.layer.memfd.write_all_at(&page, offset)?;
            fill(userfault, UFFDIO_CONTINUE, address);
        }
        wake(userfault, address, 4096);
        self.served.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn complete(
        &self,
        (userfault, mappings): (&OwnedFd, &[Mapping]),
        tracks_writes: bool,
    ) -> Result<(), Failed> {
        let mut page = [0; 4096];
        for offset in (0..self.layer.memfd.metadata()?.len()).step_by(4096) {
            self.layer.content.read_exact_at(&mut page, offset)?;
            if page != [0; 4096] {
                self.layer.memfd.write_all_at(&page, offset)?;
            }
        }
        if !tracks_writes {
            mappings.iter().for_each(|mapping| unregister(userfault, mapping.address, mapping.bytes));
        }
        self.say(&PagerToVm::Complete { layer: 0, is_unregistered: !tracks_writes })?;
        Ok(self.tell.send(0)?)
    }
}

impl Vmm {
    /// Starts it, when it is warm, from a generation whose lowest layer is still being filled.
    pub fn give_lazily(
        &self,
        generation: &Generation,
        layer: &FillingLayer,
        fate: impl Fn(u64) -> Fate + Send + 'static,
    ) -> Result<Pager, Failed> {
        let (pager, stream) = self.order_lazily(generation, layer, fate)?;
        match answer(&stream)? {
            (Opened::Started { .. }, _) => Ok(pager),
            (other, _) => Err(format!("{other:?}").into()),
        }
    }

    /// The same, without waiting until it has started: a VM that has lost its first instruction may
    /// end before it answers.
    pub fn order_lazily(
        &self,
        generation: &Generation,
        layer: &FillingLayer,
        fate: impl Fn(u64) -> Fate + Send + 'static,
    ) -> Result<(Pager, UnixStream), Failed> {
        let (pager, socket) = Pager::start(layer, fate)?;
        let mut descriptors =
            vec![generation.state.as_fd(), generation.prefault_list.as_fd(), layer.memfd.as_fd()];
        descriptors.extend(generation.layers[1..].iter().map(AsFd::as_fd));
        descriptors.push(socket.as_fd());
        let order = Open::Start { ticket: String::new(), filling: vec![0], member: None };
        Ok((pager, self.say(&order, &descriptors)?))
    }

    /// Gives it another pager.
    pub fn give_pager(
        &self,
        layer: &FillingLayer,
        fate: impl Fn(u64) -> Fate + Send + 'static,
    ) -> Result<Pager, Failed> {
        let (pager, socket) = Pager::start(layer, fate)?;
        match self.ask(&Open::Pager, &[socket.as_fd()])? {
            (Opened::Ok, _) => Ok(pager),
            (other, _) => Err(format!("{other:?}").into()),
        }
    }
}
