//! Runs one program of the build. Its output goes to a log and, line by line, to the caller.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Lines of the log that a failure's message shows.
const TAIL_LINES: usize = 30;
/// Longest output that [`output`] takes: far above any answer that is asked for.
const OUTPUT_MAX_BYTES: usize = 16 * 1024 * 1024;

/// A program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program is not there or cannot be executed.
    #[error("run {program}: cannot start it (is it installed, and on PATH?)")]
    Start {
        /// The program's name.
        program: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The program ended with an error.
    #[error("run {program}: {status}; the whole log is {}\n{tail}", log.display())]
    Failed {
        /// The program's name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Where its output is.
        log: PathBuf,
        /// The last lines of its output.
        tail: String,
    },
    /// The program ended with an error, and wrote no log.
    #[error("run {program}: {status}: {stderr}")]
    Refused {
        /// The program's name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The log, or the pipe that feeds it, cannot be used.
    #[error("run {program}: write its log {}", log.display())]
    Log {
        /// The program's name.
        program: String,
        /// Where its output should be.
        log: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The program said more than any sane answer has.
    #[error("run {program}: its output has {bytes} bytes, the maximum is {OUTPUT_MAX_BYTES}")]
    TooMuch {
        /// The program's name.
        program: String,
        /// Length of the answer.
        bytes: usize,
    },
}

impl RunError {
    /// What the program said last, for callers that know its messages.
    pub fn said(&self) -> &str {
        match self {
            Self::Failed { tail, .. } => tail,
            Self::Refused { stderr, .. } => stderr,
            _ => "",
        }
    }
}

fn name_of(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Runs `command` to its end, appends both its outputs to `log`, and hands each line to
/// `each_line`.
pub fn logged(mut command: Command, log: &Path, each_line: &mut dyn FnMut(&str)) -> Result<(), RunError> {
    let program = name_of(&command);
    let log_error = |source| RunError::Log { program: program.clone(), log: log.to_owned(), source };
    let mut file = OpenOptions::new().create(true).append(true).open(log).map_err(log_error)?;
    writeln!(file, "+ {command:?}").map_err(log_error)?;
    let (reader, writer) = std::io::pipe().map_err(log_error)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(log_error)?).stderr(writer);
    let mut child = command.spawn().map_err(|source| RunError::Start { program: program.clone(), source })?;
    // The command still owns both writing ends; the pipe ends only when they are closed here too.
    drop(command);
    let copied = copy_lines(BufReader::new(reader), &mut file, each_line);
    let status = child.wait().map_err(log_error)?;
    let tail = copied.map_err(log_error)?;
    if status.success() {
        return Ok(());
    }
    let tail = tail.into_iter().collect::<Vec<_>>().join("\n");
    Err(RunError::Failed { program, status, log: log.to_owned(), tail })
}

fn copy_lines(
    mut reader: impl BufRead,
    log: &mut File,
    each_line: &mut dyn FnMut(&str),
) -> std::io::Result<VecDeque<String>> {
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        log.write_all(&bytes)?;
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        each_line(&line);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
        bytes.clear();
    }
    Ok(tail)
}

/// Runs `command` and returns what it wrote to standard output.
pub fn output(mut command: Command) -> Result<String, RunError> {
    let program = name_of(&command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| RunError::Start { program: program.clone(), source })?;
    if output.stdout.len() > OUTPUT_MAX_BYTES {
        return Err(RunError::TooMuch { program, bytes: output.stdout.len() });
    }
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(RunError::Refused { program, status: output.status, stderr });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with its standard output in the file at `path`.
pub fn output_to(mut command: Command, path: &Path) -> Result<(), RunError> {
    let program = name_of(&command);
    let failed = |source| RunError::Log { program, log: path.to_owned(), source };
    command.stdout(File::create(path).map_err(failed)?);
    // What goes to the file is not part of the answer, which is then empty.
    output(command).map(|_| ())
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
