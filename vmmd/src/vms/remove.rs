//! Removes ended VMs: those that an operator names, and the oldest ended clones automatically.
//! Masters stay until an operator removes them.

use super::{
    blocking::blocking,
    error::{Error, VMS_MAX},
    host::Host,
    vm::Vm,
};
use crate::{options::Options, plan::lifecycle::Phase};
use patina_daemon::chain;
use patina_proto::v1::EventKind;
use std::sync::Arc;

/// So many VMs are kept whatever clones there are and were.
const PLACES_FOR_MASTERS: usize = 64;

/// How many ended clones are kept: as the options say, but so that all clones that there may be
/// have a place.
#[must_use]
pub fn keep_ended(options: &Options) -> usize {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let places = (VMS_MAX - PLACES_FOR_MASTERS).saturating_sub(count(options.max_vms));
    count(options.keep_ended).min(places)
}

impl Host {
    /// Forgets an ended VM and deletes its files.
    ///
    /// # Errors
    /// There is none, it runs, or its files cannot be deleted.
    pub async fn remove(self: &Arc<Self>, name: &str, force: bool) -> Result<(), Error> {
        self.find(name).await?;
        if !force {
            return self.forget(name, "").await;
        }
        self.kill(name, "removed by an operator").await?;
        match self.forget(name, "").await {
            // As it ended it became one of too many.
            Err(Error::NotFound(_)) => Ok(()),
            forgotten => forgotten,
        }
    }

    async fn forget(self: &Arc<Self>, name: &str, why: &str) -> Result<(), Error> {
        // In a task of its own: who asked may go away, and the name is held until the files are
        // gone.
        let (host, name, why) = (Arc::clone(self), name.to_owned(), why.to_owned());
        tokio::spawn(async move { host.forget_whole(&name, &why).await })
            .await
            .map_err(|_| Error::Stopping)?
    }

    async fn forget_whole(&self, name: &str, why: &str) -> Result<(), Error> {
        let (vm, held_name) = self.table.take_ended(name)?;
        let dir = vm.dir.clone();
        if let Err(error) = blocking(move || Ok(dir.delete_ended()?)).await {
            tracing::error!(vm = name, error = %chain(&error), "a VM that has ended is not removed");
            self.tell(&vm.record, EventKind::NotRemoved, chain(&error));
            held_name.fill(vm);
            return Err(error);
        }
        tracing::info!(vm = name, why, "removed");
        // Its name may be used again: watchers get the events in order.
        self.tell(&vm.record, EventKind::Removed, why);
        Ok(())
    }

    /// A clone has ended, or some were found ended: the oldest beyond what is kept are forgotten.
    pub(super) async fn forget_old_clones(self: &Arc<Self>) {
        let keep = self.settings.keep_ended;
        for name in oldest_beyond(keep, &self.table.all()) {
            let why = format!("it was the oldest of more than {keep} clones that have ended");
            match self.forget(&name, &why).await {
                // Somebody else was faster.
                Ok(()) | Err(Error::NotFound(_)) => {}
                Err(error) => {
                    tracing::error!(vm = name, error = %chain(&error), "a clone that has ended stays")
                }
            }
        }
    }
}

/// The ended clones but for the `keep` that ended last, the oldest first.
fn oldest_beyond(keep: usize, vms: &[Arc<Vm>]) -> Vec<String> {
    let mut ended: Vec<(u64, u32, &str)> = vms
        .iter()
        .filter(|vm| vm.record.vmid > 0)
        .filter_map(|vm| match &vm.status.borrow().phase {
            Phase::Ended(ended) => Some((ended.unix_ms, vm.record.vmid, vm.record.name.as_str())),
            _ => None,
        })
        .collect();
    let Some(beyond) = ended.len().checked_sub(keep).filter(|&beyond| beyond > 0) else { return Vec::new() };
    ended.sort_unstable();
    ended[..beyond].iter().map(|(.., name)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::lifecycle::Ended,
        store::{VmDir, record::Record, record::tests::sample},
    };
    use clap::Parser as _;
    use patina_control::end::{End, EndKind};

    fn ended(name: &str, vmid: u32, unix_ms: u64) -> Arc<Vm> {
        let ended = Ended { end: End { kind: EndKind::Killed, reason: String::new() }, unix_ms };
        Arc::new(Vm::ended(Record { vmid, ..sample(name) }, VmDir::at("/nowhere"), ended))
    }

    #[test]
    fn the_oldest_clones_go_and_masters_stay() {
        let vms = [ended("a", 0, 1), ended("a.2", 2, 30), ended("a.1", 1, 20), ended("b.7", 7, 20)];
        assert_eq!(oldest_beyond(3, &vms), Vec::<String>::new());
        assert_eq!(oldest_beyond(1, &vms), ["a.1", "b.7"]);
        assert_eq!(oldest_beyond(0, &vms), ["a.1", "b.7", "a.2"]);
    }

    #[test]
    fn ended_clones_leave_room_for_those_that_may_come() {
        let keep = |words: &str| {
            let line = format!("vmmd --standalone {words}");
            keep_ended(&Options::try_parse_from(line.split_whitespace()).unwrap())
        };
        assert_eq!((keep(""), keep("--keep-ended 3"), keep("--keep-ended 0")), (256, 3, 0));
        assert_eq!((keep("--max-vms 800"), keep("--max-vms 1024")), (160, 0));
    }
}
