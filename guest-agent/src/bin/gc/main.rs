//! `gc`: the guest's command. `vmid`, `my-ip` and `ismaster` are answered in [`entry`], before libc
//! starts; everything else is `guest_agent::cli`.
// (The test harness of --all-targets brings its own.)
#![cfg_attr(not(test), no_main)]
// The code in `entry` runs before the C library has chosen its memcpy, so the compiler may not
// turn a loop there into a call of it.
#![no_builtins]

mod entry;

/// No Rust `main`: its start-up is ten system calls for what is not used here.
#[allow(unsafe_code, reason = "the C library's start-up code calls this name")]
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code, reason = "the harness has its own"))]
extern "C" fn main() -> i32 {
    guest_agent::cli::run(std::env::args().skip(1))
}
