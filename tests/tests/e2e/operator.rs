//! The commands for operators: ls, inspect, logs, console, wait, doctor.

use crate::{
    Outcome, Story,
    stage::{SHARED, Stage},
};
use std::{
    io::{Read as _, Write as _},
    process::Stdio,
    time::Duration,
};

pub const STORIES: &[Story] = stories![
    ls_has_a_row_for_the_vm,
    ls_prints_json,
    inspect_shows_all,
    inspect_of_an_unknown_name_is_3,
    logs_have_the_console,
    the_console_is_a_shell,
    waiting_too_long_is_124,
    waiting_for_ready_returns_at_once_when_it_is,
    doctor_passes_where_guests_run,
    version_names_both,
];

fn ls_has_a_row_for_the_vm(stage: &Stage) -> Outcome {
    let ip = stage.guest()?.field("ip")?;
    let table = stage.host()?.call(&["ls"])?;
    let row = table.lines().find(|line| line.starts_with(SHARED)).ok_or("no row")?;
    assert!(table.starts_with("NAME") && row.contains("ready") && row.contains(&ip), "{table}");
    assert!(row.contains(&format!("127.0.0.1:{}->8080", stage.published())), "{table}");
    Ok(())
}

fn ls_prints_json(stage: &Stage) -> Outcome {
    stage.guest()?;
    let vms = stage.host()?.json(&["ls"])?;
    let vm = vms.as_array().into_iter().flatten().find(|vm| vm["name"] == SHARED).ok_or("not listed")?;
    assert_eq!((&vm["state"], &vm["vcpus"], &vm["memory_mib"]), (&"ready".into(), &2.into(), &256.into()));
    Ok(())
}

fn inspect_shows_all(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let text = stage.host()?.call(&["inspect", SHARED])?;
    for field in ["uuid", "family", "mac", "bridge", "tap", "kernel", "rootfs", "gateway"] {
        let value = guest.field(field)?;
        assert!(!value.is_empty() && text.contains(&value), "{field} {value:?} is not in\n{text}");
    }
    Ok(())
}

fn inspect_of_an_unknown_name_is_3(stage: &Stage) -> Outcome {
    let output = stage.host()?.vmctl(&["inspect", "nobody"])?;
    assert_eq!((output.code, output.text().as_str()), (3, ""));
    assert!(output.errors().contains("nobody"), "{output:?}");
    Ok(())
}

fn logs_have_the_console(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    guest.sh("echo a line for the console > /dev/console")?;
    let console = guest.console()?;
    assert!(console.contains("a line for the console"), "{console}");
    assert_eq!(stage.host()?.vmctl(&["logs", "--vmm", SHARED])?.code, 0);
    Ok(())
}

fn the_console_is_a_shell(stage: &Stage) -> Outcome {
    stage.guest()?;
    let mut vmctl = stage
        .host()?
        .vmctl_command(&["console", SHARED])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut keys, mut screen) = vmctl.stdin.take().zip(vmctl.stdout.take()).ok_or("no pipes")?;
    // The sum is not in what the terminal echoes: only a shell prints it.
    keys.write_all(b"\necho sum-$((40+2))\n")?;
    let (mut seen, mut bytes) = (String::new(), [0; 4096]);
    while !seen.contains("sum-42") {
        let count = screen.read(&mut bytes)?;
        assert!(count > 0, "the console ended; seen: {seen}");
        seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    keys.write_all(&[0x1d])?;
    let status = patina_tests::process::wait(&mut vmctl, Duration::from_secs(20))?;
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    Ok(())
}

fn waiting_too_long_is_124(stage: &Stage) -> Outcome {
    stage.guest()?;
    let output = stage.host()?.vmctl(&["wait", SHARED, "--until", "ended", "--timeout", "1"])?;
    assert_eq!(output.code, 124, "{output:?}");
    Ok(())
}

fn waiting_for_ready_returns_at_once_when_it_is(stage: &Stage) -> Outcome {
    stage.guest()?;
    assert_eq!(stage.host()?.call(&["wait", SHARED, "--until", "ready"])?, format!("{SHARED} ready"));
    Ok(())
}

fn doctor_passes_where_guests_run(stage: &Stage) -> Outcome {
    let checks = stage.host()?.json(&["doctor"])?;
    let verdict = |name: &str| {
        let check = checks.as_array().into_iter().flatten().find(|check| check["name"] == name);
        check.and_then(|check| check["verdict"].as_str()).unwrap_or("absent").to_owned()
    };
    assert_eq!(["kvm", "tun", "rights", "vmmd"].map(verdict), ["PASS"; 4], "{checks}");
    Ok(())
}

fn version_names_both(stage: &Stage) -> Outcome {
    let text = stage.host()?.call(&["version"])?;
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(matches!(words[..], ["vmctl", _, "vmmd", _, ..]) && !text.contains("does not answer"), "{text}");
    Ok(())
}
