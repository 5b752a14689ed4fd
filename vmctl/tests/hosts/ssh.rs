//! `--host ssh://`, by way of a real sshd.

use crate::stand_in::{Cluster, SOON, ran, vm};
use rustix::process::{Pid, Signal};
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// An sshd with keys and a configuration of its own, and an `ssh` that uses them.
struct Sshd {
    folder: TempDir,
    port: u16,
    process: Child,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

impl Sshd {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        for key in ["host", "user"] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status();
            assert!(made.unwrap().success());
        }
        let port = free_port();
        fs::create_dir(at("there")).unwrap();
        symlink(env!("CARGO_BIN_EXE_vmctl"), at("there/vmctl")).unwrap();
        // Without the startup files of whoever runs the test.
        let server = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {host}\nAuthorizedKeysFile {user}.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nSetEnv PATH={there} HOME={there}\n",
            host = at("host"),
            user = at("user"),
            there = at("there"),
        );
        fs::write(at("sshd_config"), server).unwrap();
        let client = format!(
            "Host there\nHostName 127.0.0.1\nPort {port}\nIdentityFile {user}\nIdentitiesOnly yes\nBatchMode yes\n\
             StrictHostKeyChecking no\nUserKnownHostsFile {known}\nRequestTTY force\n",
            user = at("user"),
            known = at("known"),
        );
        fs::write(at("ssh_config"), client).unwrap();
        // It notes its process, which becomes that of ssh.
        fs::create_dir(at("here")).unwrap();
        let ssh = format!(
            "#!/bin/sh\necho $$ >> {}\nexec /usr/bin/ssh -F {} \"$@\"\n",
            at("pids"),
            at("ssh_config")
        );
        fs::write(at("here/ssh"), ssh).unwrap();
        fs::set_permissions(at("here/ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        // Root's sshd wants a folder in /run, which is there only where it runs as a service.
        let script = "test $(id -u) != 0 || { mount -t tmpfs none /run && mkdir /run/sshd; }; exec /usr/sbin/sshd -D -e -f \"$1\"";
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation=private", "sh", "-c"]);
            command
        } else {
            let mut command = Command::new("sh");
            command.arg("-c");
            command
        };
        command.args([script, "sh", &at("sshd_config")]).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut said = BufReader::new(process.stderr.take().unwrap()).lines();
        let listens =
            said.by_ref().find(|line| line.as_ref().is_ok_and(|line| line.contains("listening on")));
        assert!(listens.is_some(), "sshd ends");
        std::thread::spawn(move || said.for_each(drop));
        Self { folder, port, process }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A vmctl that calls the vmmd on a socket over there.
    fn command(&self, cluster: &Cluster, socket: &Path, words: &str) -> Command {
        self.at(cluster, &format!("ssh://there{}", socket.display()), words)
    }

    fn at(&self, cluster: &Cluster, address: &str, words: &str) -> Command {
        let mut command = cluster.command_at(address, words);
        command.env_remove("SSH_AUTH_SOCK");
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path("here").display()));
        command
    }

    /// The processes that have been ssh, and whether each is still there.
    fn processes(&self) -> Vec<bool> {
        let pids = fs::read_to_string(self.path("pids")).unwrap_or_default();
        pids.lines().map(|pid| Path::new("/proc").join(pid).exists()).collect()
    }
}

async fn one_host() -> Cluster {
    let mut cluster = Cluster::start();
    cluster.add("a", vec![vm("adam", "10000000-0000-4000-8000-000000000001", 0)]).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs openssh-server"]
async fn a_vmmd_is_called_by_way_of_ssh() {
    let (sshd, cluster) = (Sshd::start(), one_host().await);
    let socket = cluster.path("0.sock");
    let (code, printed, said) = ran(sshd.command(&cluster, &socket, "ls")).await;
    assert!(code == 0 && printed.contains("adam"), "{code}: {said}");
    // The scheduler is told by its path, which is one of that machine.
    let (code, printed, said) = ran(sshd.command(&cluster, &socket, "ls --all-hosts")).await;
    assert!(code == 0 && printed.contains("HOST") && printed.contains("adam"), "{code}: {said}");
    // Input, output and the exit code, and more than fits into any buffer.
    let input: String = (0..200_000).map(|number| format!("{number}\n")).collect();
    fs::write(sshd.path("input"), &input).unwrap();
    let mut command = sshd.command(&cluster, &socket, "exec adam cat");
    command.stdin(Stdio::from(fs::File::open(sshd.path("input")).unwrap()));
    let (code, printed, said) = ran(command).await;
    assert_eq!((code, said.as_str(), printed == input), (7, "", true));
    // Many at once.
    let calls: Vec<_> =
        (0..6).map(|_| tokio::spawn(ran(sshd.command(&cluster, &socket, "logs adam")))).collect();
    for call in calls {
        let (code, printed, said) = call.await.unwrap();
        assert!(code == 0 && printed.starts_with("adam on"), "{code}: {said}");
    }
    let processes = sshd.processes();
    assert!(processes.len() >= 10 && !processes.contains(&true), "{processes:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs openssh-server"]
async fn ssh_ends_with_a_vmctl_that_is_killed() {
    let (sshd, cluster) = (Sshd::start(), one_host().await);
    let mut follows = sshd.command(&cluster, &cluster.path("0.sock"), "logs -f adam").spawn().unwrap();
    let mut line = String::new();
    BufReader::new(follows.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("adam on"), "{line}");
    assert_eq!(sshd.processes(), [true]);
    follows.kill().unwrap();
    follows.wait().unwrap();
    let gone = async {
        while sshd.processes() != [false] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs openssh-server"]
async fn ctrl_c_is_for_the_program_in_the_guest_and_not_for_ssh() {
    let (sshd, cluster) = (Sshd::start(), one_host().await);
    let mut command = sshd.command(&cluster, &cluster.path("0.sock"), "exec adam cat");
    // As a shell does it on a terminal: vmctl and ssh are one job.
    let mut exec = command.stdin(Stdio::piped()).process_group(0).spawn().unwrap();
    let mut stdin = exec.stdin.take().unwrap();
    stdin.write_all(b"ready\n").unwrap();
    let mut line = String::new();
    BufReader::new(exec.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    rustix::process::kill_process_group(Pid::from_child(&exec), Signal::INT).unwrap();
    assert_eq!(exec.wait().unwrap().code(), Some(130));
    assert_eq!(sshd.processes(), [false]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs openssh-server"]
async fn it_is_said_what_keeps_ssh_from_a_vmmd() {
    let (sshd, cluster) = (Sshd::start(), one_host().await);
    let told = async |command: Command| {
        let (code, printed, said) = ran(command).await;
        assert_eq!((code, printed.as_str()), (6, ""), "{said}");
        said
    };
    // Nobody listens there.
    let port = free_port();
    let said = told(sshd.at(&cluster, &format!("ssh://127.0.0.1:{port}"), "ls")).await;
    assert!(
        said.contains("Connection refused") && said.contains("see whether `ssh 127.0.0.1 true`"),
        "{said}"
    );
    // The host refuses whoever has no key of its.
    let said = told(sshd.at(&cluster, &format!("ssh://nosuch@there:{}", sshd.port), "ls")).await;
    assert!(said.contains("Permission denied"), "{said}");
    // There is ssh, and no vmmd.
    let said = told(sshd.command(&cluster, &cluster.path("nobody"), "ls")).await;
    assert!(said.contains("call vmmd on there with ssh") && said.contains("No such file"), "{said}");
    // There is no vmctl.
    let vmctl = sshd.path("there/vmctl");
    fs::remove_file(&vmctl).unwrap();
    let said = told(sshd.command(&cluster, &cluster.path("0.sock"), "ls")).await;
    assert!(said.contains("install vmctl there") && said.contains("not found"), "{said}");
    // Something else answers.
    fs::write(&vmctl, "#!/bin/sh\necho Welcome\n").unwrap();
    fs::set_permissions(&vmctl, fs::Permissions::from_mode(0o755)).unwrap();
    let said = told(sshd.command(&cluster, &cluster.path("0.sock"), "ls")).await;
    assert!(said.contains("\"Welcome\""), "{said}");
    assert!(!sshd.processes().contains(&true));
    // And exec keeps its own code.
    assert_eq!(ran(sshd.command(&cluster, &cluster.path("0.sock"), "exec adam true")).await.0, 125);
}
