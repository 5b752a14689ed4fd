//! One layer of a generation's RAM.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A memfd with pages of RAM.
///
/// A layer is *complete* or *filling*. A complete layer is sealed, and its holes are pages of
/// zeros. A filling layer gets its pages from the pager while VMs run on it: a hole may be a page
/// that has not arrived yet. So nothing but the pager's own mapping protocol
/// ([`crate::sys::userfault`]) may read a filling layer. A filling layer becomes complete once, and
/// stays so.
#[derive(Debug)]
pub struct Layer {
    memfd: Arc<File>,
    is_filling: AtomicBool,
}

impl Layer {
    /// A complete layer.
    #[must_use]
    pub fn complete(memfd: File) -> Arc<Self> {
        Self::new(memfd, false)
    }

    /// A layer that is `is_filling`, or complete.
    #[must_use]
    pub fn new(memfd: File, is_filling: bool) -> Arc<Self> {
        Arc::new(Self { memfd: Arc::new(memfd), is_filling: AtomicBool::new(is_filling) })
    }

    /// Its memfd.
    #[must_use]
    pub fn memfd(&self) -> &Arc<File> {
        &self.memfd
    }

    /// Whether pages may be missing.
    #[must_use]
    pub fn is_filling(&self) -> bool {
        self.is_filling.load(Ordering::Acquire)
    }

    /// All pages have arrived.
    pub fn note_complete(&self) {
        self.is_filling.store(false, Ordering::Release);
    }
}
