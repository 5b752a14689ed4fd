//! Elapsed time, as programs read it and as the kernel has it.

use crate::sys;
use std::error::Error;

/// Reads CLOCK_MONOTONIC as programs do, without a system call, between two system calls that read
/// it; fails if the three do not grow. Prints the milliseconds.
///
/// Both ways compute the time from the TSC. A host that moves the TSC for one of them only shows
/// here.
pub fn read() -> Result<(), Box<dyn Error>> {
    let (before, program, after) =
        (sys::monotonic_by_call()?, sys::monotonic_by_vdso()?, sys::monotonic_by_call()?);
    if before <= program && program <= after {
        println!("{}", program.as_millis());
        return Ok(());
    }
    Err(format!("CLOCK_MONOTONIC: the kernel says {before:?}, a program {program:?}, the kernel {after:?}")
        .into())
}
