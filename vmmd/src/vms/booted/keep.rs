//! Keeps a VM that has just booted as an image.
//!
//! ```text
//!  boots ▶ agent ready ▶ freeze ▶ ready for everybody, ports open
//!                           └───▶ write ▶ an image ▶ what is too much goes
//! ```
//!
//! The VM is frozen before anybody hears that it is ready: no caller has run a program in it, and
//! no connection to a published port has reached it. If somebody typed on its console, it is no
//! image. Whatever goes wrong costs the image only, never the VM.

use crate::{
    clock::unix_ms,
    net::ports::Bound,
    process::generation::Generation,
    vms::{
        blocking::blocking,
        error::Error,
        host::Host,
        image_cache::{cache::Making, key::Key},
        snapshot_data::describe::{check_agent, describe},
        vm::Vm,
    },
};
use patina_control::messages::Frozen;
use patina_daemon::chain;
use patina_proto::v1::EventKind;
use patina_snapshot::{directory::unwatched, manifest::ImageRef};
use std::{ops::Range, sync::Arc};

/// What it takes to keep a VM that boots.
#[derive(Debug)]
pub struct Keep {
    making: Making,
    images: [ImageRef; 2],
    bound: Bound,
}

impl Keep {
    /// Of a VM with these images, kernel first, and these ports.
    #[must_use]
    pub fn new(making: Making, images: [ImageRef; 2], bound: Bound) -> Self {
        Self { making, images, bound }
    }
}

impl Host {
    /// Freezes a VM whose agent is ready, and has it written as an image in a task of its own. When
    /// this returns, the VM runs on; its ports are still to be served.
    pub(in crate::vms) async fn keep_booted(self: Arc<Self>, vm: Arc<Vm>, keep: Keep) -> Bound {
        let Keep { making, images, bound } = keep;
        let key = making.key();
        match self.freeze_booted(&vm).await {
            Ok((frozen, generation)) => {
                // Before anybody else can freeze the VM: the vmm looks at its last generation.
                let free = self.free_pages(&vm, frozen).await;
                let host = Arc::clone(&self);
                tokio::spawn(async move {
                    let (name, began_ms) = (vm.record.name.clone(), unix_ms());
                    match host.write_image(&vm, making, images, frozen, (generation, free)).await {
                        Ok(()) => {
                            // The next VM of its kind starts from the image.
                            host.spares.used(&vm.record);
                            let text = format!("image {key}, paused for {} us", frozen.pause_us);
                            host.tell(&vm.record, EventKind::Snapshot, text);
                            tracing::info!(
                                vm = name,
                                image = %key,
                                frozen.pause_us,
                                took_ms = unix_ms().saturating_sub(began_ms),
                                "VMs of its kind start from an image now"
                            );
                        }
                        Err(error) => warn(&vm, key, &error),
                    }
                });
            }
            Err(error) => warn(&vm, key, &error),
        }
        bound
    }

    async fn freeze_booted(&self, vm: &Vm) -> Result<(Frozen, Generation), Error> {
        let frozen = vm.freeze_booted(&self.pager.known()).await?;
        if vm.is_typed_on() {
            return Err(Error::TypedOn(vm.record.name.clone()));
        }
        check_agent(&vm.record, frozen.0)?;
        Ok(frozen)
    }

    async fn write_image(
        self: &Arc<Self>,
        vm: &Arc<Vm>,
        making: Making,
        images: [ImageRef; 2],
        frozen: Frozen,
        (generation, free): (Generation, Vec<Range<u64>>),
    ) -> Result<(), Error> {
        let (host, record) = (Arc::clone(self), vm.record.clone());
        blocking(move || {
            let Some(cache) = &host.image_cache else { return Ok(()) };
            let place = cache.place(making.key());
            let description = describe(&record, images, frozen, Vec::new());
            host.write_snapshot(&place, (&record, &description), (&generation, &free), &unwatched)?;
            cache.made(making.key());
            cache.evict();
            Ok(())
        })
        .await
    }
}

fn warn(vm: &Vm, key: Key, error: &Error) {
    let error = chain(error);
    tracing::warn!(vm = vm.record.name, image = %key, error, "it is not kept as an image; VMs of its kind boot");
}
