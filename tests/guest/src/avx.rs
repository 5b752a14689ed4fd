//! Vector registers across context switches.
//!
//! Two processes are pinned to one CPU. Each fills all vector registers with a pattern of its own,
//! yields many times with the registers live, and compares them. A kernel that saves less than a
//! program may use mixes the two up, or loses the upper halves.

use crate::sys::{self, Registers, SLOT_BYTES, SLOTS};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::{
    env,
    error::Error,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// How often a process yields with the registers live, each round.
const YIELDS: u64 = 4;
/// How many times more rounds there are, at most, where the two processes do not meet at once.
const MORE_ROUNDS: u32 = 100;

/// Runs two processes with different patterns on CPU 0, this one and a copy of it.
pub fn pair(rounds: u32, sabotage: bool) -> Result<(), Box<dyn Error>> {
    let mut other = Command::new(env::current_exe()?)
        .args(["avx-other", &rounds.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut go, report) =
        other.stdin.take().zip(other.stdout.take()).ok_or("no pipes to the other process")?;
    let mut report = BufReader::new(report);
    // Neither begins before the other is there: alone, nobody would disturb the registers.
    let mut line = String::new();
    report.read_line(&mut line)?;
    go.write_all(b"go\n")?;
    let mine = keep(1, rounds, sabotage);
    report.read_line(&mut line)?;
    let theirs = other.wait()?;
    print!("{}", line.trim_start_matches("ready\n"));
    println!("{}", mine?);
    if theirs.success() { Ok(()) } else { Err(format!("the other process: {theirs}").into()) }
}

/// The copy: says that it is ready, waits for the word, and reports.
pub fn other(rounds: u32) -> Result<(), Box<dyn Error>> {
    println!("ready");
    io::stdin().read_line(&mut String::new())?;
    println!("{}", keep(2, rounds, false)?);
    Ok(())
}

/// Says in the fifo `started` that it runs, and keeps patterns in registers until somebody writes
/// to the fifo `stop`.
pub fn until(started: &str, stop: &str) -> Result<(), Box<dyn Error>> {
    let registers = Registers::widest();
    fs::write(started, "yes\n")?;
    let stopped = Arc::new(AtomicBool::new(false));
    let (stop, seen) = (stop.to_owned(), Arc::clone(&stopped));
    let reader = thread::spawn(move || {
        let read = fs::read(stop);
        seen.store(true, Ordering::Relaxed);
        read
    });
    let mut round = 0;
    while !stopped.load(Ordering::Relaxed) {
        let pattern = pattern(round);
        let mut kept = [0; SLOTS * SLOT_BYTES];
        sys::hold(registers, &pattern, &mut kept, YIELDS, false);
        if let Some(register) = first_difference(registers, &pattern, &kept) {
            return Err(format!("{}{register} changed in round {round}", registers.name()).into());
        }
        round = round.wrapping_add(1);
    }
    reader.join().map_err(|_| "the thread that waits has panicked")??;
    println!("{round} rounds, registers kept");
    Ok(())
}

/// Keeps patterns in registers for `rounds`, and says how it went.
fn keep(seed: u32, rounds: u32, sabotage: bool) -> Result<String, Box<dyn Error>> {
    let mut cpu = CpuSet::new();
    cpu.set(0);
    sched_setaffinity(None, &cpu)?;
    let registers = Registers::widest();
    let before = switches()?;
    let mut round = 0;
    // The other process may come to this CPU late. Whoever is first goes on for both to be switched
    // often enough.
    while round < rounds
        || round < rounds * MORE_ROUNDS
            && (!round.is_multiple_of(rounds) || switches()? - before < 2 * u64::from(rounds))
    {
        let pattern = pattern(seed.wrapping_mul(0x9e37).wrapping_add(round));
        let mut kept = [0; SLOTS * SLOT_BYTES];
        sys::hold(registers, &pattern, &mut kept, YIELDS, sabotage && round + 1 == rounds);
        if let Some(register) = first_difference(registers, &pattern, &kept) {
            return Err(
                format!("{}{register} changed in round {round} of process {seed}", registers.name()).into()
            );
        }
        round += 1;
    }
    let switches = switches()? - before;
    if switches < u64::from(rounds) {
        return Err(format!("only {switches} context switches in {rounds} rounds: nothing was shown").into());
    }
    let (count, name) = (registers.count(), registers.name());
    Ok(format!("process {seed}: {count} {name} registers kept over {switches} context switches"))
}

/// Bytes that differ between registers, processes and rounds.
fn pattern(seed: u32) -> [u8; SLOTS * SLOT_BYTES] {
    let mut state = seed | 1;
    std::array::from_fn(|_| {
        // xorshift32: no two registers or rounds look alike.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    })
}

fn first_difference(registers: Registers, expected: &[u8], kept: &[u8]) -> Option<usize> {
    (0..registers.count()).find(|slot| {
        let bytes = slot * SLOT_BYTES..slot * SLOT_BYTES + registers.bytes();
        expected[bytes.clone()] != kept[bytes]
    })
}

/// How often the kernel switched away from this process.
fn switches() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
    counts.map(|(_, count)| Ok(count.trim().parse::<u64>()?)).sum()
}
