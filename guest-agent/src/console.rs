//! Lines for people, on the console.

use rustix::io::write;

/// Writes `patina: TEXT` to standard output in one system call. A console that does not take it has
/// no one to be told.
pub fn say(text: &str) {
    let line = format!("patina: {text}\n");
    if write(rustix::stdio::stdout(), line.as_bytes()).is_err() {
        // Nothing is left to report it to.
    }
}
