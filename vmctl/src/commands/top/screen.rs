//! The terminal while a table is shown: the alternate screen, no cursor, keys without waiting for
//! Enter.

use crate::{error::CtlError, output, terminal::RawMode};
use std::future::pending;
use tokio::io::{AsyncReadExt as _, Stdin, stdin};

/// The other screen, without a cursor; what was there before comes back with [`LEAVE`]. As xterm
/// defined it.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// See [`ENTER`].
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the first column of the first line.
const HOME: &str = "\x1b[H";
/// What is right of the cursor is gone; in raw mode a line ends with both.
const LINE_END: &str = "\x1b[K\r\n";
/// What is below the cursor is gone.
const CLEAR_BELOW: &str = "\x1b[J";
/// Ctrl-C, which raw mode does not turn into a signal.
const INTERRUPT: u8 = 3;

/// The terminal; as it was before when this is dropped.
#[derive(Debug)]
pub struct Screen {
    keys: Option<Stdin>,
    _raw: Option<RawMode>,
}

impl Screen {
    /// Takes it.
    pub fn enter() -> Result<Self, CtlError> {
        let raw = RawMode::enter()?;
        output::write(ENTER.as_bytes())?;
        // Input that is no terminal is somebody else's.
        Ok(Self { keys: raw.is_some().then(stdin), _raw: raw })
    }

    /// Replaces what is on it, in one write so that it does not flicker.
    pub fn show(&mut self, text: &str) -> Result<(), CtlError> {
        output::write(frame(text).as_bytes())
    }
}

fn frame(text: &str) -> String {
    format!("{HOME}{}\x1b[K{CLEAR_BELOW}", text.replace('\n', LINE_END))
}

impl Drop for Screen {
    fn drop(&mut self) {
        if output::write(LEAVE.as_bytes()).is_err() {
            // There is no terminal any more.
        }
    }
}

/// Waits for `q` or Ctrl-C; for ever where there is no screen, or no keyboard.
pub async fn key_to_end(screen: Option<&mut Screen>) {
    let Some(keys) = screen.and_then(|screen| screen.keys.as_mut()) else { return pending().await };
    let mut typed = [0; 16];
    loop {
        match keys.read(&mut typed).await {
            Ok(0) | Err(_) => return pending().await,
            Ok(count) if typed[..count].iter().any(|key| matches!(key, b'q' | b'Q' | &INTERRUPT)) => return,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_leaves_nothing_of_the_one_before() {
        assert_eq!(frame("a\nb"), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
    }
}
