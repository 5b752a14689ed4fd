//! One connection from the host and its program.
//!
//! ```text
//!  Waiting ─START─▶ Running ─its program ended, the output is sent─▶ Closing (sends EXIT) ─▶ gone
//!     │                └─ the host closed: kill ─▶ Reaping ─▶ gone      ▲
//!     └─ the message is not START, or the program cannot be started ────┘
//! ```
//!
//! Back-pressure: the program's output is read only when the last of it was taken by the socket,
//! and frames are read only when the program has taken its input. One frame each way is in memory.

use super::detached::Detached;
use super::frames::{Filled, Frame, Frames};
use super::part::Part;
use super::program::Program;
use crate::agent::outbox::Outbox;
use crate::sys::input::append;
use patina_abi::exec::{Exit, FrameType, HEADER_BYTES, PAYLOAD_MAX_BYTES, Start, header};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::Signal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Output that is still sent after the program itself has ended while others hold its pipe, bytes a
/// stream: what a pipe holds at most. Without an end a background `yes` would never let the session
/// end.
pub const DRAIN_MAX_BYTES: usize = 1024 * 1024;

#[derive(Debug)]
struct Running {
    program: Program,
    input: Outbox,
    input_ended: bool,
    /// Set when it was reaped, with what may still be drained of each output.
    exit: Option<Exit>,
    drained_bytes: [usize; 2],
}

#[derive(Debug)]
enum Stage {
    Waiting,
    Running(Running),
    /// The host went; the killed program is still to be reaped.
    Reaping(Program),
    Closing,
    Gone,
}

/// A session.
#[derive(Debug)]
pub struct Session {
    socket: OwnedFd,
    frames: Frames,
    out: Outbox,
    stage: Stage,
    /// What others have open still of the outputs of a program that has ended.
    left: [Option<OwnedFd>; 2],
}

/// An EXIT as bytes.
#[must_use]
pub fn exit_frame(exit: &Exit) -> Vec<u8> {
    // Three optional fields, two of them numbers: JSON has a word for every value.
    let json = serde_json::to_vec(exit).unwrap_or_default();
    frame(FrameType::Exit, &json)
}

fn frame(kind: FrameType, payload: &[u8]) -> Vec<u8> {
    let payload = payload.get(..PAYLOAD_MAX_BYTES).unwrap_or(payload);
    let length = u32::try_from(payload.len()).unwrap_or_default();
    [&header(kind, length)[..], payload].concat()
}

impl Session {
    /// Takes a non-blocking connection.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        let (frames, out) = (Frames::default(), Outbox::default());
        Self { socket, frames, out, stage: Stage::Waiting, left: [None, None] }
    }

    /// Whether the session can be forgotten.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Gone)
    }

    /// What to wait for. A descriptor that nothing is to be done with is left out, as a hang-up on
    /// it would be reported again and again.
    pub fn watch<'a>(&'a self, mut add: impl FnMut(Part, BorrowedFd<'a>, PollFlags)) {
        let mut flags = PollFlags::RDHUP;
        flags.set(PollFlags::OUT, !self.out.is_empty());
        match &self.stage {
            Stage::Gone => {}
            Stage::Reaping(program) => add(Part::Process, program.pidfd(), PollFlags::IN),
            Stage::Closing => add(Part::Connection, self.socket.as_fd(), flags),
            Stage::Waiting => add(Part::Connection, self.socket.as_fd(), flags | PollFlags::IN),
            Stage::Running(running) => {
                flags.set(PollFlags::IN, running.input.is_empty());
                add(Part::Connection, self.socket.as_fd(), flags);
                if running.exit.is_none() {
                    add(Part::Process, running.program.pidfd(), PollFlags::IN);
                }
                if let Some(stdin) = running.program.stdin.as_ref().filter(|_| !running.input.is_empty()) {
                    add(Part::Input, stdin.as_fd(), PollFlags::OUT);
                }
                if self.out.is_empty() {
                    for (index, output) in running.program.outputs.iter().enumerate() {
                        if let Some(output) = output {
                            add(Part::Output(index), output.as_fd(), PollFlags::IN);
                        }
                    }
                }
            }
        }
    }

    /// Goes on with a part that is ready; a program is started in `cgroup`.
    pub fn ready(&mut self, part: Part, ready: PollFlags, cgroup: Option<BorrowedFd<'_>>) {
        match part {
            Part::Connection => self.ready_connection(ready, cgroup),
            Part::Process => self.ready_process(),
            Part::Input => {
                if let Stage::Running(running) = &mut self.stage {
                    running.write_input();
                }
                // More frames may have come with the one that had to wait.
                self.take_frames(cgroup);
            }
            Part::Output(index) => {
                self.read_output(index);
            }
        }
        self.drain_after_exit();
    }

    fn ready_connection(&mut self, ready: PollFlags, cgroup: Option<BorrowedFd<'_>>) {
        if ready.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return self.abandon();
        }
        if ready.contains(PollFlags::OUT) {
            self.send();
        }
        if ready.contains(PollFlags::IN) {
            match self.frames.fill(&self.socket) {
                Ok(Filled::Some | Filled::Nothing) => self.take_frames(cgroup),
                Ok(Filled::End) | Err(_) => self.abandon(),
            }
        }
    }

    /// The host has closed: nobody wants the program any more.
    fn abandon(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Running(Running { mut program, exit: None, .. }) => {
                program.signal(Signal::KILL);
                // A program that cannot be killed at once must not be held by its pipes either.
                // Whoever left its process group goes on.
                program.stdin = None;
                self.left = program.take_outputs();
                program.outputs = [None, None];
                Stage::Reaping(program)
            }
            Stage::Reaping(program) => Stage::Reaping(program),
            Stage::Running(Running { mut program, exit: Some(_), .. }) => {
                self.left = program.take_outputs();
                Stage::Gone
            }
            Stage::Waiting | Stage::Closing | Stage::Gone => Stage::Gone,
        };
    }

    /// The outputs to be read on for those who have them open still.
    pub fn take_left(&mut self) -> [Option<OwnedFd>; 2] {
        std::mem::take(&mut self.left)
    }

    /// The connection is lost as its other end is another machine's. What is left of the session,
    /// and see [`Self::take_left`].
    pub fn detach(&mut self) -> Option<Detached> {
        match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Running(Running { program, exit: None, .. }) | Stage::Reaping(program) => {
                Some(Detached::new(program))
            }
            Stage::Running(Running { mut program, exit: Some(_), .. }) => {
                self.left = program.take_outputs();
                None
            }
            // One that waits has no program, the others' have ended.
            Stage::Waiting | Stage::Closing | Stage::Gone => None,
        }
    }

    fn take_frames(&mut self, cgroup: Option<BorrowedFd<'_>>) {
        loop {
            match &self.stage {
                Stage::Waiting => {}
                Stage::Running(running) if running.input.is_empty() => {}
                _ => return,
            }
            match self.frames.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    if let Err(problem) = self.take(frame, cgroup) {
                        return self.refuse(&problem);
                    }
                }
                Err(error) => return self.refuse(&format!("exec: read from the host: {error}")),
            }
        }
    }

    fn take(&mut self, Frame { kind, payload }: Frame, cgroup: Option<BorrowedFd<'_>>) -> Result<(), String> {
        match (&mut self.stage, kind) {
            (Stage::Waiting, FrameType::Start) => {
                let start: Start = serde_json::from_slice(&payload)
                    .map_err(|e| format!("exec: the first frame is no request: {e}"))?;
                match Program::start(&start, cgroup) {
                    Ok(program) => self.stage = Stage::Running(Running::new(program)),
                    Err(error) => self.finish(&error.exit()),
                }
            }
            (Stage::Running(running), FrameType::Stdin) => running.take_input(payload),
            (Stage::Running(running), FrameType::Signal) => {
                let signal = payload.first().filter(|_| payload.len() == 1);
                let signal = signal.and_then(|n| Signal::from_named_raw(i32::from(*n)));
                let signal = signal.ok_or("exec: a signal frame holds no signal")?;
                if running.exit.is_none() {
                    running.program.signal(signal);
                }
            }
            (Stage::Running(running), FrameType::Window) => {
                let size: [u8; 4] = payload.try_into().map_err(|_| "exec: a window frame is not 4 bytes")?;
                let [rows, rows_high, columns, columns_high] = size;
                let (rows, columns) = ([rows, rows_high], [columns, columns_high]);
                running.program.set_window(u16::from_le_bytes(rows), u16::from_le_bytes(columns));
            }
            _ => return Err(format!("exec: a frame of type {kind:?} has no place here")),
        }
        Ok(())
    }

    /// Ends a session whose host does not keep to the protocol.
    fn refuse(&mut self, problem: &str) {
        let exit = Exit { error: Some(problem.to_owned()), ..Exit::default() };
        if let Stage::Waiting = self.stage {
            return self.finish(&exit);
        }
        // The program must go now; the host hears why if it reads.
        self.out.push(&exit_frame(&exit));
        self.send();
        self.abandon();
    }

    fn finish(&mut self, exit: &Exit) {
        if let Stage::Running(running) = &mut self.stage {
            self.left = running.program.take_outputs();
        }
        self.stage = Stage::Closing;
        self.out.push(&exit_frame(exit));
        self.send();
    }

    /// Sends what waits; a session that only waited for that ends.
    fn send(&mut self) {
        if self.out.send(&self.socket).is_err() {
            self.abandon();
        } else if matches!(self.stage, Stage::Closing) && self.out.is_empty() {
            self.stage = Stage::Gone;
        }
    }

    fn ready_process(&mut self) {
        match &mut self.stage {
            Stage::Running(running) if running.exit.is_none() => running.exit = running.program.reap(),
            Stage::Reaping(program) if program.reap().is_some() => self.stage = Stage::Gone,
            _ => {}
        }
    }

    /// Reads one frame's worth of an output and sends it. Whether the output goes on.
    fn read_output(&mut self, index: usize) -> bool {
        let Stage::Running(running) = &mut self.stage else { return false };
        let Some(slot) = running.program.outputs.get_mut(index) else { return false };
        let Some(output) = slot.as_ref().filter(|_| self.out.is_empty()) else { return false };
        let kind = if index == 0 { FrameType::Stdout } else { FrameType::Stderr };
        // Read behind room for the header, so that no byte is copied.
        let buffer = self.out.tail();
        buffer.extend_from_slice(&header(kind, 0));
        match append(output, buffer, PAYLOAD_MAX_BYTES) {
            Ok(count) if count > 0 => {
                let length = u32::try_from(count).unwrap_or_default();
                buffer.splice(..HEADER_BYTES, header(kind, length));
                if let (Some(_), Some(drained)) = (&running.exit, running.drained_bytes.get_mut(index)) {
                    *drained += count;
                }
                if running.exit.is_none() {
                    running.end_input_again();
                }
                self.send();
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal whose other end is closed is EIO, a pipe is an end of file.
            Ok(_) | Err(_) => *slot = None,
        }
        buffer.clear();
        false
    }

    /// After the program's end: sends what its outputs hold now, then EXIT. Somebody in the
    /// background may keep them open; that is not waited for.
    fn drain_after_exit(&mut self) {
        for index in 0..2 {
            loop {
                let Stage::Running(running) = &mut self.stage else { return };
                if running.exit.is_none() || !self.out.is_empty() {
                    return;
                }
                let over = running.drained_bytes.get(index).is_none_or(|n| *n >= DRAIN_MAX_BYTES);
                if over || !self.read_output(index) {
                    break;
                }
            }
        }
        if let Stage::Running(running) = &mut self.stage
            && let Some(exit) = running.exit.take()
        {
            self.finish(&exit);
        }
    }
}

impl Running {
    fn new(program: Program) -> Self {
        Self { program, input: Outbox::default(), input_ended: false, exit: None, drained_bytes: [0; 2] }
    }

    /// Takes a frame's bytes; the ones before it were written.
    fn take_input(&mut self, bytes: Vec<u8>) {
        if self.program.stdin.is_none() || self.input_ended {
            return;
        }
        self.input_ended = bytes.is_empty();
        let Program { terminal, typed, stdin, .. } = &mut self.program;
        let keys = match stdin {
            Some(stdin) if *terminal && self.input_ended => typed.end(stdin),
            _ => {
                typed.note(&bytes);
                bytes
            }
        };
        self.input = Outbox::from(keys);
        self.write_input();
    }

    /// What it has printed may be the prompt of one who reads on behind the end of its terminal's
    /// input.
    fn end_input_again(&mut self) {
        let Self { program, input, input_ended, .. } = self;
        let told = program.terminal && *input_ended && input.is_empty() && program.typed.may_end_again();
        if told && program.has_read_all() {
            let Program { typed, stdin: Some(stdin), .. } = program else { return };
            *input = Outbox::from(typed.end_again(stdin));
            self.write_input();
        }
    }

    fn write_input(&mut self) {
        let Some(stdin) = &self.program.stdin else { return };
        let result = self.input.write(stdin);
        // A program that reads no more is not wrong: what comes for it is dropped. A terminal
        // stays, as its size may still change.
        if result.is_err() {
            self.input = Outbox::default();
        }
        if !self.program.terminal && (result.is_err() || (self.input_ended && self.input.is_empty())) {
            self.program.stdin = None;
        }
    }
}
