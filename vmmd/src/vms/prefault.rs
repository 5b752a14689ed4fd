//! Learns which pages clones write before they are ready: from the first held clone of a family,
//! for its later clones and for later families of the same image. Nobody waits for it. A clone
//! whose processes were not held tells nothing useful; then the next one is asked.

use super::{blocking::blocking, error::Error, host::Host, vm::Vm};
use crate::{
    process::{
        control_client::{self, ControlError, PATIENCE},
        generation::PrefaultList,
    },
    store::{prefault::ImageKey, record::Record},
};
use patina_control::messages::Open;
use patina_daemon::chain;
use std::sync::Arc;

impl Host {
    /// A clone is ready: if nobody knows yet what its like write, it is asked.
    pub(super) fn learn_prefault_list(self: &Arc<Self>, vm: &Arc<Vm>) {
        let (index, family) = (vm.record.net.index, vm.record.family);
        if vm.record.origin.is_none() || !self.table.ask_prefault_list(index, family) {
            return;
        }
        let (host, vm) = (Arc::clone(self), Arc::clone(vm));
        tokio::spawn(async move {
            // Its siblings are what users wait for.
            host.quiet().await;
            let list = host.ask_prefault_list(&vm).await;
            let list = list.inspect_err(|error| {
                tracing::warn!(vm = vm.record.name, error = %chain(&error), "the next clones start without a list");
            });
            let list = list.ok().flatten();
            if list.is_some() {
                tracing::debug!(%family, "its clones' list is known");
            }
            host.table.set_prefault_list(index, family, list);
        });
    }

    async fn ask_prefault_list(self: &Arc<Self>, vm: &Vm) -> Result<Option<PrefaultList>, Error> {
        let failed = |source| Error::Unavailable { name: vm.record.name.clone(), source };
        let sent = control_client::file(&vm.dir, &Open::PrefaultList, PATIENCE).await.map_err(failed)?;
        let (host, image) = (Arc::clone(self), ImageKey::of(&vm.record));
        let list = blocking(move || {
            let bytes = match PrefaultList::read(sent) {
                Ok(bytes) if bytes.is_empty() => return Ok(Ok(None)),
                Ok(bytes) => bytes,
                Err(error) => return Ok(Err(error)),
            };
            if let Err(error) = host.state.save_prefault_list(&image, &bytes) {
                tracing::warn!(error = %chain(&error), "only this family has the list");
            }
            Ok(PrefaultList::of(&bytes).map(Some))
        });
        list.await?.map_err(|error| failed(ControlError::from(error)))
    }

    /// Gives a family the list that an earlier one of its image left.
    pub(super) async fn load_prefault_list(self: &Arc<Self>, record: &Record) {
        if self.table.prefault_list(record.net.index, record.family).is_some() {
            return;
        }
        let (host, image) = (Arc::clone(self), ImageKey::of(record));
        let list = blocking(move || {
            let bytes = host.state.prefault_list(&image)?;
            Ok(bytes.map(|bytes| PrefaultList::of(&bytes)))
        });
        match list.await {
            Ok(Some(Ok(list))) => {
                self.table.set_prefault_list(record.net.index, record.family, Some(list));
            }
            Ok(None) => {}
            Ok(Some(Err(error))) => tracing::warn!(error = %chain(&error), "its clones start without a list"),
            Err(error) => tracing::warn!(error = %chain(&error), "its clones start without a list"),
        }
    }
}
