//! What ssh says on its standard error: part of an error until there is a connection, and passed on
//! from then on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{io::AsyncReadExt as _, process::ChildStderr, task::JoinHandle, time::timeout};

/// As much of it as is kept, bytes.
const KEPT_MAX: usize = 2048;

/// The reader of it.
#[derive(Debug)]
pub(super) struct Stderr {
    // None: it is passed on.
    kept: Arc<Mutex<Option<Vec<u8>>>>,
    reader: JoinHandle<()>,
}

impl Stderr {
    /// Reads it from now on, so that ssh never waits for a reader.
    pub(super) fn follow(mut stderr: ChildStderr) -> Self {
        let kept = Arc::new(Mutex::new(Some(Vec::new())));
        let shared = Arc::clone(&kept);
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
                match shared.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                    Some(kept) => {
                        kept.extend_from_slice(&buffer[..count]);
                        // The last words say why.
                        let surplus = kept.len().saturating_sub(KEPT_MAX);
                        kept.drain(..surplus);
                    }
                    None => patina_daemon::say!("ssh: {}", plain(&buffer[..count])),
                }
            }
        });
        Self { kept, reader }
    }

    /// From now on it is for the user.
    pub(super) fn pass_on(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What it has said, once ssh has ended, on one line. Another process may keep its standard
    /// error open, so that not more than this time is waited for the end of it.
    pub(super) async fn said(mut self, patience: Duration) -> String {
        drop(timeout(patience, &mut self.reader).await);
        self.reader.abort();
        plain(self.kept.lock().unwrap_or_else(PoisonError::into_inner).as_deref().unwrap_or_default())
    }
}

/// Lines on one line, without what a terminal would take for a command: another machine wrote it.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    // What vmctl says there becomes part of what it says here.
    let bare = |line: &str| line.trim().trim_start_matches("error: ").replace(char::is_control, "?");
    let lines = text.lines().map(bare);
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_one_line_without_control_characters() {
        assert_eq!(plain(b"Warning\r\n\n no \x1b[31m\xff\n"), "Warning; no ?[31m\u{fffd}");
        assert_eq!(plain(b"error: no\n  because: why\n"), "no; because: why");
        assert_eq!(plain(b""), "");
    }
}
