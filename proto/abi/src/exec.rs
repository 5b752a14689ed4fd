//! Exec sessions: the host runs programs in the guest. It connects to the agent's vsock port
//! [`crate::EXEC_PORT`], with one connection for each program. A frame is binary: `type: u8`,
//! `length: u32` little-endian, then the payload.
//!
//! ```text
//!  host                                  agent
//!    │── START (JSON [`Start`]) ──────────▶│
//!    │── STDIN bytes … (empty: the end) ──▶│
//!    │── SIGNAL u8 / WINDOW u16 u16 ──────▶│
//!    │◀────────── STDOUT / STDERR bytes … ─│
//!    │◀────────────── EXIT (JSON [`Exit`]) ─│   then the agent closes
//! ```
//!
//! When the host closes the connection, the agent kills the program (SIGKILL to its process group).
//! vsock's credit is the flow control: if the host does not read, the program's output blocks, but
//! the agent does not.
//!
//! While the VM is cloned, sessions are paused. In a clone, open sessions have lost their
//! connections, whose other ends stay with the parent. Their programs continue: they read the end
//! of their input, and nothing reads their output.

use serde::{Deserialize, Serialize};

/// Length of a frame's header.
pub const HEADER_BYTES: usize = 5;
/// Longest payload of a frame.
pub const PAYLOAD_MAX_BYTES: usize = 64 * 1024;
/// Most arguments of a program.
pub const ARGV_MAX: usize = 1024;
/// Most exec sessions that an agent runs at once. One more gets an EXIT with an error.
pub const SESSIONS_MAX: usize = 32;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// Host: JSON [`Start`]. The first frame.
    Start = 1,
    /// Host: bytes for the program; empty closes its standard input.
    Stdin = 2,
    /// Host: one byte, the signal's number, for the program's process group.
    Signal = 3,
    /// Host: rows u16 LE, columns u16 LE.
    Window = 4,
    /// Agent: bytes.
    Stdout = 16,
    /// Agent: bytes.
    Stderr = 17,
    /// Agent: JSON [`Exit`]. The last frame.
    Exit = 18,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The type byte is none of [`FrameType`].
    #[error("frame type {0} is unknown")]
    Type(u8),
    /// The payload is longer than [`PAYLOAD_MAX_BYTES`].
    #[error("frame of {0} bytes is longer than {PAYLOAD_MAX_BYTES}")]
    Length(u32),
}

impl TryFrom<u8> for FrameType {
    type Error = FrameError;

    fn try_from(byte: u8) -> Result<Self, FrameError> {
        Ok(match byte {
            1 => Self::Start,
            2 => Self::Stdin,
            3 => Self::Signal,
            4 => Self::Window,
            16 => Self::Stdout,
            17 => Self::Stderr,
            18 => Self::Exit,
            other => return Err(FrameError::Type(other)),
        })
    }
}

/// The header of a frame with `length` bytes of payload (at most [`PAYLOAD_MAX_BYTES`]).
#[must_use]
pub fn header(frame: FrameType, length: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = length.to_le_bytes();
    [frame as u8, a, b, c, d]
}

/// Reads a header: the frame's type and the length of its payload in bytes.
///
/// # Errors
/// The type is unknown or the payload too long.
pub fn parse_header(bytes: [u8; HEADER_BYTES]) -> Result<(FrameType, usize), FrameError> {
    let [kind, a, b, c, d] = bytes;
    let length = u32::from_le_bytes([a, b, c, d]);
    let frame = FrameType::try_from(kind)?;
    if length as usize > PAYLOAD_MAX_BYTES {
        return Err(FrameError::Length(length));
    }
    Ok((frame, length as usize))
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The program (looked up in PATH) and its arguments: 1 to [`ARGV_MAX`].
    pub argv: Vec<String>,
    /// `KEY=VALUE`, added to the agent's own environment.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory; empty: `/`.
    #[serde(default)]
    pub cwd: String,
    /// Rows and columns of a terminal to run it on; without, three pipes.
    #[serde(default)]
    pub tty: Option<(u16, u16)>,
}

/// How a program ended. A program that ran has `code` or `signal`. A program that could not be
/// started has `error`, and the `code` that a shell would return: 127 if it was not found,
/// otherwise 126. `error` alone: the host violated the protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// The signal that killed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why it could not be started. Check this field first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back() {
        let bytes = header(FrameType::Stderr, 70);
        assert_eq!(parse_header(bytes), Ok((FrameType::Stderr, 70)));
    }

    #[test]
    fn a_long_or_unknown_frame_is_refused() {
        assert_eq!(parse_header([16, 1, 0, 1, 0]), Err(FrameError::Length(0x1_0001)));
        assert_eq!(parse_header([9, 0, 0, 0, 0]), Err(FrameError::Type(9)));
    }
}
