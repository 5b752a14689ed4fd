//! What the agent waits for on behalf of a session.

/// A descriptor of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The connection.
    Connection,
    /// The process.
    Process,
    /// The program's input.
    Input,
    /// The program's output (0) or error output (1).
    Output(usize),
}
