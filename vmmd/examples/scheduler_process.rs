//! A scheduler in a process of its own, for this crate's tests: the `scheduler` program, out of
//! this crate's build.
#![allow(clippy::unwrap_used, reason = "a test's helper: a failure is a failed test")]

use clap::Parser;
use scheduler::{options::Options, serve};

#[tokio::main]
async fn main() {
    patina_daemon::log::start(false);
    serve::run(Options::parse()).await.unwrap();
}
