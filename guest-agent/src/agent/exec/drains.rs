//! Outputs that stay open after their program has ended, because a program in the background holds
//! them. They are read and discarded. Otherwise a write would end that program, or block it
//! forever.

use crate::console::say;
use crate::sys::input::append;
use patina_abi::exec::PAYLOAD_MAX_BYTES;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most outputs that are read so; one more is closed.
pub const DRAINS_MAX: usize = 128;

/// Those outputs.
#[derive(Debug, Default)]
pub struct Drains {
    open: Vec<OwnedFd>,
    /// At the end, or broken; they go with [`Self::settle`].
    ended: Vec<usize>,
    /// What is read only to be gone; it keeps its room.
    scratch: Vec<u8>,
}

impl Drains {
    /// Takes what is left of a program's outputs; non-blocking.
    pub fn take(&mut self, outputs: [Option<OwnedFd>; 2]) {
        for output in outputs.into_iter().flatten() {
            if self.open.len() < DRAINS_MAX {
                self.open.push(output);
            } else {
                say(&format!(
                    "exec: {DRAINS_MAX} outputs of programs in the background are read already; one more is closed"
                ));
            }
        }
    }

    /// What to wait for. Numbers stay valid until [`Self::settle`].
    pub fn watch<'a>(&'a self, mut add: impl FnMut(usize, BorrowedFd<'a>, PollFlags)) {
        for (number, output) in self.open.iter().enumerate() {
            add(number, output.as_fd(), PollFlags::IN);
        }
    }

    /// Reads once from one that is ready.
    pub fn ready(&mut self, number: usize) {
        if let Some(output) = self.open.get(number)
            && !drop_some(output, &mut self.scratch)
        {
            self.ended.push(number);
        }
    }

    /// Forgets those that have ended.
    pub fn settle(&mut self) {
        self.ended.sort_unstable();
        for number in self.ended.drain(..).rev() {
            self.open.swap_remove(number);
        }
    }
}

/// Reads once and drops what comes; `scratch` is empty and stays so. Whether there may be more.
pub fn drop_some(output: &OwnedFd, scratch: &mut Vec<u8>) -> bool {
    let read = append(output, scratch, PAYLOAD_MAX_BYTES);
    scratch.clear();
    matches!(read, Ok(1..) | Err(Errno::AGAIN | Errno::INTR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    #[test]
    fn outputs_are_read_to_their_ends_and_there_is_a_bound() {
        let mut drains = Drains::default();
        let pipes: Vec<_> = (0..=DRAINS_MAX).map(|_| pipe_with(PipeFlags::NONBLOCK).unwrap()).collect();
        let (outputs, mut writers): (Vec<_>, Vec<_>) = pipes.into_iter().unzip();
        outputs.into_iter().for_each(|output| drains.take([Some(output), None]));
        let write = |writer: &OwnedFd| rustix::io::write(writer, &[7; 4096]);
        assert_eq!(write(&writers.pop().unwrap()), Err(Errno::PIPE), "one too many");
        for _ in 0..100 {
            assert_eq!(write(&writers[5]), Ok(4096));
            drains.ready(5);
        }
        writers.drain(3..5);
        [4, 3, 6].into_iter().for_each(|number| drains.ready(number));
        drains.settle();
        assert_eq!(drains.open.len(), DRAINS_MAX - 2);
        assert!(writers.iter().all(|writer| write(writer) == Ok(4096)));
    }
}
