//! Tests of the core as a whole: stories of each part, and what holds whatever happens.

mod barriers;
mod families;
mod fits;
mod hosts;
mod identities;
mod invariants;
mod joins;
mod kills;
mod model;
mod operating;
mod parts;
mod places;
mod queueing;
mod returning;
mod spending;
mod vmids;
mod world;
