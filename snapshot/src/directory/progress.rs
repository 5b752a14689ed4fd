//! Tells a caller how far something long is, and whether to go on.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicU64, Ordering},
};

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that have been done.
    pub done_bytes: u64,
    /// Bytes that are to be done.
    pub total_bytes: u64,
}

/// Is called every few MiB, by several threads, and before what was made gets its name. `Break`
/// cancels what is done.
pub type Watch<'a> = &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync);

/// A [`Watch`] for callers that neither show progress nor cancel.
pub fn unwatched(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The caller has cancelled it.
#[derive(Debug)]
pub(super) struct Cancelled;

/// Counts what is done.
pub(super) struct Meter<'a> {
    done_bytes: AtomicU64,
    total_bytes: u64,
    watch: Watch<'a>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(total_bytes: u64, watch: Watch<'a>) -> Self {
        Self { done_bytes: AtomicU64::new(0), total_bytes, watch }
    }

    pub(super) fn add(&self, bytes: u64) -> Result<(), Cancelled> {
        let done_bytes = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match (self.watch)(Progress { done_bytes, total_bytes: self.total_bytes }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Cancelled),
        }
    }

    pub(super) fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }
}
