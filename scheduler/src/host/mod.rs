//! A host's side of the scheduler's protocol.
//!
//! - [`HostLink`]: keeps a host registered, says which clones have ended, hears which ones are to
//!   end.
//! - [`admission`]: which clones a host makes and ends, so that the ledger and what runs stay the
//!   same.
//!
//! Both make their calls with a [`crate::client::HostClient`].

pub mod admission;
pub mod facts;
mod link;

pub use link::{Clones, HostLink, Present, Registration};
