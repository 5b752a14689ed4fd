//! Tests that change the network of the machine they run on: in one of their own.

use std::process::Command;

/// Runs an ignored test of this folder, in a network of its own and with no rights outside of it.
pub fn run_in_a_network(test: &str) {
    let program = std::env::current_exe().unwrap();
    let test = format!("machine::{test}");
    let output = Command::new("unshare")
        .args(["-r", "-n"])
        .arg(program)
        .args(["--exact", "--ignored", &test, "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}
