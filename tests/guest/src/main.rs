//! `guest-check`, the static program that end-to-end tests and benchmarks run in guests:
//!
//! - [`answer`]: `answer PORT FILE`: answers by TCP and UDP with what is in a file. `ask SECONDS
//!   PORT ADDRESS…`: prints what these answer.
//! - [`avx`]: `avx ROUNDS [sabotage]`: two processes on one CPU keep values in vector registers
//!   across context switches and look whether they stay. `avx-until STARTED STOP`: one, between
//!   words in two fifos.
//! - [`clocks`]: `clocks`: elapsed time, read in two ways that must agree.
//! - [`cpus`]: `cpus MS`: two busy threads, and how much CPU time they got while one clock ran.
//! - [`flood`]: `flood PORT COUNT`: vsock connections to the host, with rubbish.
//! - [`lock`]: `lock FILE PROGRAM ARG…`: runs a program while it holds a lock.
//! - [`measure`]: `spawn COUNT PROGRAM ARG…`, `read COUNT FILE`: microseconds each took, one a
//!   line; `syscalls PROGRAM ARG…`: how many system calls it makes.
//! - [`pattern`]: `pattern MIB FILLED LOOK`: fills memory once, and looks at all of it after a word
//!   in a fifo.
//! - [`scribble`]: `scribble MIB`: writes memory at full speed until SIGTERM, and looks at each
//!   page before.
//!
//! Exit code 0 when what was looked for holds, 1 when not, 2 for wrong usage.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for tests: a print that fails is a failed test"
)]

mod answer;
mod avx;
mod clocks;
mod cpus;
mod flood;
mod lock;
mod measure;
mod pattern;
mod scribble;
mod sys;

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u32>().ok();
    let result = match words.as_slice() {
        ["answer", port, file] => port.parse().ok().map(|port| answer::serve(port, file)),
        ["ask", seconds, port, addresses @ ..] => number(seconds)
            .zip(port.parse().ok())
            .map(|(seconds, port)| answer::ask(seconds, port, addresses)),
        ["avx", rounds] => number(rounds).map(|rounds| avx::pair(rounds, false)),
        ["avx", rounds, "sabotage"] => number(rounds).map(|rounds| avx::pair(rounds, true)),
        ["avx-until", started, stop] => Some(avx::until(started, stop)),
        ["avx-other", rounds] => number(rounds).map(avx::other),
        ["clocks"] => Some(clocks::read()),
        ["cpus", ms] => number(ms).map(cpus::busy),
        ["flood", port, count] => {
            number(port).zip(number(count)).map(|(port, count)| flood::flood(port, count))
        }
        ["spawn", count, program @ ..] if !program.is_empty() => {
            number(count).map(|count| measure::spawn(count, program))
        }
        ["read", count, file] => number(count).map(|count| measure::read(count, file)),
        ["lock", file, program @ ..] if !program.is_empty() => Some(lock::run(file, program)),
        ["pattern", mib, filled, look] => number(mib).map(|mib| pattern::pattern(mib, filled, look)),
        ["scribble", mib] => number(mib).map(scribble::scribble),
        ["syscalls", program @ ..] if !program.is_empty() => Some(measure::syscalls(program)),
        _ => None,
    };
    match result {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!(
                "usage: guest-check answer PORT FILE | ask SECONDS PORT ADDRESS… | avx ROUNDS [sabotage] | avx-until STARTED STOP | cpus MS | flood PORT COUNT | \
                 spawn COUNT PROGRAM ARG… | read COUNT FILE | syscalls PROGRAM ARG… | pattern MIB FILLED LOOK | scribble MIB | lock FILE PROGRAM ARG…"
            );
            ExitCode::from(2)
        }
    }
}
