//! Its RAM: views of the generation's files, which the pager serves where they are still being
//! filled.

use super::{view::View, wire::receive};
use patina_control::{
    memfd,
    pager::{Mapping, PagerToVm, RUN_BYTES, VERSION, VmToPager},
    rights,
};
use patina_jail::userfaultfd::{UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_SHMEM};
use std::{
    fs::File,
    io,
    net::Shutdown,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Mutex, MutexGuard},
    thread,
};
use userfaultfd::{FeatureFlags, RegisterMode, Uffd, UffdBuilder};

/// The longest line that it reads of a run, bytes.
const LINE_BYTES: usize = 64;

/// See the module.
pub struct Ram {
    views: Vec<View>,
    /// Where accesses wait for the pager.
    mappings: Vec<Mapping>,
    uffd: Option<Uffd>,
    pager: Mutex<Option<UnixStream>>,
}

impl Ram {
    /// Maps the files, those whose numbers are in `filling` so that reads of them wait. They must
    /// be [served](Self::attach) before anything is read.
    pub fn map(files: &[File], filling: &[u8]) -> Self {
        let view = |file: &File| View::map(file, usize::try_from(file.metadata().unwrap().len()).unwrap());
        let views: Vec<View> = files.iter().map(view).collect();
        let uffd = (!filling.is_empty()).then(|| {
            let features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
            let mut uffd = UffdBuilder::new();
            uffd.close_on_exec(true).non_blocking(true).user_mode_only(false);
            uffd.require_features(FeatureFlags::from_bits_retain(features)).create().unwrap()
        });
        let mut mappings = Vec::new();
        for (number, place) in (0..).zip(filling) {
            let view = &views[usize::from(*place)];
            let modes = RegisterMode::MISSING | RegisterMode::MINOR;
            uffd.as_ref().unwrap().register_with_mode(view.address(), view.bytes(), modes).unwrap();
            let (address, bytes) = (view.address() as u64, view.bytes() as u64);
            mappings.push(Mapping { address, bytes, offset: 0, layer: number });
        }
        mappings.sort_by_key(|mapping| mapping.address);
        Self { views, mappings, uffd, pager: Mutex::default() }
    }

    fn pager(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.pager.lock().unwrap()
    }

    /// Has the pager at the other end of a socket serve it.
    pub fn attach(&self, socket: OwnedFd) -> Result<(), String> {
        let Some(uffd) = &self.uffd else { return Err("all of it is there".into()) };
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false).unwrap();
        let mappings = memfd::sealed("mappings", &Mapping::encode(&self.mappings)).unwrap();
        let attach = VmToPager::Attach { version: VERSION, tracks_writes: false };
        let mut line = serde_json::to_vec(&attach).unwrap();
        line.push(b'\n');
        let uffd = uffd.as_fd().try_clone_to_owned().unwrap();
        let (heard, kept) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
        let say_attach = move || {
            let sent = rights::send(&stream, &line, &[uffd.as_fd(), mappings.as_fd()]);
            sent.map_err(|error| error.to_string())
        };
        say_attach()?;
        loop {
            let (Some(line), _) = receive(&heard) else { return Err("the pager is gone".into()) };
            match serde_json::from_slice(&line).unwrap() {
                PagerToVm::Attached => break,
                PagerToVm::AttachAgain => say_attach()?,
                PagerToVm::Refused { reason } => return Err(reason),
                // It may have found all of a layer at once.
                PagerToVm::Complete { .. } | PagerToVm::TrackingWrites => {}
            }
        }
        thread::spawn(move || {
            // The end: this pager is gone, or another one is attached.
            while let (Some(line), _) = receive(&heard) {
                if matches!(serde_json::from_slice(&line), Ok(PagerToVm::AttachAgain))
                    && let Err(error) = say_attach()
                {
                    patina_daemon::say!("attach again: {error}");
                }
            }
        });
        if let Some(before) = self.pager().replace(kept) {
            before.shutdown(Shutdown::Both).ok();
        }
        Ok(())
    }

    /// The first line of a run of the last file. Waits until it has arrived; fails if it cannot.
    pub fn line(&self, run: usize) -> io::Result<String> {
        let bytes = self.views.last().unwrap().read::<LINE_BYTES>(run * RUN_BYTES as usize)?;
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        Ok(String::from_utf8_lossy(line).into_owned())
    }
}
