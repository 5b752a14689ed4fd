//! The measurements. Each function returns samples of one operation, in nanoseconds.
//!
//! If the guest's kernel mode is emulated, an operation takes from a third of a millisecond to half
//! a second. So the counts are small. The first few samples of each are discarded: they include
//! cold caches and first faults.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::stats::Samples;
use crate::sys::{self, Start};

/// One measurement's name (with its unit) and samples.
#[derive(Debug)]
pub struct Measured {
    /// For instance `guest_syscall_us`.
    pub name: &'static str,
    /// The times.
    pub samples: Samples,
}

/// Operations that are done before the first one that counts.
const WARM_UP: usize = 3;

/// Measures everything, the cheapest first.
pub fn everything() -> io::Result<Vec<Measured>> {
    let program = std::env::current_exe()?;
    let one = |name, samples| Measured { name, samples };
    Ok(vec![
        one("guest_clock_us", repeat(200, sys::clock)?),
        one("guest_syscall_us", repeat(200, || sys::parent_pid().map(drop))?),
        one("guest_page_fault_us", page_faults(64)?),
        one("guest_open_close_us", repeat(50, || std::fs::File::open("/proc/self/exe").map(drop))?),
        one("guest_socket_us", socket_round(100)?),
        one("guest_ping_pong_us", ping_pong(50)?),
        one("guest_fork_us", repeat(12, || sys::start(&program, Start::Fork)?.wait())?),
        one("guest_fork_exec_us", repeat(10, || sys::start(&program, Start::ForkExec)?.wait())?),
        one("guest_spawn_us", repeat(10, || sys::start(&program, Start::Spawn)?.wait())?),
    ])
}

fn repeat(count: usize, mut operation: impl FnMut() -> io::Result<()>) -> io::Result<Samples> {
    let mut times_ns = Vec::with_capacity(count);
    for round in 0..count + WARM_UP {
        let started = Instant::now();
        operation()?;
        let time_ns = started.elapsed().as_nanos() as u64;
        if round >= WARM_UP {
            times_ns.push(time_ns);
        }
    }
    Ok(Samples::from_ns(times_ns))
}

/// First writes to fresh anonymous pages.
fn page_faults(count: usize) -> io::Result<Samples> {
    let mut pages = sys::Pages::map(count + WARM_UP, sys::PageSize::Small)?;
    let mut next = 0;
    repeat(count, || {
        pages.touch(next);
        next += 1;
        Ok(())
    })
}

/// One byte written to and read from a Unix socket within one process: the calls without a context
/// switch.
fn socket_round(count: usize) -> io::Result<Samples> {
    let (mut near, mut far) = UnixStream::pair()?;
    let mut byte = [0];
    repeat(count, || {
        near.write_all(&[1])?;
        far.read_exact(&mut byte)
    })
}

/// One byte there and back between two processes.
fn ping_pong(count: usize) -> io::Result<Samples> {
    let (mut near, far) = UnixStream::pair()?;
    let child = sys::start_echo(&near, &far)?;
    drop(far);
    let mut byte = [0];
    let samples = repeat(count, || {
        near.write_all(&[1])?;
        near.read_exact(&mut byte)
    });
    drop(near);
    child.wait()?;
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_rounds_do_not_count() {
        let mut rounds = 0;
        let samples = repeat(5, || {
            rounds += 1;
            Ok(())
        });
        assert_eq!(samples.unwrap().len(), 5);
        assert_eq!(rounds, 5 + WARM_UP);
    }

    #[test]
    fn a_failing_operation_is_told() {
        let failed = repeat(5, || Err(io::Error::other("no")));
        assert_eq!(failed.unwrap_err().to_string(), "no");
    }

    #[test]
    fn pages_sockets_and_processes_are_measured() {
        assert_eq!(page_faults(8).unwrap().len(), 8);
        assert_eq!(socket_round(8).unwrap().len(), 8);
        assert_eq!(ping_pong(8).unwrap().len(), 8);
        let program = std::path::Path::new("/bin/true");
        for start in [Start::Fork, Start::ForkExec, Start::Spawn] {
            sys::start(program, start).unwrap().wait().unwrap();
        }
        let error = sys::start(std::path::Path::new("/bin/false"), Start::Spawn).unwrap().wait().unwrap_err();
        assert!(error.to_string().contains("ended with"), "{error}");
    }
}
