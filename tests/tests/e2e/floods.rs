//! Guests that misbehave: their own VM goes on, and so do others.

use crate::{Outcome, Story, stage::Stage};
use patina_abi::LINK_PORT;

pub const STORIES: &[Story] = &[
    ("floods::a_flooded_console_keeps_its_end_within_its_limit", console),
    ("floods::connections_to_ports_without_a_listener_are_refused", closed_ports),
    ("floods::rubbish_on_the_agents_port_leaves_the_agent_working", link),
];

/// Longest console log, bytes.
const CONSOLE_LOG_MAX_BYTES: usize = 1024 * 1024;

fn console(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let boot = guest.sh("cat /proc/sys/kernel/random/boot_id")?;
    guest.sh("timeout 10 sh -c 'yes 0123456789012345678901234567890123456789 > /dev/console'; echo the end > /dev/console")?;
    let log = guest.console()?;
    assert!(log.len() <= CONSOLE_LOG_MAX_BYTES && log.trim_end().ends_with("the end"), "{} bytes", log.len());
    assert_eq!(guest.sh("cat /proc/sys/kernel/random/boot_id")?, boot);
    Ok(())
}

fn closed_ports(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let check = guest.install("guest-check")?;
    assert_eq!(guest.call(&[&check, "flood", "9999", "200"])?, "taken 0 refused 200");
    assert_eq!(guest.call(&["gc", "vmid"])?, "0");
    Ok(())
}

fn link(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let check = guest.install("guest-check")?;
    let report = guest.call(&[&check, "flood", &LINK_PORT.to_string(), "100"])?;
    assert!(report.starts_with("taken "), "{report}");
    // The agent's own link was replaced by the flood's and thrown out with it: it must come back by itself.
    assert!(guest.call(&["gc", "list"])?.starts_with("0 "));
    assert_eq!(guest.field("state")?, "ready");
    Ok(())
}
