//! The real `scheduler`, over its Unix socket, with hosts that are made up.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test")]

mod bad_input;
mod crash;
mod disk;
mod fake;
mod lists;
mod process;
mod server;
mod storm;
mod tls;
mod together;
