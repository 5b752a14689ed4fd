//! Other hosts that have a layer, for when the one that lends it fails.
//!
//! The keeper says what it needs, and whoever calls other hosts finds who has it ([`Holders`]).

use super::lender::Lender;
use futures::future::BoxFuture;
use patina_control::pager::Id;
use std::{fmt, os::fd::OwnedFd};

/// Why layers are to be read elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// There is no connection to the lender.
    Broken,
    /// There is none again: it may not know the lease any longer.
    BrokenAgain,
    /// It does not answer, or has other bytes than it should.
    Failing,
}

/// Layers that another host is to lend.
#[derive(Debug, Clone)]
pub struct Sought {
    /// The layers.
    pub layers: Vec<Id>,
    /// Who lends them now.
    pub lender: Lender,
    /// What is wrong with it.
    pub fault: Fault,
}

/// A host that has some of the layers, all of each.
#[derive(Debug)]
pub struct Found {
    /// How it is reached.
    pub lender: Lender,
    /// The layers, by their numbers there.
    pub layers: Vec<Id>,
    /// Connections to its pager, as [`Lender::dial`] makes them.
    pub connections: [OwnedFd; 2],
}

/// Who finds hosts that have layers.
pub trait Holders: fmt::Debug + Send + Sync {
    /// Asks all hosts that may have the layers, side by side, and tells of each as soon as it is
    /// found. Returns when all layers are found, or no other host is left.
    fn find(&self, sought: Sought, found: Box<dyn Fn(Found) + Send + Sync>) -> BoxFuture<'static, ()>;
}
