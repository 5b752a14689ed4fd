//! Taking over what an earlier `vmmd` left: see [`crate::plan::adopt`] for the decisions.

use super::{
    Host, MAKING_AT_ONCE, Vm,
    error::Error,
    supervise::{Supervised, remove_socket, supervise},
    unix_ms,
};
use crate::{
    net::ports::{Bound, Published},
    plan::{
        adopt::{Decision, Found, decide},
        lifecycle::{Event, Exit, Lifecycle, Phase},
    },
    process::{Process, stray, urgency::Urgency},
    store::{Lasting, VmDir, record::Record},
};
use std::{sync::Arc, time::Duration};
use tokio::{task::spawn_blocking, time::timeout};

/// How long a stray process may take to be gone.
const STRAY_PATIENCE: Duration = Duration::from_secs(5);

/// What was found at the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Adopted {
    /// VMs that run.
    pub running: usize,
    /// VMs that have ended.
    pub ended: usize,
    /// Half-made folders, processes and bridges that were removed.
    pub reaped: usize,
}

impl Host {
    /// Takes over every VM of the state folder, and removes what is of none. Once, and before anything is made.
    ///
    /// # Errors
    /// The folder cannot be read, or interfaces not be listed.
    pub async fn adopt(self: &Arc<Self>) -> Result<Adopted, Error> {
        let mut adopted = Adopted::default();
        let mut half_made = Vec::new();
        for (name, dir) in self.state.list()? {
            match self.adopt_one(&name, &dir).await? {
                Decision::Adopt => adopted.running += 1,
                Decision::KeepEnded(_) | Decision::RecordEnd => adopted.ended += 1,
                Decision::RemoveHalfMade => half_made.push(dir),
                Decision::SetAside => {}
            }
        }
        adopted.reaped += self.end_strays().await;
        for dir in half_made {
            tracing::warn!(folder = %dir.path().display(), "a half-made VM is removed");
            dir.delete()?;
            adopted.reaped += 1;
        }
        // What was warm was nobody: the vmids are still to be given.
        for (_, dir) in self.state.list_warm()? {
            dir.delete()?;
        }
        self.state.keep_families(&self.living_families())?;
        adopted.reaped += self.net.reap(&self.table.families()).await?.len();
        self.forget_old_clones().await;
        // Only now: what is made for a VM taken over must not be taken for what was left.
        self.making.add_permits(MAKING_AT_ONCE);
        Ok(adopted)
    }

    async fn adopt_one(self: &Arc<Self>, name: &str, dir: &VmDir) -> Result<Decision, Error> {
        let found = match dir.load() {
            Ok(None) => Found::NoRecord,
            Ok(Some(record)) if record.name == name => Found::Record(Box::new(record)),
            Ok(Some(_)) => Found::Unreadable,
            Err(error) => {
                tracing::error!(folder = %dir.path().display(), %error, "left for you to look at and delete");
                Found::Unreadable
            }
        };
        let process = match &found {
            Found::Record(record) => record.process.as_ref().and_then(Process::find),
            Found::NoRecord | Found::Unreadable => None,
        };
        let decision = decide(&found, process.is_some());
        if decision == Decision::RemoveHalfMade {
            return Ok(decision);
        }
        let reservation = self.table.reserve(name)?;
        match (&decision, found, process) {
            (Decision::Adopt, Found::Record(record), Some(process)) => {
                reservation.fill(self.take_over(dir.clone(), *record, process).await);
            }
            (Decision::KeepEnded(ended), Found::Record(record), _) => {
                reservation.fill(Arc::new(Vm::ended(*record, dir.clone(), ended.clone())));
            }
            (Decision::RecordEnd, Found::Record(record), _) => {
                reservation.fill(Arc::new(record_end(dir.clone(), *record)?));
            }
            _ => reservation.set_aside(),
        }
        Ok(decision)
    }

    async fn take_over(self: &Arc<Self>, dir: VmDir, record: Record, process: Process) -> Arc<Vm> {
        // It may have been about to start as the other vmmd ended.
        process.set_urgency(Urgency::Normal);
        self.find_family(&record);
        self.load_touched(&record).await;
        let published = publish_again(&record).await;
        let life = Lifecycle::running(record.ready_after_us);
        let share = self.tickets.find(&record);
        supervise(self, Supervised { dir, record, process, life, published, control: None, share })
    }

    /// Ends vmm processes of this state that belong to no VM taken over; how many.
    async fn end_strays(&self) -> usize {
        // A clone's process began under `warm`, wherever its folder is now.
        let folders = ["vms", "warm"].map(|folder| self.state.path().join(folder));
        let found = spawn_blocking(move || stray::find(&folders)).await.unwrap_or_default();
        let known: Vec<_> = self.table.all().iter().filter_map(|vm| vm.record.process.clone()).collect();
        let mut ended = 0;
        for (name, process) in found.into_iter().filter(|(_, process)| !known.contains(process.id())) {
            tracing::warn!(vm = name, pid = process.id().pid, "a vmm process that is no VM's is ended");
            if let Err(error) = process.kill() {
                tracing::error!(pid = process.id().pid, %error, "kill");
            } else if timeout(STRAY_PATIENCE, process.gone()).await.is_err() {
                tracing::error!(pid = process.id().pid, "does not go away");
            }
            ended += 1;
        }
        ended
    }
}

async fn publish_again(record: &Record) -> Option<Published> {
    match Bound::bind(&record.ports).await {
        Ok(bound) => record.net.ip(record.vmid).map(|ip| bound.serve(ip)),
        Err(error) => {
            // The VM runs on without: ending it over a port would be worse.
            tracing::error!(vm = record.name, %error, "its ports are not published");
            None
        }
    }
}

fn record_end(dir: VmDir, record: Record) -> Result<Vm, Error> {
    let mut life = Lifecycle::running(record.ready_after_us);
    let (left, log_tail) = (dir.load_end(), dir.log_tail());
    life.on(Event::Gone { left, exit: Exit::Unknown, log_tail, unix_ms: unix_ms() });
    remove_socket(&dir);
    let Phase::Ended(ended) = life.phase else { return Err(Error::Stopping) };
    let record = Record { ended: Some(ended.clone()), ..record };
    dir.save(&record, Lasting::Host)?;
    tracing::info!(vm = record.name, kind = ?ended.end.kind, reason = ended.end.reason, "ended unseen");
    Ok(Vm::ended(record, dir, ended))
}
