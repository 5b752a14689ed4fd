//! Notices when the host's clock is set or the host resumes from sleep. A guest was told the time
//! once, and its clock runs on from there.

use rustix::io::{Errno, Result};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// When the timer would expire, seconds after 1970: never, in practice. The timer only reports that
/// the clock was set.
const NEVER_S: i64 = 9_000_000_000;

/// The host's clock.
#[derive(Debug)]
pub struct HostClock(OwnedFd);

impl HostClock {
    /// Starts to watch the host's clock.
    ///
    /// # Errors
    /// The kernel refuses the timer.
    pub fn watch() -> Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let never = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: NEVER_S, tv_nsec: 0 },
        };
        timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
        Ok(Self(timer))
    }

    /// Whether the clock was set since the last call.
    pub fn was_set(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]) == Err(Errno::CANCELED)
    }
}

impl AsFd for HostClock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
