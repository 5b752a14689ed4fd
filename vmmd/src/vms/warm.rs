//! A warm VM: a vmm process that has all that a clone needs except the generation. It has a vmid, a
//! tap and an identity. No VM has its name yet, and nothing is written about it until it starts.

use super::error::Error;
use crate::{
    plan::vmids::Vmids,
    process::{
        Process,
        control_client::ControlError,
        turns::{Turn, Turns},
        urgency::Urgency,
    },
    store::VmDir,
};
use patina_control::config::Member;
use patina_daemon::chain;
use std::{sync::Arc, time::Duration};
use tokio::{io::BufReader, net::UnixStream, runtime::Handle, sync::mpsc, task::spawn_blocking};

/// How long after a warm vmm that failed or died the next is made; each time in a row twice as
/// long, up to a minute.
#[derive(Debug)]
pub(super) struct Retry(Duration);

impl Default for Retry {
    fn default() -> Self {
        Self(Duration::from_secs(2))
    }
}

impl Retry {
    const LONGEST: Duration = Duration::from_secs(60);

    /// Waits after a failure; begins anew after a success.
    pub(super) async fn after(&mut self, failed: bool) {
        if !failed {
            *self = Self::default();
            return;
        }
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

/// A vmm process that is no VM's yet. Dropped, it is killed, and its folder goes.
#[derive(Debug)]
pub(super) struct KillOnDrop {
    dir: VmDir,
    // Taken when it has started, or has ended.
    process: Option<Process>,
}

/// A vmm process that waits for a generation. Dropped, it is killed, and its folder goes.
#[derive(Debug)]
pub struct Warm {
    /// Where it says how it stands. What has been read from it: that it is warm.
    pub control: Option<BufReader<UnixStream>>,
    /// Connected, and nothing said on it.
    pub start: UnixStream,
    /// The version that its vmm said.
    pub version: u32,
    /// Who its VM is, if its vmm was made as a spare: it is told when the VM starts.
    pub member: Option<Box<Member>>,
    pub(super) vmm: KillOnDrop,
}

/// A pool slot: a warm VM, which may still be in the making. It comes out of [`Self::warm`], an
/// error likewise.
#[derive(Debug)]
pub struct PoolSlot(pub(super) mpsc::Receiver<Result<Warm, Error>>);

/// The vmids of a family, with the pool slots that are kept.
pub type Pool = Vmids<PoolSlot>;

impl PoolSlot {
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Self(mpsc::channel(1).1)
    }

    /// The warm VM, when it is made.
    ///
    /// # Errors
    /// It could not be made.
    pub async fn warm(mut self) -> Result<Warm, Error> {
        self.0.recv().await.unwrap_or(Err(Error::Stopping))
    }

    /// Whether it is made.
    #[must_use]
    pub fn is_made(&self) -> bool {
        !self.0.is_empty()
    }

    /// Ends what is here, or what will be.
    pub async fn discard(self) {
        if let Ok(warm) = self.warm().await {
            warm.discard().await;
        }
    }
}

impl Warm {
    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &VmDir {
        &self.vmm.dir
    }

    /// Its folder has been moved.
    pub fn is_moved(&mut self, dir: VmDir) {
        self.vmm.dir = dir;
    }

    /// Which process it is. None when it has been taken out.
    #[must_use]
    pub fn process(&self) -> Option<&Process> {
        self.vmm.process.as_ref()
    }

    /// Takes the process out: it has started, and is a VM's from now on.
    #[must_use]
    pub fn into_process(mut self) -> Option<Process> {
        self.vmm.process.take()
    }

    /// Its VM runs: from now on it has a turn among the clones that are not ready yet.
    #[must_use]
    pub fn has_started(&self, turns: &Arc<Turns>) -> Option<Turn> {
        self.process().map(|process| turns.begin(process.id().pid))
    }

    /// How it went, in place of an error of a connection to it, when it is gone or about to be.
    pub async fn death(&mut self, source: ControlError) -> ControlError {
        self.vmm.death(source).await
    }

    /// Ends it, and deletes its folder when it is gone.
    pub async fn discard(self) {
        self.vmm.end().await;
    }
}

impl KillOnDrop {
    pub(super) fn new(dir: VmDir, process: Process) -> Self {
        Self { dir, process: Some(process) }
    }

    /// As [`Warm::death`].
    pub(super) async fn death(&mut self, source: ControlError) -> ControlError {
        const DEATH_PATIENCE: Duration = Duration::from_secs(2);
        let Some(process) = self.process.as_mut().filter(|_| source.may_be_death()) else { return source };
        match tokio::time::timeout(DEATH_PATIENCE, process.gone()).await {
            Ok(Ok(())) => ControlError::Died(process.exit()),
            Ok(Err(_)) | Err(_) => source,
        }
    }

    /// Makes it so urgent.
    pub(super) fn set_urgency(&self, urgency: Urgency) {
        if let Some(process) = &self.process {
            process.set_urgency(urgency);
        }
    }

    /// Ends it; its folder stays. Dropped meanwhile, it is still killed.
    pub(super) async fn end_process(&mut self) {
        if let Some(process) = &mut self.process {
            process.end().await;
        }
        self.process = None;
    }

    async fn end(mut self) {
        end(self.process.take(), self.dir.clone()).await;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        if let Err(error) = process.kill() {
            tracing::error!(pid = process.id().pid, error = %chain(&error), "kill a vmm that is no VM's");
        }
        // It is to be waited for: a child that nobody waits for stays a zombie for as long as vmmd
        // runs.
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(end(Some(process), self.dir.clone()))),
            // vmmd ends, and the next one clears up.
            Err(_) => delete(&self.dir),
        }
    }
}

async fn end(process: Option<Process>, dir: VmDir) {
    if let Some(mut process) = process {
        process.end().await;
    }
    if let Err(error) = spawn_blocking(move || delete(&dir)).await {
        tracing::error!(error = %chain(&error), "files of a vmm that is gone stay behind");
    }
}

pub(super) fn delete(dir: &VmDir) {
    if let Err(error) = dir.delete() {
        tracing::error!(folder = %dir.path().display(), error = %chain(&error), "files of a vmm that is gone stay behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::PathBuf, process::Command};
    use tokio::task::yield_now;

    /// A warm VM whose process is this one's child, and that child's entry in `/proc`, which a
    /// zombie has as well.
    fn warm(folder: &std::path::Path) -> (Warm, PathBuf) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let entry = PathBuf::from(format!("/proc/{}", child.id()));
        fs::create_dir(folder).unwrap();
        let process = Process::of_child(child).unwrap();
        let start = UnixStream::pair().unwrap().0;
        (
            Warm {
                control: None,
                start,
                version: patina_control::VERSION,
                member: None,
                vmm: KillOnDrop::new(VmDir::at(folder), process),
            },
            entry,
        )
    }

    async fn is_gone(entry: &std::path::Path, folder: &std::path::Path) {
        let gone = async {
            while entry.exists() || folder.exists() {
                yield_now().await;
            }
        };
        let patience = Duration::from_secs(10);
        assert!(tokio::time::timeout(patience, gone).await.is_ok(), "no zombie and no folder is left");
    }

    #[tokio::test]
    async fn a_warm_vm_that_is_dropped_is_ended_waited_for_and_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("warm");
        let (dropped, entry) = warm(&path);
        drop(dropped);
        is_gone(&entry, &path).await;

        // A VM that nobody takes out of its pool slot is dropped with the slot.
        let (unwanted, entry) = warm(&path);
        let (sender, pool_slot) = mpsc::channel(1);
        sender.send(Ok(unwanted)).await.unwrap();
        drop(PoolSlot(pool_slot));
        is_gone(&entry, &path).await;
    }

    #[tokio::test]
    async fn a_process_that_was_taken_out_lives_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("warm");
        let (started, entry) = warm(&path);
        let mut process = started.into_process().unwrap();
        yield_now().await;
        assert!(Process::find(process.id()).unwrap().is_some() && path.exists());
        process.end().await;
        assert!(!entry.exists());
    }
}
