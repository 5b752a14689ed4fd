//! Guests that misbehave: their own VM continues, and so do others.

use crate::{Outcome, Story, stage::Stage};
use patina_abi::LINK_PORT;

pub const STORIES: &[Story] = stories![
    a_flooded_console_keeps_its_end_within_its_limit,
    connections_to_ports_without_a_listener_are_refused,
    garbage_on_the_agents_port_leaves_the_agent_working,
    a_call_too_long_for_its_way_is_refused_and_the_next_one_answered,
];

/// Longest console log, bytes.
const CONSOLE_LOG_MAX_BYTES: usize = 1024 * 1024;

fn a_flooded_console_keeps_its_end_within_its_limit(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let boot = guest.sh("cat /proc/sys/kernel/random/boot_id")?;
    guest.sh("timeout 10 sh -c 'yes 0123456789012345678901234567890123456789 > /dev/console'; echo the end > /dev/console")?;
    let log = guest.console()?;
    assert!(log.len() <= CONSOLE_LOG_MAX_BYTES && log.trim_end().ends_with("the end"), "{} bytes", log.len());
    assert_eq!(guest.sh("cat /proc/sys/kernel/random/boot_id")?, boot);
    Ok(())
}

fn connections_to_ports_without_a_listener_are_refused(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let check = guest.install("guest-check")?;
    assert_eq!(guest.call(&[&check, "flood", "9999", "200"])?, "taken 0 refused 200");
    assert_eq!(guest.call(&["gc", "vmid"])?, "0");
    Ok(())
}

fn garbage_on_the_agents_port_leaves_the_agent_working(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let check = guest.install("guest-check")?;
    let report = guest.call(&[&check, "flood", &LINK_PORT.to_string(), "100"])?;
    assert!(report.starts_with("taken "), "{report}");
    // The agent's own link was replaced by the flood's and thrown out with it: it must come back by
    // itself.
    assert!(guest.call(&["gc", "list"])?.starts_with("0 "));
    assert_eq!(guest.field("state")?, "ready");
    Ok(())
}

/// As nobody: calls in lines of so many bytes, newline included. Prints the codes of their errors.
const LONG_CALLS: &str = r#"
import json, os, socket
os.setgid(65534)
os.setuid(65534)
HEAD, TAIL = b'{"verb":"list","args":"', b'"}\n'
def code(length):
    agent = socket.socket(socket.AF_UNIX)
    agent.connect('/run/gridcentric/agent.sock')
    agent.sendall(HEAD + b'x' * (length - len(HEAD) - len(TAIL)) + TAIL)
    return json.loads(agent.makefile().readline())['error']['code']
print(*[code(length) for length in (65525, 65531, 65536, 65537)])
"#;

/// The agent takes lines of 64 KiB, and each of the next two writes a few bytes more around the
/// call.
fn a_call_too_long_for_its_way_is_refused_and_the_next_one_answered(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    assert_eq!(guest.call(&["python3", "-c", LONG_CALLS])?, "90 90 90 90");
    // vmmd answers this one, over the link and the control connection that the long ones would have
    // broken.
    assert!(guest.call(&["gc", "list"])?.starts_with("0 "));
    assert_eq!(guest.field("state")?, "ready");
    Ok(())
}
