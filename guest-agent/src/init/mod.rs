//! `gc-init`, process 1 of a guest.
//!
//! ```text
//!  mounts, cgroup ─▶ gc-agent ─▶ /etc/patina/start ─▶ wait
//!      a child ended ─▶ reap, restart gc-agent
//!      a signal ─▶ power off or reboot
//!      Enter on the console ─▶ a shell there
//! ```
//!
//! If a step fails, the error goes to the console and the next step is tried. A guest that runs in
//! part can be examined; one that has panicked cannot.

mod children;
mod mounts;
mod quiet;

use crate::console::say;
use crate::sys::signals::SignalFd;
use children::Children;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};
use std::os::fd::AsFd;

/// busybox's convention for `halt`, `poweroff` and `reboot`, and what the kernel sends for
/// ctrl-alt-del. A halted VM would only hold its memory, so `halt` powers off.
const ENDINGS: [(i32, RebootCommand, &str); 4] = [
    (libc::SIGUSR1, RebootCommand::PowerOff, "halt: power off"),
    (libc::SIGUSR2, RebootCommand::PowerOff, "power off"),
    (libc::SIGTERM, RebootCommand::Restart, "reboot"),
    (libc::SIGINT, RebootCommand::Restart, "ctrl-alt-del: reboot"),
];

/// Why process 1 cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It was started by hand: a signal for it would end this machine.
    #[error("gc-init is process 1 of a guest, not {0}")]
    NotFirst(i32),
    /// Signals cannot be waited for.
    #[error("wait for signals")]
    Signals(#[source] std::io::Error),
    /// poll failed.
    #[error("wait for events")]
    Wait(#[source] Errno),
}

/// Brings the guest up and keeps it until it is ended.
///
/// # Errors
/// What leaves nothing to wait for; a process 1 that ends panics the kernel.
pub fn run() -> Result<std::convert::Infallible, InitError> {
    let own = rustix::process::getpid();
    if own != rustix::process::Pid::INIT {
        return Err(InitError::NotFirst(own.as_raw_nonzero().get()));
    }
    mounts::set_up();
    if let Err(error) = crate::sys::spawn::protect() {
        say(&format!("keep gc-agent from being killed when memory is short: {error}"));
    }
    quiet::set_up();
    open_stdio();
    let mut signals = vec![libc::SIGCHLD];
    signals.extend(ENDINGS.iter().map(|(signal, ..)| *signal));
    // Before the first child, so that no ending is missed.
    let signals = SignalFd::new(&signals).map_err(InitError::Signals)?;
    let mut children = Children::new();
    children.start_agent();
    children.start_script();
    let mut console_is_good = rustix::termios::isatty(rustix::stdio::stdin());
    loop {
        let listens = console_is_good && !children.shell_runs();
        let (signalled, typed) = wait(&signals, listens)?;
        if signalled {
            while let Some(signal) = signals.next().map_err(InitError::Signals)? {
                obey(signal);
            }
            children.reap();
        }
        if typed {
            console_is_good = entered_line();
            if console_is_good {
                children.start_shell();
            }
        }
    }
}

/// The kernel gives process 1 the console when it finds one; children must have three descriptors
/// in any case, as a pipe on one of these numbers would be lost on them.
fn open_stdio() {
    for _ in 0..3 {
        let opened = rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
            .or_else(|_| rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()));
        // Descriptors are given from 0 on, so one above 2 says that the three are there.
        match opened {
            Ok(fd) if std::os::fd::AsRawFd::as_raw_fd(&fd) <= 2 => std::mem::forget(fd),
            Ok(_) | Err(_) => return,
        }
    }
}

/// Waits for a signal or a line on the console.
fn wait(signals: &SignalFd, listens: bool) -> Result<(bool, bool), InitError> {
    let stdin = rustix::stdio::stdin();
    let mut fds = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
    if listens {
        fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
    }
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok((false, false)),
        Err(e) => return Err(InitError::Wait(e)),
    }
    let ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| !fd.revents().is_empty());
    Ok((ready(fds.first()), ready(fds.get(1))))
}

/// Takes what was typed. Without a reader the line would be given to the shell; a console that is
/// at its end would be ready for ever.
fn entered_line() -> bool {
    let mut line = [0; 256];
    match rustix::io::read(rustix::stdio::stdin(), &mut line) {
        Ok(count) => count > 0,
        Err(error) => {
            say(&format!("read the console: {error}; no shell there any more"));
            false
        }
    }
}

fn obey(signal: i32) {
    let Some((_, command, words)) = ENDINGS.iter().find(|(known, ..)| *known == signal) else { return };
    say(words);
    // All writes are in RAM: there is nothing to sync.
    if let Err(error) = reboot(*command) {
        say(&format!("{words}: {error}"));
    }
}
