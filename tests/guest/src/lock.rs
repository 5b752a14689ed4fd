//! Runs a program while it holds a file's lock. Whoever gets the lock next knows that the program
//! has ended on the same machine.

use rustix::fs::{FlockOperation, flock};
use std::{error::Error, fs::File, process::Command};

/// Runs `program` with the lock; an error when the program fails.
pub fn run(file: &str, program: &[&str]) -> Result<(), Box<dyn Error>> {
    let file = File::options().create(true).append(true).open(file)?;
    flock(&file, FlockOperation::LockExclusive)?;
    let status = Command::new(program[0]).args(&program[1..]).status()?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", program[0]).into()) }
}
