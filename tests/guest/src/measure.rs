//! The cost of a program in a guest, measured by the program that starts it.

use crate::sys;
use std::{
    error::Error,
    fs::File,
    io::Read as _,
    process::{Command, Stdio},
    time::Instant,
};

/// Starts a program and waits for its end, `count` times; prints the microseconds of each.
pub fn spawn(count: u32, program: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut times_us = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        let status = Command::new(program[0]).args(&program[1..]).stdout(Stdio::null()).status()?;
        times_us.push(began.elapsed().as_micros());
        if !status.success() {
            return Err(format!("{program:?}: {status}").into());
        }
    }
    print(&times_us);
    Ok(())
}

/// Opens, reads and closes a file, `count` times; prints the microseconds of each.
pub fn read(count: u32, file: &str) -> Result<(), Box<dyn Error>> {
    let (mut times_us, mut bytes) = (Vec::new(), [0; 4096]);
    for _ in 0..count {
        let began = Instant::now();
        let length = File::open(file)?.read(&mut bytes)?;
        times_us.push(began.elapsed().as_micros());
        std::hint::black_box(&bytes[..length]);
    }
    print(&times_us);
    Ok(())
}

/// Prints how many system calls a program makes from its start to its end.
pub fn syscalls(program: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).stdout(Stdio::null());
    println!("{}", sys::count_syscalls(&mut command)?);
    Ok(())
}

fn print(times_us: &[u128]) {
    for time_us in times_us {
        println!("{time_us}");
    }
}
