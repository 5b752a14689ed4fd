//! What libraries do inside the jail, each in a process of its own: this program, started again.
//!
//! No KVM and no rights are needed. As root the process becomes another user first, as a vmm does.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test")]

#[macro_use]
mod named;
mod outer;

use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Output};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime};
use vmm::process::EndRecord;

/// Names what the started process is to do.
const INMATE: &str = "PATINA_TEST_INMATE";

type Test = fn() -> Result<(), Failed>;

fn main() -> ExitCode {
    if let Ok(task) = std::env::var(INMATE) {
        return inmate(&task);
    }
    let tests: [(&str, Test); 4] = named![
        clocks_threads_and_memory_work_in_the_jail_of_an_old_kernel,
        a_panic_in_the_jail_leaves_its_words_and_no_sigsys,
        a_backtrace_in_the_jail_is_no_sigsys,
        a_system_call_that_the_jail_does_not_allow_is_sigsys,
    ];
    let trials = tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs this program as an inmate with a file for its last words; what it printed, and the file.
fn run(task: &str, backtrace: &str) -> Result<(Output, String), Failed> {
    let mut record = tempfile::tempfile()?;
    rustix::io::fcntl_setfd(&record, rustix::io::FdFlags::empty())?;
    let output = Command::new(std::env::current_exe()?)
        .env(INMATE, format!("{task} {}", record.as_fd().as_raw_fd()))
        .env("RUST_BACKTRACE", backtrace)
        .output()?;
    let mut words = String::new();
    record.rewind()?;
    record.read_to_string(&mut words)?;
    Ok((output, words))
}

fn clocks_threads_and_memory_work_in_the_jail_of_an_old_kernel() -> Result<(), Failed> {
    let (output, _) = run("everyday", "0")?;
    if !output.status.success() {
        return Err(format!("{output:?}").into());
    }
    Ok(())
}

fn a_panic_in_the_jail_leaves_its_words_and_no_sigsys() -> Result<(), Failed> {
    panicked("0")
}

fn a_backtrace_in_the_jail_is_no_sigsys() -> Result<(), Failed> {
    panicked("full")
}

fn panicked(backtrace: &str) -> Result<(), Failed> {
    let (output, record) = run("panic", backtrace)?;
    let printed = String::from_utf8_lossy(&output.stderr);
    let is_abort = output.status.signal() == Some(libc::SIGABRT);
    let end: patina_control::end::End = serde_json::from_str(&record).map_err(|_| format!("{output:?}"))?;
    let expected = "its thread vcpu7 panicked at vmm/tests/jail.rs:";
    if !is_abort || !end.reason.contains(expected) || !end.reason.ends_with(": on purpose, 7") {
        return Err(format!("{output:?}, {end:?}").into());
    }
    let has_frames = printed.contains("stack backtrace:");
    if !printed.contains("on purpose, 7") || has_frames != (backtrace != "0") {
        return Err(printed.into_owned().into());
    }
    Ok(())
}

fn a_system_call_that_the_jail_does_not_allow_is_sigsys() -> Result<(), Failed> {
    let (output, _) = run("forbidden", "0")?;
    if output.status.signal() != Some(libc::SIGSYS) {
        return Err(format!("{output:?}").into());
    }
    Ok(())
}

fn inmate(task: &str) -> ExitCode {
    let (task, record) = task.split_once(' ').expect("a task and a descriptor");
    // The path of a descriptor opens the file once more.
    let record = File::options().write(true).open(format!("/proc/self/fd/{record}")).expect("a record");
    vmm::process::record_panics(EndRecord::new(record));
    outer::filter().and_then(|filter| outer::apply(&filter)).expect("a filter");
    vmm::jail::prime().expect("a thread");
    vmm::jail::enter().expect("a jail");
    match task {
        "everyday" => do_everything(),
        "panic" => {
            let thread = std::thread::Builder::new().name("vcpu7".into());
            let value = 7;
            let fails = thread.spawn(move || panic!("on purpose, {value}")).expect("a thread");
            fails.join().expect("it has ended the process");
        }
        "forbidden" => drop(rustix::process::getppid()),
        other => panic!("{other:?} is no task"),
    }
    ExitCode::SUCCESS
}

/// What a vmm's own code and its libraries do while a VM runs, and more of it than they do at once.
fn do_everything() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (started, _) = (Instant::now(), SystemTime::now());
    assert!(now.tv_sec > 0);
    std::thread::sleep(Duration::from_millis(1));
    // More threads than the C library has heaps for without counting the CPUs; each gets, grows,
    // shrinks and frees.
    let all_there = Arc::new(Barrier::new(16));
    let threads: Vec<_> = (0..16_usize)
        .map(|index| {
            let all_there = Arc::clone(&all_there);
            let thread = std::thread::Builder::new().name(format!("vcpu{index}"));
            let work = move || {
                all_there.wait();
                let mut pieces: Vec<Vec<u8>> = (0..64).map(|piece| vec![1; 1000 << (piece % 8)]).collect();
                pieces.push(vec![2; 8 << 20]);
                pieces.iter_mut().for_each(|piece| piece.resize(piece.len() * 2, 3));
                let map: HashMap<usize, usize> = pieces.iter().map(Vec::len).enumerate().collect();
                all_there.wait();
                drop(pieces);
                map.len()
            };
            thread.spawn(work).expect("a thread")
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().expect("a thread's end") == 65));
    // What only gives advice is refused, and does without.
    assert!(std::thread::available_parallelism().is_ok());
    assert!(File::open("/proc/self/maps").is_err() && std::env::current_exe().is_err());
    assert!(std::env::current_dir().is_err());
    let mut seed = [0; 64];
    let got = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    assert_eq!(got, Ok(seed.len()));
    assert!(started.elapsed() > Duration::ZERO);
    eprintln!("a line on standard error");
}
