//! VMs that the pager does not serve any longer. That is right for a VM whose memory has arrived.
//! Any other one is tried again, a few times, and then ended.

use patina_control::pager::{Id, LayerStatus};
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// Most tries for a VM within `WITHIN`.
pub const TRIES_MAX: usize = 5;
/// See [`TRIES_MAX`].
const WITHIN: Duration = Duration::from_secs(10);
/// How long the process may take to go: that its socket is closed is seen first.
const REST: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
struct Vm {
    reason: String,
    /// Layers of which the pager has not said yet whether all of them has arrived.
    asked: Vec<Id>,
    /// One of its layers is not complete.
    needs_pager: bool,
    tries: VecDeque<Instant>,
    retry: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Gone(HashMap<Id, Vm>);

impl Gone {
    /// Looks at a VM: the pager is asked about these layers.
    pub fn ask(&mut self, vm: Id, reason: &str, layers: &[Id]) {
        let entry = self.0.entry(vm).or_default();
        reason.clone_into(&mut entry.reason);
        entry.asked = layers.to_vec();
        entry.needs_pager = false;
    }

    /// The pager has told of a layer. The VMs that are tried no longer, with the reason.
    pub fn heard(&mut self, status: &LayerStatus) -> Vec<(Id, String)> {
        let (now, mut given_up) = (Instant::now(), Vec::new());
        for (id, vm) in &mut self.0 {
            if !vm.asked.contains(&status.layer) {
                continue;
            }
            vm.asked.retain(|asked| *asked != status.layer);
            vm.needs_pager |= status.present < status.runs;
            if !vm.asked.is_empty() || !vm.needs_pager {
                continue;
            }
            vm.tries.retain(|tried| now.duration_since(*tried) < WITHIN);
            if vm.tries.len() >= TRIES_MAX {
                given_up.push((id.clone(), vm.reason.clone()));
            } else {
                vm.tries.push_back(now);
                vm.retry = Some(now + REST);
            }
        }
        given_up
    }

    /// Waits for the next VM to try again. May be dropped and called again.
    pub async fn next(&mut self) -> Id {
        let first =
            self.0.iter().filter_map(|(id, vm)| Some((vm.retry?, id.clone()))).min_by_key(|first| first.0);
        let Some((at, id)) = first else { return std::future::pending().await };
        sleep_until(at).await;
        if let Some(vm) = self.0.get_mut(&id) {
            vm.retry = None;
        }
        id
    }

    /// A VM has ended.
    pub fn forget(&mut self, vm: &Id) {
        self.0.remove(vm);
    }

    /// The pager is gone: the next one gets all VMs.
    pub fn forget_all(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Id {
        Id::try_from(name.to_owned()).unwrap()
    }

    fn status(layer: &str, present: u64) -> LayerStatus {
        let (layer, failed) = (id(layer), 0);
        LayerStatus {
            layer,
            bytes: 640 << 10,
            runs: 10,
            present,
            fetched: 0,
            failed,
            vms: 0,
            is_complete: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_vm_whose_memory_has_arrived_needs_no_pager() {
        let mut gone = Gone::default();
        gone.ask(id("vm"), "it has closed its socket", &[id("a"), id("b")]);
        assert_eq!(gone.heard(&status("a", 10)), []);
        assert_eq!(gone.heard(&status("b", 10)), []);
        let waited = tokio::time::timeout(Duration::from_secs(100), gone.next()).await;
        assert!(waited.is_err(), "it is not tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_vm_that_needs_the_pager_is_tried_again_and_then_given_up() {
        let mut gone = Gone::default();
        for _ in 0..TRIES_MAX {
            gone.ask(id("vm"), "no", &[id("a"), id("b")]);
            assert_eq!(gone.heard(&status("a", 9)), []);
            assert_eq!(gone.heard(&status("b", 10)), []);
            assert_eq!(gone.next().await, id("vm"));
        }
        gone.ask(id("vm"), "no", &[id("a")]);
        assert_eq!(gone.heard(&status("a", 9)), [(id("vm"), "no".to_owned())]);
    }
}
