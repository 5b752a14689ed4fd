//! Creates warm VMs.

use super::{
    blocking::blocking,
    error::Error,
    host::Host,
    images,
    parts::parts,
    warm::{KillOnDrop, PoolSlot, Warm, delete},
};
use crate::{
    process::{
        Process,
        control_client::{self, ControlError, PATIENCE},
        spawn::{self, Parts, Start},
        urgency::Urgency,
    },
    store::{VmDir, record::Record},
};
use patina_control::VERSION;
use patina_control::messages::{FromVmm, Open, State};
use patina_daemon::chain;
use std::{fs::File, sync::Arc};
use tokio::{io::BufReader, net::UnixStream, sync::mpsc, task::JoinHandle};

/// The clone that a warm VM is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// A clone that is being made.
    Clone,
    /// A VM of a family that begins here, from a snapshot, an image or a VM of another host: a
    /// spare vmm becomes it, if there is one.
    NewFamily,
    /// Whoever comes.
    Pool,
}

impl Host {
    /// Has a warm VM made in a task of its own: where it will be, and whether it came to be.
    pub(super) fn make_warm(
        self: &Arc<Self>,
        of: &Record,
        vmid: u32,
        name: String,
        who: For,
    ) -> (PoolSlot, JoinHandle<bool>) {
        let (sender, pool_slot) = mpsc::channel(1);
        let (host, of) = (Arc::clone(self), of.clone());
        let spare = if who == For::NewFamily { self.spares.take(&of) } else { None };
        let made = tokio::spawn(async move {
            let identity = Record { name, vmid, ..of };
            let made = match spare {
                Some(spare) => host.assign(spare, &identity).await,
                None => host.warm_up(&identity, who).await,
            };
            let watcher = made.as_ref().ok().and_then(|warm| warm.process()?.watcher().ok());
            let is_made = made.is_ok();
            if let Err(error) = &made {
                tracing::warn!(family = %identity.family, vmid, error = %chain(&error), "a warm VM was not made");
            }
            // There is room for one; a pool slot that is gone drops it, and with that ends it.
            if sender.send(made).await.is_err() {
                tracing::debug!(vmid, "nobody wants the warm VM any more");
            }
            if let Some(process) = watcher {
                tokio::spawn(host.watch_pool_slot(identity, process, sender));
            }
            is_made
        });
        (PoolSlot(pool_slot), made)
    }

    /// Clears a pool slot whose process dies before anybody takes it.
    async fn watch_pool_slot(
        self: Arc<Self>,
        of: Record,
        process: Process,
        slot: mpsc::Sender<Result<Warm, Error>>,
    ) {
        let gone = tokio::select! { () = slot.closed() => return, gone = process.gone() => gone };
        if let Err(error) = gone {
            tracing::error!(error = %chain(&error), "watch a warm vmm");
        }
        let Some(pool_slot) = self.table.pull_pool_slot(of.net.index, of.family, of.vmid) else { return };
        let words = match pool_slot.warm().await {
            Ok(mut warm) => {
                let words =
                    format!("{}; {}", warm.death(ControlError::Closed).await, warm.dir().last_words());
                warm.discard().await;
                words
            }
            Err(error) => chain(&error),
        };
        tracing::warn!(family = %of.family, vmid = of.vmid, words, "a warm vmm died; another takes its place");
        self.table.lost_pool_slot(of.net.index, of.family, of.vmid);
    }

    /// Makes a warm VM; on an error nothing of it is left.
    pub(super) async fn warm_up(&self, identity: &Record, who: For) -> Result<Warm, Error> {
        let _turn = self.making.turn().await?;
        let dir = self.state.create_warm()?;
        let made = self.warm_up_in(dir.clone(), identity, who).await;
        if made.is_err() {
            delete(&dir);
        }
        made
    }

    async fn warm_up_in(&self, dir: VmDir, identity: &Record, who: For) -> Result<Warm, Error> {
        let tap = self.net.tap(identity.net, identity.vmid).await?;
        let neighbours = self.net.neighbours(identity.net);
        let urgency = match who {
            For::Pool => Urgency::Background,
            // Somebody waits for it, and of many clones of one call the first ones' guests run
            // already: made beside them as their equal, the last ones would start when those are
            // through with all that they have to do.
            For::Clone | For::NewFamily => Urgency::Urgent,
        };
        let of = identity.clone();
        let parts = move || {
            let (kvm, rootfs) = (spawn::open_kvm()?, open_rootfs(&of)?);
            Ok(parts(&of, Start::Warm, (kvm, rootfs, tap), neighbours, urgency))
        };
        self.spawn_warm(dir, identity.name.clone(), parts).await
    }

    /// Starts a vmm of these parts and waits until it is warm; on an error its folder is left. If
    /// vmmd stops meanwhile, it is gone when this returns.
    pub(super) async fn spawn_warm(
        &self,
        dir: VmDir,
        name: String,
        parts: impl FnOnce() -> Result<Parts, Error> + Send + 'static,
    ) -> Result<Warm, Error> {
        let (program, folder, named) = (self.settings.vmm.clone(), dir.clone(), name.clone());
        // vmmd may stop at each of the next steps: nobody knows of the process but this function.
        let spawn = move || {
            let process = spawn::spawn(&program, &named, &folder, parts()?)?;
            Ok(KillOnDrop::new(folder, process))
        };
        let mut vmm = blocking(spawn).await?;
        let greeted = self.making.unless_stopping(greet(&dir)).await;
        // Until its VM runs, or until it is gone: what it has to do for that is short.
        vmm.set_urgency(Urgency::Urgent);
        let greeted = match greeted {
            Ok(Ok((control, version))) => {
                control_client::connect(&dir).await.map(|start| (control, start, version))
            }
            Ok(Err(error)) => Err(error),
            Err(stopping) => {
                vmm.end_process().await;
                return Err(stopping);
            }
        };
        match greeted {
            Ok((control, start, version)) => {
                Ok(Warm { control: Some(control), start, version, member: None, vmm })
            }
            Err(source) => {
                let source = vmm.death(source).await;
                vmm.end_process().await;
                Err(Error::Warm { name, words: dir.last_words(), source })
            }
        }
    }
}

/// Connects to a new vmm and waits until it is warm; its version. One that says no hello is older
/// than versions.
async fn greet(dir: &VmDir) -> Result<(BufReader<UnixStream>, u32), ControlError> {
    let mut control = control_client::open(dir, &Open::Control, PATIENCE).await?;
    let warm = async {
        let (mut is_told, mut version) = (false, 0);
        while let Some(said) = control_client::read_known(&mut control, &mut is_told).await? {
            match said {
                FromVmm::Hello { version: said } if said > VERSION => return Err(ControlError::Newer(said)),
                FromVmm::Hello { version: said } => version = said,
                FromVmm::State(State::Warm) => return Ok(version),
                FromVmm::State(State::Ended(end)) => return Err(ControlError::Refused(end.reason)),
                other => tracing::debug!(?other, "said before it is warm"),
            }
        }
        Err(ControlError::Closed)
    };
    let version =
        tokio::time::timeout(PATIENCE, warm).await.map_err(|_| ControlError::Timeout(PATIENCE))??;
    Ok((control, version))
}

/// The disk that a VM, and every clone of it, reads.
fn open_rootfs(record: &Record) -> Result<File, Error> {
    images::open_rootfs_again(&record.rootfs, record.rootfs_file)
        .map_err(|source| Error::CloneRootfs { name: record.master().to_owned(), source })
}
