//! Images of VMs that have just booted: the next VM of the same kind starts from one instead of
//! booting.
//!
//! - [`keep`]: keeps a VM that booted as an image. [`shelf`]: lists and removes images.
//! - How a VM starts from one: [`super::snapshots::from_image`].

pub mod keep;
pub mod shelf;
