//! Adoption: a starting `vmmd` takes over the VMs that an earlier one left. `decide` decides what
//! to do with each. Adoption continues while calls are served: each VM can be used as soon as it is
//! adopted. A VM that cannot be adopted is set aside and retried (`retry`).

mod decide;
mod retry;

use super::{
    error::Error,
    host::Host,
    supervise::{Supervised, remove_socket, supervise},
    table::{Broken, HeldName},
    vm::Vm,
};
use crate::{
    clock::unix_ms,
    events::Of,
    net::ports::{Bound, Published},
    plan::lifecycle::{Event, Exit, Lifecycle, Phase},
    process::{Process, ProcessError, stray, urgency::Urgency},
    store::{Lasting, VmDir, record::Record},
};
use decide::{Decision, Found, decide};
use futures::{StreamExt as _, stream};
use patina_daemon::chain;
use patina_proto::v1::EventKind;
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use uuid::Uuid;

/// How many vmm processes are made at the same time. Each takes a thread meanwhile.
const MAKING_AT_ONCE: usize = 16;
/// How many folders are looked at at the same time.
const AT_ONCE: usize = 16;
/// How long the look at one folder may take: a disk that does not answer holds up nobody else's VM.
const LOOK_PATIENCE: Duration = Duration::from_secs(10);
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
    /// What could not be taken over.
    pub broken: usize,
}

/// What one folder turned out to be.
enum Looked {
    Decided(Decision, Found, Option<Process>),
    /// What its record says of the process cannot be checked.
    Doubtful(Box<Record>, ProcessError),
    /// Its record does not read.
    Unreadable(String),
}

/// What became of one folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Running,
    Ended,
    HalfMade,
    Broken,
}

impl Host {
    /// Takes the names of all folders that an earlier `vmmd` left. Once, and before anything is
    /// made.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn find_folders(&self) -> Result<Vec<(String, VmDir)>, Error> {
        let found = self.state.list()?;
        self.table.find_folders(found.iter().map(|(name, _)| name.as_str()));
        Ok(found)
    }

    /// Takes over the VMs of these folders, and removes what is of none. What goes wrong with one
    /// of them holds up no other.
    pub async fn adopt(self: &Arc<Self>, found: Vec<(String, VmDir)>) -> Adopted {
        let began = Instant::now();
        let mut half_made = Vec::new();
        let mut adopted = Adopted::default();
        let looks = found.into_iter().map(|(name, dir)| async move {
            let Ok(held_name) = self.table.take_folder(&name) else { return None };
            Some((self.adopt_one(held_name, dir.clone()).await, name, dir))
        });
        let mut outcomes = stream::iter(looks).buffer_unordered(AT_ONCE);
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Some(((Outcome::Running, _), ..)) => adopted.running += 1,
                Some(((Outcome::Ended, _), ..)) => adopted.ended += 1,
                Some(((Outcome::Broken, _), ..)) => adopted.broken += 1,
                Some(((Outcome::HalfMade, held_name), name, dir)) => half_made.push((held_name, name, dir)),
                None => {}
            }
            self.adoption.send_replace(false);
        }
        drop(outcomes);
        let (ended, spared) = self.end_strays().await;
        adopted.reaped += ended;
        for (held_name, name, dir) in half_made {
            tracing::warn!(folder = %dir.path().display(), "a half-made VM is removed");
            match (dir.delete(), held_name) {
                (Ok(()), _) => adopted.reaped += 1,
                (Err(error), Some(held_name)) => {
                    adopted.broken += 1;
                    self.set_aside(held_name, dir, None, chain(&error));
                }
                (Err(error), None) => {
                    tracing::error!(vm = name, error = %chain(&error), "a half-made VM stays behind")
                }
            }
        }
        self.clear_warm();
        if self.table.broken().is_empty() {
            self.pager.forget_unused();
        }
        adopted.reaped += self.clear_up(spared).await;
        self.forget_old_clones().await;
        self.restore_members().await;
        // Only now: what is made for a VM taken over must not be taken for what was left.
        self.making.allow(MAKING_AT_ONCE);
        self.adoption.send_replace(true);
        tracing::debug!(took_ms = began.elapsed().as_millis(), "all folders were looked at");
        tokio::spawn(Arc::clone(self).retry());
        adopted
    }

    /// Looks at one folder and takes over what is in it. The name comes back, held, where nothing
    /// has it.
    async fn adopt_one(self: &Arc<Self>, held_name: HeldName, dir: VmDir) -> (Outcome, Option<HeldName>) {
        let (name, folder) = (held_name.name().to_owned(), dir.clone());
        let rebooted = self.state.is_of_another_boot();
        let looked = timeout(LOOK_PATIENCE, spawn_blocking(move || look(&name, &folder, rebooted))).await;
        let looked = match looked {
            Ok(Ok(looked)) => looked,
            Ok(Err(error)) => Looked::Unreadable(chain(&error)),
            Err(_) => Looked::Unreadable(format!("its folder does not answer in {LOOK_PATIENCE:?}")),
        };
        let (decision, record, process) = match looked {
            Looked::Decided(decision, Found::Record(record), process) => (decision, *record, process),
            Looked::Decided(..) => return (Outcome::HalfMade, Some(held_name)),
            Looked::Doubtful(record, error) => {
                self.set_aside(held_name, dir, Some(*record), chain(&error));
                return (Outcome::Broken, None);
            }
            Looked::Unreadable(problem) => {
                self.set_aside(held_name, dir, None, problem);
                return (Outcome::Broken, None);
            }
        };
        match (decision, process) {
            (Decision::Adopt, Some(process)) => {
                held_name.fill(self.take_over(dir, record, process).await);
                (Outcome::Running, None)
            }
            (Decision::KeepEnded(ended), _) => {
                held_name.fill(Arc::new(Vm::ended(record, dir, ended)));
                (Outcome::Ended, None)
            }
            (Decision::RemoveHalfMade, _) => (Outcome::HalfMade, Some(held_name)),
            (Decision::RecordEnd | Decision::Adopt, _) => {
                let host = Arc::clone(self);
                let ended = spawn_blocking(move || host.record_end(dir, record)).await;
                if let Ok(Some(vm)) = ended {
                    held_name.fill(Arc::new(vm));
                }
                (Outcome::Ended, None)
            }
        }
    }

    fn set_aside(&self, held_name: HeldName, dir: VmDir, record: Option<Record>, problem: String) {
        let name = held_name.name().to_owned();
        let is_news =
            self.table.broken().iter().all(|(known, broken)| *known != name || broken.problem != problem);
        if is_news {
            tracing::error!(folder = %dir.path().display(), problem, "a VM cannot be taken over; it is tried again");
            let of = record.as_ref().map_or(
                Of { family: Uuid::nil(), vm: Some((&name, 0)), ticket: None },
                |record| Of { family: record.family, vm: Some((&name, record.vmid)), ticket: record.ticket },
            );
            self.events.tell(of, EventKind::Broken, problem.as_str(), unix_ms());
        }
        held_name.set_aside(Broken { dir, record, problem });
    }

    async fn take_over(self: &Arc<Self>, dir: VmDir, record: Record, process: Process) -> Arc<Vm> {
        // It may have been about to start as the other vmmd ended.
        process.set_urgency(Urgency::Normal);
        self.find_family(&record);
        self.load_prefault_list(&record).await;
        let published = self.publish_again(&record).await;
        let life = Lifecycle::running(record.ready_after_us);
        let reservation = self.tickets.find(&record);
        let (control, vmm_version) = (None, None);
        let memory = self.pager.adopt(record.uuid, &dir, process.id().pid).await.unwrap_or_else(|error| {
            tracing::error!(vm = record.name, error = %chain(&error), "its memory is not served any longer");
            None
        });
        let found = Supervised {
            dir,
            record,
            process,
            life,
            published,
            control,
            vmm_version,
            memory,
            reservation,
            keep: None,
        };
        let is_lazy = found.memory.is_some();
        let vm = supervise(self, found);
        if is_lazy {
            self.hold_image(&vm);
        }
        vm
    }

    async fn publish_again(&self, record: &Record) -> Option<Published> {
        let ip = record.net.ip(record.vmid)?;
        let mut published = Published::default();
        for port in &record.ports {
            match Bound::bind(std::slice::from_ref(port)).await {
                Ok(bound) => published.add(bound.serve(ip)),
                Err(error) => {
                    // The VM runs on without it: ending the VM over a port would be worse.
                    let (vm, error) = (&record.name, chain(&error));
                    tracing::error!(
                        vm,
                        error,
                        "a port of it is not published; `vmctl publish` tries it again"
                    );
                }
            }
        }
        Some(published)
    }

    /// Ends vmm processes of this state that belong to no VM taken over; how many, and whether one
    /// was spared because its folder does not say what it is.
    async fn end_strays(&self) -> (usize, bool) {
        // A clone's process began under `warm`, wherever its folder is now.
        let folders = ["vms", "warm"].map(|folder| self.state.path().join(folder));
        let broken = self.table.broken();
        let records = broken.iter().filter_map(|(_, broken)| broken.record.as_ref()?.process.as_ref());
        let mut known: HashSet<u32> = records.map(|process| process.pid).collect();
        known.extend(self.table.all().iter().filter_map(|vm| Some(vm.record.process.as_ref()?.pid)));
        let unreadable: HashSet<&str> = broken
            .iter()
            .filter(|(_, broken)| broken.record.is_none())
            .map(|(name, _)| name.as_str())
            .collect();
        let found = spawn_blocking(move || stray::find(&folders, &known)).await.unwrap_or_default();
        let (mut ended, mut is_spared) = (0, false);
        for (name, process) in found {
            if unreadable.contains(name.as_str()) {
                tracing::error!(
                    vm = name,
                    pid = process.id().pid,
                    "the vmm of a VM that cannot be taken over runs on"
                );
                is_spared = true;
                continue;
            }
            tracing::warn!(vm = name, pid = process.id().pid, "a vmm process that is no VM's is ended");
            end_stray(&process).await;
            ended += 1;
        }
        (ended, is_spared)
    }

    /// Removes the folders of what was warm, and nobody: its vmids are still to be given.
    fn clear_warm(&self) {
        match self.state.list_warm() {
            Ok(warm) => {
                for (_, dir) in warm {
                    if let Err(error) = dir.delete() {
                        tracing::error!(folder = %dir.path().display(), error = %chain(&error), "a warm VM's folder stays");
                    }
                }
            }
            Err(error) => tracing::error!(error = %chain(&error), "the folders of warm VMs stay"),
        }
    }

    /// Removes families and bridges that are of no VM; how many bridges. `spared`: there is a VM of
    /// which nobody knows the family.
    async fn clear_up(&self, spared: bool) -> usize {
        if spared {
            tracing::warn!("bridges and families of VMs that may run are left as they are");
            return 0;
        }
        let broken = self.table.broken();
        let records = broken.iter().filter_map(|(_, broken)| broken.record.as_ref());
        let (mut families, mut numbers) = (self.living_families(), self.table.families());
        families.extend(records.clone().map(|record| record.family));
        numbers.extend(records.map(|record| record.net.index));
        if let Err(error) = self.state.keep_families(&families) {
            tracing::error!(error = %chain(&error), "files of families that have ended stay");
        }
        match self.net.reap(&numbers).await {
            Ok(gone) => gone.len(),
            Err(error) => {
                tracing::error!(error = %chain(&error), "bridges of families that have ended stay");
                0
            }
        }
    }

    /// A VM has ended while nobody looked.
    fn record_end(&self, dir: VmDir, record: Record) -> Option<Vm> {
        let mut life = Lifecycle::running(record.ready_after_us);
        let (left, log_tail) = (dir.load_end(), dir.log_tail());
        life.on(Event::Gone { left, exit: Exit::Unknown, log_tail, unix_ms: unix_ms() });
        remove_socket(&dir);
        let Phase::Ended(ended) = life.phase else { return None };
        let record = Record { ended: Some(ended.clone()), ..record };
        tracing::info!(vm = record.name, kind = ?ended.end.kind, reason = ended.end.reason, "ended unseen");
        // If this is not written, the old record stays, and it is still correct.
        self.keep_record(&dir, &record, Lasting::Host);
        Some(Vm::ended(record, dir, ended))
    }
}

/// What is in a folder.
fn look(name: &str, dir: &VmDir, rebooted: bool) -> Looked {
    let found = match dir.load() {
        Ok(None) => Found::NoRecord,
        Ok(Some(record)) if record.name == name => Found::Record(Box::new(record)),
        Ok(Some(record)) => return Looked::Unreadable(format!("its record is that of VM {:?}", record.name)),
        // No VM outlives its host, and a clone's record is not written to outlast it.
        Err(error) if rebooted && error.is_cut_short() => Found::NoRecord,
        Err(error) => return Looked::Unreadable(chain(&error)),
    };
    let process = match &found {
        Found::Record(record) if record.ended.is_none() => match record.process.as_ref().map(Process::find) {
            None => None,
            Some(Ok(process)) => process,
            Some(Err(error)) => return Looked::Doubtful(record.clone(), error),
        },
        _ => None,
    };
    Looked::Decided(decide(&found, process.is_some()), found, process)
}

/// Ends a process that is no VM's.
async fn end_stray(process: &Process) {
    if let Err(error) = process.kill() {
        tracing::error!(pid = process.id().pid, error = %chain(&error), "kill");
    } else if timeout(STRAY_PATIENCE, process.gone()).await.is_err() {
        tracing::error!(pid = process.id().pid, "does not go away");
    }
}
