//! The end of input for a program on a terminal.
//!
//! A terminal has no end of input: people type ^D. This key passes the characters typed so far to
//! the reader. Only on an empty line does the reader get nothing, which means end of file. So
//! within a line the key is needed twice.

use rustix::termios::{InputModes, LocalModes, SpecialCodeIndex, tcgetattr};
use std::os::fd::AsFd;

/// ^D, as it is until a program changes it.
const END_OF_INPUT: u8 = 4;
/// How often a program that goes on reading is told the end again: a shell's program first, then
/// the shell.
const ENDS_MAX: u8 = 16;

/// What was typed on a terminal, as far as its end needs it.
#[derive(Debug, Default)]
pub struct Typed {
    last: Option<u8>,
    ends: u8,
}

impl Typed {
    /// Notes what is typed.
    pub fn note(&mut self, bytes: &[u8]) {
        self.last = bytes.last().copied().or(self.last);
    }

    /// The keys that end the input of `terminal`, whose program side may have been set up in any
    /// way.
    pub fn end(&mut self, terminal: impl AsFd) -> Vec<u8> {
        self.ends = 1;
        let key = |settings: &rustix::termios::Termios| settings.special_codes[SpecialCodeIndex::VEOF];
        let Ok(settings) = tcgetattr(terminal) else { return vec![END_OF_INPUT] };
        let in_lines = settings.local_modes.contains(LocalModes::ICANON);
        // 0: the program has switched the key off. It hears what it would hear without lines.
        let key = if in_lines && key(&settings) != 0 { key(&settings) } else { END_OF_INPUT };
        let returns = settings.input_modes.contains(InputModes::ICRNL);
        let line_is_over = match self.last {
            None | Some(b'\n') => true,
            Some(b'\r') => returns,
            Some(_) => false,
        };
        // Once too often does not matter: whoever reads on is at the end again.
        if in_lines && !line_is_over { vec![key, key] } else { vec![key] }
    }

    /// Whether the end may be told once more.
    #[must_use]
    pub fn may_end_again(&self) -> bool {
        (1..ENDS_MAX).contains(&self.ends)
    }

    /// The key once more, for a program that has read the end and reads on.
    pub fn end_again(&mut self, terminal: impl AsFd) -> Vec<u8> {
        let ends = self.ends;
        self.last = None;
        let keys = self.end(terminal);
        self.ends = ends.saturating_add(1);
        keys
    }
}
