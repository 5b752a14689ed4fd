//! What follows from where a VM stands, and what that means for its image: the one that it started
//! from, or the one that it is kept as.

use super::Supervisor;
use crate::{
    metrics::Stage,
    net::ports::Bound,
    plan::lifecycle::{Event, Phase},
    store::Lasting,
};
use patina_control::{CLONABLE_OLDEST, VERSION, messages::State};
use patina_proto::v1::EventKind;
use std::{sync::Arc, time::Duration};

impl Supervisor {
    /// The vmm says where the VM stands.
    pub(super) async fn reach(&mut self, state: State) {
        // A vmm says where it stands on each control connection anew.
        if self.unpublished.is_some() {
            return;
        }
        if matches!(state, State::Ready { .. })
            && let Some(keep) = self.vm.keep.take()
        {
            self.keeping.spawn(Arc::clone(&self.host).keep_booted(Arc::clone(&self.handle), keep));
            self.unpublished = Some(state);
            return;
        }
        if self.vm.life.on(Event::Said(state)) {
            tracing::info!(state = self.vm.life.phase.word(), after_us = self.vm.life.ready_after_us);
            self.vm.record.ready_after_us = self.vm.life.ready_after_us;
            self.publish();
            self.tell_ready();
            self.on_phase();
            self.save(Lasting::Process).await;
        }
    }

    /// It was frozen to be kept, or could not be: now it is as any other.
    pub(super) async fn kept(&mut self, bound: Option<Bound>) {
        self.vm.published = bound.zip(self.vm.record.net.ip(self.vm.record.vmid)).map(|(b, ip)| b.serve(ip));
        if let Some(state) = self.unpublished.take() {
            self.reach(state).await;
        }
    }

    fn tell_ready(&self) {
        let Some(after_us) = self.vm.life.ready_after_us else { return };
        if self.vm.record.vmid > 0 {
            self.host.metrics.stage(Stage::Ready, Duration::from_micros(after_us));
        }
        let after = format!("after {}.{} ms", after_us / 1000, after_us % 1000 / 100);
        self.host.tell(&self.vm.record, EventKind::Ready, after);
    }

    /// Nothing that a vmm may not know is asked of it before its version is known, and nothing for
    /// clones of a VM that is not cloned.
    pub(super) fn on_phase(&self) {
        let is_clonable = |version| (CLONABLE_OLDEST..=VERSION).contains(&version);
        if self.vm.life.phase == Phase::Ready && self.vm.vmm_version.is_some_and(is_clonable) {
            self.host.keep_pool(&self.vm.record);
            self.host.learn_prefault_list(&self.handle);
            self.handle.connect_ahead();
        }
    }

    /// The image that it started from is of no use, if that is so.
    pub(super) async fn discard_image(&self, is_useless: bool) {
        if let Some(image) = self.vm.record.image.as_deref().filter(|_| is_useless) {
            self.host.discard_image(image, "a VM that started from it has failed").await;
        }
    }
}
