//! The emulated host: QEMU, without KVM.

use super::Outer;
use crate::{
    interrupt,
    keeper::{Keeper, Orphan},
    process,
};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";
/// The host's RAM.
const MEMORY: &str = "4G";
/// The longest line that is taken whole: a failed test tells the logs of its guests in one.
const LINE_MAX_BYTES: u64 = 1 << 20;
/// Lines that wait to be looked at.
const LINES_WAITING: usize = 1024;
/// How soon a signal to this process ends the host.
const LOOK_FOR_SIGNALS: Duration = Duration::from_millis(500);
/// How long the emulator may take to end when the host is switched off.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// Why a host could not be run.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    /// The emulator cannot be started.
    #[error("start {QEMU} (Debian package qemu-system-x86)")]
    Start(#[source] io::Error),
    /// What it prints cannot be kept, or it cannot be waited for.
    #[error("{what}")]
    System {
        /// The operation.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A log cannot be written.
    #[error("write {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A host that is to be run.
#[derive(Debug)]
pub struct Machine<'a> {
    /// What it is.
    pub outer: &'a Outer<'a>,
    /// What it boots from.
    pub initramfs: &'a Path,
    /// Where its kernel's log goes.
    pub console: &'a Path,
    /// Where the lines of the tests go.
    pub results: &'a Path,
}

/// An emulator that is killed when it is forgotten.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or there is nothing more that could be done.
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

impl Machine<'_> {
    /// Runs it to its end, or kills it when its time is over, and hands each line of its tests to
    /// `each` with the time since the start. Returns how it ended.
    ///
    /// # Errors
    /// It could not be run, or its lines could not be kept.
    pub fn run(&self, each: &mut dyn FnMut(&str, Duration)) -> Result<String, QemuError> {
        let log = |source| QemuError::Log { path: self.results.to_owned(), source };
        let mut results = File::create(self.results).map_err(log)?;
        let began = Instant::now();
        let mut running = Running(self.command().spawn().map_err(QemuError::Start)?);
        // It goes when this process is killed, too.
        let keeper = Keeper::of(&Orphan::Process(running.0.id()));
        let _keeper = keeper.map_err(|source| QemuError::System { what: "start a keeper", source })?;
        let lines = lines_of(running.0.stdout.take())?;
        loop {
            let left = self.outer.limit.saturating_sub(began.elapsed());
            match lines.recv_timeout(left.min(LOOK_FOR_SIGNALS)) {
                Ok(line) => {
                    writeln!(results, "{line}").map_err(log)?;
                    each(&line, began.elapsed());
                }
                Err(RecvTimeoutError::Timeout) if interrupt::requested() => {
                    return Ok("stopped by a signal".to_owned());
                }
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(format!("stopped after {} s", self.outer.limit.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let system = |source| QemuError::System { what: "wait for the emulator", source };
        Ok(match process::wait(&mut running.0, END_DEADLINE).map_err(system)? {
            Some(status) => ended(status),
            None => "QEMU closed its output and did not end".to_owned(),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(QEMU);
        // Addresses of five levels and hyperthreads are of no use here, and cost the translator
        // time.
        command.args(["-accel", "tcg,thread=single", "-M", "q35", "-cpu", "max,la57=off"]);
        command.args(["-smp", &self.outer.cpus.to_string(), "-m", MEMORY]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-nic", "none"]);
        command.arg("-kernel").arg(self.outer.vmlinuz).arg("-initrd").arg(self.initramfs);
        // No processor can be trusted to be fast enough for the kernel's watchdogs and for its test
        // of the timer, which panics on a busy machine. `audit` has kills by filters logged.
        command.args(["-append", "console=ttyS0 no_timer_check loglevel=6 panic=-1 mitigations=off tsc=reliable nowatchdog audit=1 audit_backlog_limit=8192"]);
        command.args(["-serial", &format!("file:{}", self.console.display())]);
        command.args(["-chardev", "stdio,id=results,signal=off", "-serial", "chardev:results"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

fn ended(status: ExitStatus) -> String {
    format!("QEMU ended with {status}")
}

/// The lines of a pipe, read by a thread of their own so that waiting for one can have a limit.
fn lines_of(pipe: Option<ChildStdout>) -> Result<Receiver<String>, QemuError> {
    let (sender, lines) = sync_channel(LINES_WAITING);
    if let Some(pipe) = pipe {
        thread::Builder::new()
            .name("l1-lines".to_owned())
            .spawn(move || read_lines(pipe, &sender))
            .map_err(|source| QemuError::System { what: "start a thread", source })?;
    }
    Ok(lines)
}

/// Ends with the pipe, or when nobody wants the lines any more.
fn read_lines(pipe: impl Read, sender: &SyncSender<String>) {
    let mut reader = BufReader::new(pipe);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match reader.by_ref().take(LINE_MAX_BYTES).read_until(b'\n', &mut bytes) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if sender.send(line).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let (sender, lines) = sync_channel(LINES_WAITING);
        read_lines(bytes, &sender);
        drop(sender);
        lines.iter().collect()
    }

    #[test]
    fn lines_are_read_whole_and_without_their_ends() {
        assert_eq!(lines(b"SUITE a\r\n\xff\r\nRESULT ok"), ["SUITE a", "\u{fffd}", "RESULT ok"]);
        assert_eq!(lines(b""), Vec::<String>::new());
    }

    #[test]
    fn a_line_without_an_end_is_cut() {
        let longest = usize::try_from(LINE_MAX_BYTES).unwrap();
        let found = lines(&vec![b'x'; longest + 1]);
        assert_eq!(found.iter().map(String::len).collect::<Vec<_>>(), [longest, 1]);
    }
}
