//! `vmctl exec`: input, output, exit codes, signals and terminals go through unchanged.

use crate::{
    Outcome, Story,
    stage::{SHARED, Stage},
};
use patina_tests::process;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

pub const STORIES: &[Story] = stories![
    output_errors_and_exit_code_are_kept_apart,
    a_megabyte_of_input_comes_back_unchanged,
    a_program_killed_by_a_signal_is_128_plus_its_number,
    a_signal_to_vmctl_reaches_the_program,
    a_program_gets_a_terminal,
    a_terminals_input_from_a_pipe_ends,
    exec_works_with_dash_i_and_without_a_double_dash,
    environment_and_directory_are_set,
    a_program_that_is_not_there_is_127,
    an_unknown_vm_is_125,
    a_killed_vmctl_ends_the_program,
    eight_programs_run_at_once,
];

fn output_errors_and_exit_code_are_kept_apart(stage: &Stage) -> Outcome {
    let output = stage.guest()?.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((output.code, output.text().as_str(), output.errors().as_str()), (7, "out", "err"));
    Ok(())
}

fn a_megabyte_of_input_comes_back_unchanged(stage: &Stage) -> Outcome {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    let bytes: Vec<u8> = std::iter::repeat_with(next).take(1 << 20).collect();
    let output = stage.guest()?.exec_with_input(&["cat"], &bytes)?;
    assert_eq!((output.code, output.stdout.len()), (0, bytes.len()));
    assert!(output.stdout == bytes, "the bytes changed on their way");
    Ok(())
}

fn a_program_killed_by_a_signal_is_128_plus_its_number(stage: &Stage) -> Outcome {
    assert_eq!(stage.guest()?.exec(&["sh", "-c", "kill -9 $$"])?.code, 137);
    Ok(())
}

fn a_signal_to_vmctl_reaches_the_program(stage: &Stage) -> Outcome {
    stage.guest()?;
    let script = "trap 'echo caught; exit 9' TERM; echo begun; while :; do sleep 1000 & wait $!; done";
    let mut vmctl = stage
        .host()?
        .vmctl_command(&["exec", SHARED, "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(vmctl.stdout.take().ok_or("no pipe")?).lines();
    assert_eq!(lines.next().transpose()?.as_deref(), Some("begun"));
    kill_process(Pid::from_child(&vmctl), Signal::TERM)?;
    assert_eq!(lines.next().transpose()?.as_deref(), Some("caught"));
    let status = process::wait(&mut vmctl, Duration::from_secs(60))?;
    assert_eq!(status.and_then(|status| status.code()), Some(9));
    Ok(())
}

fn a_program_gets_a_terminal(stage: &Stage) -> Outcome {
    stage.guest()?;
    let output =
        stage.host()?.vmctl(&["exec", "-t", SHARED, "--", "sh", "-c", "tty; test -t 0 && echo yes"])?;
    let text = output.text().replace('\r', "");
    assert!(output.code == 0 && text.starts_with("/dev/pts/") && text.ends_with("\nyes"), "{text}");
    let output = stage.guest()?.exec(&["sh", "-c", "test -t 0 || echo no"])?;
    assert_eq!(output.text(), "no");
    Ok(())
}

fn a_terminals_input_from_a_pipe_ends(stage: &Stage) -> Outcome {
    stage.guest()?;
    let output = stage.host()?.vmctl_with_input(&["exec", "-t", SHARED, "--", "cat"], b"abc")?;
    assert_eq!((output.code, output.text().as_str()), (0, "abcabc"), "{output:?}");
    Ok(())
}

fn exec_works_with_dash_i_and_without_a_double_dash(stage: &Stage) -> Outcome {
    stage.guest()?;
    let output = stage.host()?.vmctl_with_input(&["exec", "-it", SHARED, "sh"], b"echo $((6 * 7))\n")?;
    assert!(output.code == 0 && output.text().contains("\n42"), "{output:?}");
    let output = stage.host()?.vmctl(&["exec", SHARED, "sh", "-c", "exit 7"])?;
    assert_eq!(output.code, 7, "{output:?}");
    // vmctl's own errors, whether somebody reads them or not.
    for arguments in [&["exec", "--bogus", SHARED, "--", "true"][..], &["exec", "nobody", "true"]] {
        let mut command = stage.host()?.vmctl_command(arguments);
        let full = std::fs::File::options().write(true).open("/dev/full")?;
        let status = command.stdin(Stdio::null()).stderr(full).status()?;
        assert_eq!(status.code(), Some(125), "{arguments:?}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full")?;
    let status = stage.host()?.vmctl_command(&["inspect", "nobody"]).stderr(full).status()?;
    assert_eq!(status.code(), Some(3));
    Ok(())
}

fn environment_and_directory_are_set(stage: &Stage) -> Outcome {
    stage.guest()?;
    let arguments = ["exec", "-e", "WORD=a b", "-w", "/usr", SHARED, "--", "sh", "-c", "echo $WORD; pwd"];
    assert_eq!(stage.host()?.call(&arguments)?, "a b\n/usr");
    Ok(())
}

fn a_program_that_is_not_there_is_127(stage: &Stage) -> Outcome {
    let output = stage.guest()?.exec(&["/no/such/program"])?;
    assert!(output.errors().contains("/no/such/program"), "{output:?}");
    assert_eq!(output.code, 127);
    Ok(())
}

fn an_unknown_vm_is_125(stage: &Stage) -> Outcome {
    let output = stage.host()?.vmctl(&["exec", "nobody", "--", "true"])?;
    assert!(output.errors().contains("nobody"), "{output:?}");
    assert_eq!(output.code, 125);
    Ok(())
}

fn a_killed_vmctl_ends_the_program(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let mut vmctl = stage
        .host()?
        .vmctl_command(&["exec", SHARED, "--", "sh", "-c", "echo $$; exec sleep 100000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pid = String::new();
    BufReader::new(vmctl.stdout.take().ok_or("no pipe")?).read_line(&mut pid)?;
    vmctl.kill()?;
    vmctl.wait()?;
    // The guest's own shell waits for the end: nothing on the host has to guess how long it takes.
    let script = format!(
        "n=0; while [ -d /proc/{0} ] && [ $n -lt 30 ]; do sleep 1; n=$((n+1)); done; [ ! -d /proc/{0} ]",
        pid.trim()
    );
    guest.sh(&script)?;
    Ok(())
}

fn eight_programs_run_at_once(stage: &Stage) -> Outcome {
    let guest = stage.guest()?;
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number| {
                let guest = &guest;
                scope.spawn(move || {
                    guest.call(&["echo", &number.to_string()]).map_err(|error| error.to_string())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".into()))).collect()
    });
    let expected: Vec<Result<String, String>> = (0..8).map(|number| Ok(number.to_string())).collect();
    assert_eq!(results, expected);
    Ok(())
}
