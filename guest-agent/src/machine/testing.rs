//! Runs tests that change the network in a network namespace of their own.

use std::process::Command;

/// Set for the tests that have a network of their own.
const OWN_NETWORK: &str = "PATINA_TEST_OWN_NETWORK";

/// Runs an ignored test of this folder, in a network of its own and with no rights outside of it.
pub fn run_in_a_network(test: &str) {
    let program = std::env::current_exe().unwrap();
    let test = format!("machine::{test}");
    let output = Command::new("unshare")
        .args(["-r", "-n"])
        .arg(program)
        .args(["--exact", "--ignored", &test, "--nocapture"])
        .env(OWN_NETWORK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}

/// Each test that [`run_in_a_network`] runs begins with this: whoever runs all ignored tests keeps
/// the host's own network.
pub fn expect_a_network_of_ones_own() {
    assert!(std::env::var_os(OWN_NETWORK).is_some(), "run the test of this name without `_inside`");
}
