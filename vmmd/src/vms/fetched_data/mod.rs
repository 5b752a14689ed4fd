//! Kernels and root file systems that come from other hosts, and those that go there.
//!
//! - [`shelf`]: the folder of those that came. [`coming`]: one that is being written there.
//!   [`arrive`]: how it comes there. [`book`]: which are there. [`under_way`]: which are being
//!   fetched.
//! - [`offered`]: those that other hosts may read here. [`known`]: those that the scheduler knows
//!   of.
//! - [`error`]: why one is not fetched.

pub mod arrive;
pub mod book;
pub mod coming;
pub mod error;
pub mod known;
pub mod offered;
pub mod shelf;
pub mod under_way;
