//! The terminal: raw mode while attached, its size.

use crate::error::CtlError;
use patina_proto::v1::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, IsTerminal as _};

/// Raw mode of standard input; the old mode comes back when this is dropped.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Puts standard input into raw mode, if it is a terminal.
    pub fn enter() -> Result<Option<Self>, CtlError> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).map_err(CtlError::Terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(CtlError::Terminal)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(errno) = tcsetattr(io::stdin(), OptionalActions::Now, &self.before) {
            patina_daemon::say!("restore the terminal: {errno}; `reset` does it by hand");
        }
    }
}

/// The size of the terminal on standard output or input; `None` when neither is one.
pub fn window_size() -> Option<WindowSize> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    Some(WindowSize { rows: size.ws_row.into(), cols: size.ws_col.into() })
}
