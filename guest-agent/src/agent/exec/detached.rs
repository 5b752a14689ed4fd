//! A program without its session. The machine is a clone, and the host's end of the session belongs
//! to the parent. The program continues: it reads end of file, and its output is discarded.

use super::drains::drop_some;
use super::part::Part;
use super::program::Program;
use rustix::event::PollFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Such a program.
#[derive(Debug)]
pub struct Detached {
    program: Program,
    ended: bool,
}

impl Detached {
    /// Takes a program that was not reaped yet.
    #[must_use]
    pub fn new(mut program: Program) -> Self {
        // A terminal stays open, as its closing would be a hang-up for the program.
        if let Some(stdin) = program.stdin.as_ref().filter(|_| program.terminal)
            && rustix::io::write(stdin, &program.typed.end(stdin)).is_err()
        {
            // It takes no more: its program has input enough, and will find the end of it
            // otherwise.
        }
        if !program.terminal {
            program.stdin = None;
        }
        Self { program, ended: false }
    }

    /// What others have open still of the outputs of a program that has ended.
    pub fn take_left(&mut self) -> [Option<OwnedFd>; 2] {
        if self.ended { self.program.take_outputs() } else { [None, None] }
    }

    /// Whether it can be forgotten.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.ended
    }

    /// What to wait for.
    pub fn watch<'a>(&'a self, mut add: impl FnMut(Part, BorrowedFd<'a>, PollFlags)) {
        add(Part::Process, self.program.pidfd(), PollFlags::IN);
        for (index, output) in self.program.outputs.iter().enumerate() {
            if let Some(output) = output {
                add(Part::Output(index), output.as_fd(), PollFlags::IN);
            }
        }
    }

    /// Goes on with a part that is ready; `scratch` is empty and stays so.
    pub fn ready(&mut self, part: Part, scratch: &mut Vec<u8>) {
        match part {
            Part::Process => self.ended = self.program.reap().is_some(),
            Part::Output(index) => {
                let Some(slot) = self.program.outputs.get_mut(index) else { return };
                if slot.as_ref().is_some_and(|output| !drop_some(output, scratch)) {
                    *slot = None;
                }
            }
            Part::Connection | Part::Input => {}
        }
    }
}
