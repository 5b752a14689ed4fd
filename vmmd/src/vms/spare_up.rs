//! Makes spare vmms, and VMs of them.
//!
//! ```text
//!  VM restored, image kept ▶ its kind is used ▶ no clone on its way ▶ tap, vmm ▶ a spare waits
//!  next VM of the kind ▶ tap on its family's bridge ▶ start, with who it is
//! ```

use super::{
    blocking::blocking,
    create::MASTER,
    error::Error,
    host::Host,
    images,
    parts::member,
    spares::{MachineKind, Spare, Spares, Work},
    warm::{Retry, Warm, delete},
    warm_up::For,
};
use crate::{
    process::{
        Process,
        control_client::ControlError,
        spawn::{self, Parts, Start},
        urgency::Urgency,
    },
    store::record::Record,
};
use patina_daemon::chain;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{sync::oneshot, time::timeout};

/// What a spare is called where a VM has a name.
const NAME: &str = "spare vmm";
/// How often it is looked for spares that are not needed any more.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Host {
    /// Keeps spares ready, for as long as the program runs.
    pub fn keep_spares(self: &Arc<Self>) {
        if self.spares.is_wanted() {
            tokio::spawn(keep(Arc::downgrade(self), Arc::clone(&self.spares)));
        }
    }

    /// Makes a spare in its turn; on an error nothing of it is left.
    async fn make_spare(&self, kind: &MachineKind) -> Result<Spare, Error> {
        let (tap, index) = self.net.spare_tap().await?;
        let (dir, of) = (self.state.create_warm()?, kind.clone());
        let parts = move || {
            let kvm = spawn::open_kvm()?;
            let rootfs = images::open_rootfs_again(&of.rootfs, Some(of.rootfs_file));
            let name = NAME.to_owned();
            let rootfs = rootfs.map_err(|source| Error::CloneRootfs { name, source })?;
            let MachineKind { vcpus, memory_mib, .. } = of;
            let (start, urgency) = (Start::Warm, Urgency::Background);
            Ok(Parts { kvm, start, rootfs, tap, vcpus, memory_mib, member: None, urgency })
        };
        let made = self.spawn_warm(dir.clone(), NAME.to_owned(), parts).await;
        if made.is_err() {
            delete(&dir);
        }
        Ok(Spare { warm: made?, tap: index })
    }

    /// Clears away a spare that dies before anybody takes it.
    async fn watch_spare(self: Arc<Self>, process: Process, number: u64, mut watching: oneshot::Sender<()>) {
        let gone = tokio::select! { () = watching.closed() => return, gone = process.gone() => gone };
        if let Err(error) = gone {
            tracing::error!(error = %chain(&error), "watch a spare vmm");
        }
        let Some(Spare { mut warm, .. }) = self.spares.pull(number) else { return };
        let words = format!("{}; {}", warm.death(ControlError::Closed).await, warm.dir().last_words());
        tracing::warn!(words, "a spare vmm died; another takes its place");
        warm.discard().await;
    }

    /// Makes a spare and has it wait; whether it came to be.
    async fn add_spare(self: &Arc<Self>, kind: &MachineKind) -> bool {
        // Until it waits, or is gone.
        let Ok(_turn) = self.making.turn().await else { return false };
        let watched = self.make_spare(kind).await.and_then(|spare| {
            let process = spare.warm.process().ok_or(Error::Stopping)?.watcher();
            Ok((spare, process))
        });
        let (spare, process) = match watched {
            Ok((spare, Ok(process))) => (spare, process),
            Ok((_, Err(error))) => {
                tracing::warn!(error = %chain(&error), "watch a spare vmm");
                return false;
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a spare vmm was not made");
                return false;
            }
        };
        let (watching, watched) = oneshot::channel();
        match self.spares.keep(kind, spare, watched) {
            Ok(number) => {
                tracing::debug!(rootfs = %kind.rootfs.display(), kind.vcpus, kind.memory_mib, "a spare vmm waits");
                tokio::spawn(Arc::clone(self).watch_spare(process, number, watching));
            }
            Err(unwanted) => unwanted.discard().await,
        }
        true
    }

    /// Makes the warm VM of a record of a spare. Where that cannot be done, the spare ends, and the
    /// warm VM is made from nothing.
    pub(super) async fn assign(&self, spare: Spare, identity: &Record) -> Result<Warm, Error> {
        let Spare { mut warm, tap } = spare;
        if let Err(error) = self.net.attach(identity.net, identity.vmid, tap).await {
            tracing::warn!(vm = identity.name, error = %chain(&error), "a spare vmm is of no use; the VM gets a new one");
            warm.discard().await;
            return self.warm_up(identity, For::Clone).await;
        }
        if identity.vmid == MASTER
            && let Some(process) = warm.process()
        {
            process.is_a_master();
        }
        warm.member = Some(Box::new(member(identity, self.net.neighbours(identity.net))));
        tracing::debug!(vm = identity.name, "a spare vmm becomes this VM");
        Ok(warm)
    }
}

async fn keep(host: Weak<Host>, spares: Arc<Spares>) {
    let mut retry = Retry::default();
    loop {
        let looked = Arc::clone(&spares);
        if blocking(move || {
            looked.forget_unused();
            Ok(())
        })
        .await
        .is_err()
        {
            return;
        }
        let failed = match (spares.work(), host.upgrade()) {
            (_, None) => return,
            (Work::Nothing, Some(host)) => {
                drop(host);
                let changed = spares.changed.notified();
                if spares.has_kinds() {
                    if timeout(LOOK_EVERY, changed).await.is_err() {
                        tracing::trace!("it is time to look for spares that are not needed");
                    }
                } else {
                    changed.await;
                }
                continue;
            }
            (Work::Make(kind), Some(host)) => {
                host.quiet().await;
                !host.add_spare(&kind).await
            }
        };
        retry.after(failed).await;
    }
}
