//! Retries what could not be adopted or written. An operator may remove it meanwhile.

use super::{Outcome, end_stray};
use crate::{
    plan::lifecycle::Phase,
    process::{Process, control_client::PATIENCE, stray},
    vms::{blocking::blocking, error::Error, host::Host, supervise::tell_ended, table::Broken},
};
use patina_daemon::chain;
use patina_proto::v1::EventKind;
use std::{
    collections::HashSet,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{task::spawn_blocking, time::sleep};

/// How long after a first try the next comes; each time in a row twice as long, up to
/// [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

impl Host {
    /// Tries again, for as long as this host lives.
    pub(super) async fn retry(self: Arc<Self>) {
        let host = Arc::downgrade(&self);
        drop(self);
        let mut rest = RETRY;
        loop {
            sleep(rest).await;
            let Some(host) = Weak::upgrade(&host) else { return };
            let is_left = host.try_again().await;
            rest = if is_left { (rest * 2).min(RETRY_MAX) } else { RETRY_MAX };
        }
    }

    /// Whether something is left to be tried.
    async fn try_again(self: &Arc<Self>) -> bool {
        let _turn = self.mending.lock().await;
        let mut is_left = false;
        for (name, broken) in self.table.broken() {
            let Ok(held_name) = self.table.take_folder(&name) else { continue };
            match self.adopt_one(held_name, broken.dir.clone()).await {
                (Outcome::Running, _) => tracing::info!(vm = name, "taken over after all"),
                (Outcome::Ended, _) if broken.record.is_some() => self.tell_late_end(&name),
                (Outcome::Ended, _) => {}
                (Outcome::HalfMade, Some(held_name)) => {
                    for process in self.processes_of(&name, &broken).await {
                        end_stray(&process).await;
                    }
                    match broken.dir.delete() {
                        Ok(()) => tracing::info!(vm = name, "a half-made VM is removed after all"),
                        Err(error) => {
                            is_left = true;
                            self.set_aside(held_name, broken.dir.clone(), None, chain(&error));
                        }
                    }
                }
                (Outcome::HalfMade, None) => {}
                (Outcome::Broken, _) => is_left = true,
            }
        }
        is_left | self.write_again().await
    }

    /// The scheduler was told that it runs, as nobody knew.
    fn tell_late_end(&self, name: &str) {
        let Ok(vm) = self.table.find(name) else { return };
        if let Phase::Ended(ended) = vm.status().phase {
            tell_ended(self, &vm.record, self.tickets.find(&vm.record).as_mut(), &ended);
            self.tell(&vm.record, EventKind::Ended, ended.end.reason);
        }
    }

    /// Removes what cannot be taken over, with whatever process is in its folder.
    ///
    /// # Errors
    /// There is none of that name, it is a VM, or it cannot be deleted.
    pub async fn remove_broken(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        // In a task of its own: who asked may go away.
        let (host, name) = (Arc::clone(self), name.to_owned());
        tokio::spawn(async move { host.remove_broken_whole(&name).await })
            .await
            .map_err(|_| Error::Stopping)?
    }

    async fn remove_broken_whole(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        self.adopted(PATIENCE).await?;
        let _turn = self.mending.lock().await;
        let (broken, held_name) = self.table.take_broken(name)?;
        for process in self.processes_of(name, &broken).await {
            end_stray(&process).await;
        }
        let dir = broken.dir.clone();
        if let Err(error) = blocking(move || Ok(dir.delete()?)).await {
            let record = broken.record.clone();
            held_name.set_aside(Broken { dir: broken.dir.clone(), record, problem: chain(&error) });
            return Err(error);
        }
        tracing::info!(vm = name, problem = broken.problem, "a VM that could not be taken over is removed");
        if let Some(record) = &broken.record {
            self.tell(record, EventKind::Removed, "it could not be taken over");
        }
        drop(held_name);
        self.clear_up(self.table.broken().iter().any(|(_, broken)| broken.record.is_none())).await;
        Ok(())
    }

    async fn processes_of(&self, name: &str, broken: &Broken) -> Vec<Process> {
        let process = broken.record.as_ref().and_then(|record| record.process.as_ref()).map(Process::find);
        if let Some(Ok(process)) = process {
            return process.into_iter().collect();
        }
        let folders = ["vms", "warm"].map(|folder| self.state.path().join(folder));
        let found = spawn_blocking(move || stray::find(&folders, &HashSet::new())).await.unwrap_or_default();
        found.into_iter().filter(|(of, _)| of == name).map(|(_, process)| process).collect()
    }
}
