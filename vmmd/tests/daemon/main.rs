//! The daemon from outside: the real `vmmd`, over gRPC, in a network namespace of its own, with a
//! stand-in for the `vmm` process (`examples/stand_in_vmm`). Guests that really boot are in the
//! workspace's `tests`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test")]

mod adopt;
mod bench;
mod clones;
mod copies;
mod disk;
mod ended;
mod fetches;
mod image_faults;
mod images;
mod life;
mod pool;
mod ports;
mod refusal;
mod restart;
mod restores;
mod scheduler;
mod secured;
mod snapshots;
mod spares;
mod stalls;
mod steps;
mod streams;
mod tickets;
mod versions;
