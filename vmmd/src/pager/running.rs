//! A pager that runs.

use super::{error::PagerError, parts::Parts, talk::Talk};
use crate::process::Process;
use patina_control::pager::{FromPager, Id, ToPager};
use std::{
    collections::HashSet,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

/// A process, the connection to it, and what it has got.
pub struct Running {
    /// The process.
    pub process: Process,
    /// The connection, after the first line.
    pub talk: Talk,
    /// The layers that it has got.
    pub given: HashSet<Id>,
    /// Those of `given` of which it was asked what VMs demand.
    pub asked: HashSet<Id>,
    /// The VMs that it has got.
    pub attached: HashSet<Id>,
}

impl Running {
    /// One that has got nothing yet.
    #[must_use]
    pub fn new(process: Process, talk: Talk) -> Self {
        Self { process, talk, given: HashSet::new(), asked: HashSet::new(), attached: HashSet::new() }
    }

    /// Gives it a layer. If it has it, it only tells of it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn add(&mut self, parts: &Parts) -> Result<(), PagerError> {
        let (layer, bytes) = (parts.id.clone(), parts.bytes);
        if !self.given.insert(layer.clone()) {
            return self.talk.send(&ToPager::Layer { layer }, &[]).await;
        }
        let demand = parts.demand.memfd();
        let add = ToPager::AddLayer { layer, bytes, has_demand: demand.is_some(), fill: true, source: None };
        let source = parts.source.open()?;
        let mut files = vec![parts.memfd.as_fd(), parts.digests.as_fd(), source.as_fd()];
        files.extend(demand.as_ref().map(|demand| demand.as_fd()));
        self.talk.send(&add, &files).await
    }

    /// Has it serve a VM that has run so long. It gets one end of the VM's socket, which an earlier
    /// pager may have had, too.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn attach(
        &mut self,
        vm: &Id,
        layers: Vec<Id>,
        age: Duration,
        (socket, is_again): (&OwnedFd, bool),
    ) -> Result<(), PagerError> {
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.attached.insert(vm.clone());
        let attach = ToPager::AttachVm { vm: vm.clone(), layers, age_ms, is_again };
        self.talk.send(&attach, &[socket.as_fd()]).await
    }
}

/// What the pager says next, or that it is gone. Without one, waits for ever. May be dropped and
/// called again.
///
/// # Errors
/// It is gone, or the connection broke.
pub async fn hear(pager: &mut Option<Running>) -> Result<(FromPager, Option<OwnedFd>), PagerError> {
    let Some(pager) = pager else { return std::future::pending().await };
    tokio::select! {
        heard = pager.talk.next() => heard,
        gone = pager.process.gone() => Err(gone.err().map_or(PagerError::Closed, PagerError::Io)),
    }
}
