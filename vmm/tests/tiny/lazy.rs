//! VMs whose memory arrives while they run, and a pager for them within the test: it serves page by
//! page, and holds back what it is told to.

use super::sys::{fault, fill, wake};
use super::{Generation, Vmm};
use libtest_mimic::Failed;
use patina_control::messages::{Open, Opened};
use patina_control::pager::{Mapping, PagerToVm, VmToPager, layer_memfd, read_sealed};
use patina_control::rights;
use patina_jail::userfaultfd::UFFDIO_CONTINUE;
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What becomes of a page, by its offset in the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is served.
    Served,
    /// Whoever needs it waits.
    HeldBack,
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

    fn try_clone(&self) -> Result<Self, Failed> {
        Ok(Self { content: self.content.try_clone()?, memfd: self.memfd.try_clone()? })
    }
}

/// A pager. Dropping it is its death.
pub struct Pager {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<Result<(), String>>>,
    /// The offsets of the pages that are held back and for which somebody waits.
    waited: Receiver<u64>,
}

impl Pager {
    /// A pager, and the vmm's end of its socket.
    fn start(
        layer: &FillingLayer,
        fate: impl Fn(u64) -> Fate + Send + 'static,
    ) -> Result<(Self, UnixStream), Failed> {
        let (ours, theirs) = UnixStream::pair()?;
        let (stopped, stop) = rustix::pipe::pipe()?;
        let (tell, waited) = channel();
        let layer = layer.try_clone()?;
        let thread = std::thread::spawn(move || {
            serve(&layer, &fate, &ours, &stopped, &tell)
                .map_err(|error| error.message().unwrap_or("?").to_owned())
        });
        Ok((Self { stop: Some(stop), thread: Some(thread), waited }, theirs))
    }

    /// The next page that somebody waits for in vain.
    pub fn waited(&self) -> Result<u64, Failed> {
        Ok(self.waited.recv_timeout(std::time::Duration::from_secs(60))?)
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            patina_daemon::say!("the test's pager: {error}");
        }
    }
}

fn serve(
    layer: &FillingLayer,
    fate: &dyn Fn(u64) -> Fate,
    mut stream: &UnixStream,
    stopped: &OwnedFd,
    tell: &Sender<u64>,
) -> Result<(), Failed> {
    let mut line = [0; 1024];
    let (length, descriptors) = rights::receive(stream, &mut line)?;
    let VmToPager::Attach { .. } = serde_json::from_slice(&line[..length])? else {
        return Err("it does not attach".into());
    };
    let [userfault, list]: [OwnedFd; 2] = descriptors.try_into().map_err(|_| "not two descriptors")?;
    let list = read_sealed(&File::from(list), 1 << 20)?;
    let mappings = Mapping::decode(&list, &[layer.memfd.metadata()?.len()])?;
    let say = |mut stream: &UnixStream, message: &PagerToVm| -> Result<(), Failed> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        Ok(stream.write_all(&line)?)
    };
    for mapping in &mappings {
        wake(&userfault, mapping.address, mapping.bytes);
    }
    say(stream, &PagerToVm::Attached)?;
    loop {
        let mut fds = [
            PollFd::new(stopped, PollFlags::IN),
            PollFd::new(stream, PollFlags::IN),
            PollFd::new(&userfault, PollFlags::IN),
        ];
        poll(&mut fds, None)?;
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        if !fds[1].revents().is_empty() {
            // It tracks writes, or it has ended.
            if std::io::Read::read(&mut stream, &mut line)? == 0 {
                return Ok(());
            }
            say(stream, &PagerToVm::TrackingWrites)?;
        }
        while let Some(address) = fault(&userfault)? {
            let mapping = mappings.iter().find(|mapping| mapping.addresses().contains(&address));
            let mapping = mapping.ok_or("a fault outside of all mappings")?;
            let offset = address - mapping.address + mapping.offset;
            match fate(offset) {
                Fate::Served => {
                    let mut page = [0; 4096];
                    layer.content.read_exact_at(&mut page, offset)?;
                    layer.memfd.write_all_at(&page, offset)?;
                    fill(&userfault, UFFDIO_CONTINUE, address);
                    wake(&userfault, address, 4096);
                    continue;
                }
                Fate::HeldBack => {}
            }
            tell.send(offset)?;
        }
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
        let (pager, socket) = Pager::start(layer, fate)?;
        let mut descriptors =
            vec![generation.state.as_fd(), generation.prefault_list.as_fd(), layer.memfd.as_fd()];
        descriptors.extend(generation.layers[1..].iter().map(AsFd::as_fd));
        descriptors.push(socket.as_fd());
        match self.ask(&Open::Start { ticket: String::new(), filling: vec![0] }, &descriptors)? {
            (Opened::Started { .. }, _) => Ok(pager),
            (other, _) => Err(format!("{other:?}").into()),
        }
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
