//! gc-init as process 1 of its own namespaces, over a read-only root with busybox in it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::cgroup::TempCgroup;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const BUSYBOX: &str = "/bin/busybox";

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Boots a root whose agent and start script are these shell scripts.
fn boot(agent: &str, start: &str) -> Output {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    for directory in ["bin", "sbin", "etc/patina", "run", "proc", "sys", "tmp", "dev", "lib", "lib64", "usr"]
    {
        fs::create_dir_all(path(directory)).unwrap();
    }
    fs::copy(BUSYBOX, path("bin/busybox")).unwrap_or_else(|e| panic!("{BUSYBOX} (busybox-static): {e}"));
    symlink("busybox", path("bin/sh")).unwrap();
    executable(&path("sbin/gc-agent"), agent);
    executable(&path("etc/patina/start"), start);
    fs::copy(env!("CARGO_BIN_EXE_gc-init"), path("sbin/gc-init")).unwrap();
    // A debug build wants the machine's C library, bound in; a read-only root like a guest's.
    // The cgroup is the test's, seen as the root by what runs in it.
    let cgroup = TempCgroup::new("init");
    let script = "mount --bind \"$0\" \"$0\" && \
        for d in lib lib64 usr; do mount --rbind /$d \"$0/$d\" || exit 9; done && \
        mount -o remount,bind,ro \"$0\" && cd \"$0\" && exec chroot . /sbin/gc-init";
    let join = "echo $$ > \"$0/cgroup.procs\" && exec unshare -r -m -p -f -u -i -n -C sh -c \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", join]).arg(&cgroup.0).arg(script).arg(root.path());
    command.stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const SLEEPING_AGENT: &str = "#!/bin/sh\nexec busybox sleep 1000\n";

#[test]
fn it_is_for_process_1_only() {
    let output = Command::new(env!("CARGO_BIN_EXE_gc-init")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).starts_with("patina: gc-init: gc-init is process 1 of a guest, not "));
}

#[test]
fn a_guest_comes_up_and_powers_off() {
    let output = boot(
        SLEEPING_AGENT,
        "#!/bin/sh\n\
         busybox mount\n\
         echo text > /written && echo \"root: $(busybox cat /written)\"\n\
         busybox ifconfig lo | busybox grep -o 'inet addr:127.0.0.1'\n\
         (busybox true & ) ; (busybox sh -c 'exit 3' & )\n\
         echo \"cgroup: $(busybox cat /proc/self/cgroup | busybox grep ^0) of $(busybox cat /proc/1/cgroup | busybox grep ^0)\"\n\
         busybox cmp /proc/sys/kernel/random/boot_id /run/gridcentric/boot_id && echo \"boot_id is a file\"\n\
         while busybox ps -o stat,comm | busybox grep -q '^Z'; do :; done\n\
         echo no zombies\n\
         busybox poweroff\n",
    );
    let text = text(&output);
    for line in [
        "overlay on / type overlay (rw",
        "proc on /proc type proc (rw,nosuid,nodev,noexec",
        "sysfs on /sys type sysfs",
        "tmpfs on /dev/shm type tmpfs",
        "tmpfs on /run type tmpfs",
        "tmpfs on /tmp type tmpfs",
        "cgroup2 on /sys/fs/cgroup type cgroup2",
        "root: text",
        "cgroup: 0::/guest of 0::/\n",
        "boot_id is a file",
        "inet addr:127.0.0.1",
        "no zombies",
        "patina: power off",
    ] {
        assert!(text.contains(line), "no {line:?} in:\n{text}");
    }
    // A user's namespace may not mount devtmpfs and has no group 5 for terminals; that is told, and
    // everything else is done.
    assert!(text.contains("patina: mount devtmpfs on /dev: Operation not permitted"), "{text}");
    assert!(text.contains("patina: mount devpts on /dev/pts: Invalid argument"), "{text}");
    // What reboot(2) makes of a process 1 that powers off in a namespace; unshare passes it on.
    assert_eq!(output.status.signal(), Some(libc::SIGINT), "{text}");
}

#[test]
fn a_reboot_is_one() {
    let output = boot(SLEEPING_AGENT, "#!/bin/sh\nbusybox reboot\n");
    assert_eq!(output.status.signal(), Some(libc::SIGHUP), "{}", text(&output));
    assert!(text(&output).contains("patina: reboot\n"));
}

#[test]
fn an_agent_that_dies_at_once_is_given_up_after_five_times() {
    let agent = "#!/bin/sh\necho agent $((n = $(busybox cat /run/n 2>/dev/null || echo 0) + 1))\n\
        echo $n > /run/n\n[ $n -lt 5 ] || busybox halt\nexit 4\n";
    let output = boot(agent, "#!/bin/sh\n");
    let text = text(&output);
    assert!(text.contains("agent 5\n") && !text.contains("agent 6\n"), "{text}");
    assert_eq!(text.matches("gc-agent ended with exit code 4; starting it again").count(), 4, "{text}");
    assert!(text.contains("halt: power off"), "{text}");
}

#[test]
fn what_an_agent_held_goes_on_when_it_dies() {
    // It says that it holds, and dies; its start script runs in what was held.
    let agent = "#!/bin/sh\n[ -e /run/held ] && exec busybox sleep 1000\n\
        while ! [ -e /run/begun ]; do :; done\necho 1 > /sys/fs/cgroup/guest/cgroup.freeze\n\
        while ! busybox grep -q 'frozen 1' /sys/fs/cgroup/guest/cgroup.events; do :; done\n\
        echo > /run/held\nexit 4\n";
    let start = "#!/bin/sh\necho > /run/begun\nwhile ! [ -e /run/held ]; do :; done\n\
        echo goes on\nbusybox poweroff\n";
    let output = boot(agent, start);
    let text = text(&output);
    assert!(text.contains("gc-agent ended with exit code 4; starting it again"), "{text}");
    assert!(text.contains("goes on\n"), "{text}");
}
