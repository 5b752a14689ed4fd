//! `vmctl` with several hosts, each a server on a socket of its own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod all_hosts;
mod ssh;
mod stand_in;
