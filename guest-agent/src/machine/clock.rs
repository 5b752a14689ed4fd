//! The guest's clock: notices when another program sets it, without polling, and sets it.

use rustix::io::{Errno, Result};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A clock that is off by less is left alone: setting it wakes every timer of the guest.
pub const CLOCK_SLACK_NS: u64 = 1_000_000;
/// When the timer would go off, seconds after 1970: it is not there for that.
const NEVER_S: i64 = 9_000_000_000;

/// Reports when the clock is set.
#[derive(Debug)]
pub struct ClockWatch(OwnedFd);

impl ClockWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let never = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: NEVER_S, tv_nsec: 0 },
        };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
        Ok(Self(timer))
    }

    /// Readable when the clock was set.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether it was set since this was asked last.
    pub fn was_set(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]) == Err(Errno::CANCELED)
    }
}

/// Sets the clock, if it is off. Whether it was.
///
/// # Errors
/// The kernel's.
pub fn set(clock_ns: u64) -> io::Result<bool> {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    let now_ns = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    if now_ns.abs_diff(i128::from(clock_ns)) <= u128::from(CLOCK_SLACK_NS) {
        return Ok(false);
    }
    let seconds = i64::try_from(clock_ns / 1_000_000_000).map_err(io::Error::other)?;
    let nanoseconds = i64::try_from(clock_ns % 1_000_000_000).map_err(io::Error::other)?;
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    rustix::time::clock_settime(ClockId::Realtime, time)?;
    Ok(true)
}
