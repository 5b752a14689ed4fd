//! `gc-init`: process 1 of a guest. See `guest_agent::init`.
// (The test harness of --all-targets brings its own.)
#![cfg_attr(not(test), no_main)]

/// No Rust `main`: its start-up is ten system calls for what is not used here.
#[allow(unsafe_code, reason = "the C library's start-up code calls this name")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code, reason = "the harness has its own"))]
extern "C" fn main() -> i32 {
    let Err(error) = guest_agent::init::run();
    guest_agent::console::say(&format!("gc-init: {}", patina_daemon::chain(&error)));
    1
}
