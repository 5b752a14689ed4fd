//! `cargo xtask demo`: from nothing to a guest that answers, with everything cleaned up.
//!
//! ```text
//! build all ─▶ private vmmd ─▶ vmctl doctor, run, ls … ─▶ TCP round trip ─▶ kill, rm ─▶ demo: ok
//!                   └─────────── on any failure: console and vmm log, clean up ◀──────┘
//! ```

use crate::{
    build::{self, BuildError},
    run::{self, Guarded},
    steps::Steps,
};
use patina_tests::{
    host::{Host, HostError, tail},
    setup::Missing,
};
use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::Stdio,
    time::Duration,
};

/// The VM's name.
const NAME: &str = "demo";
/// Where the guest's little server listens.
const GUEST_PORT: u16 = 8080;
/// How long the TCP round trip may take once the server listens.
const TCP_DEADLINE: Duration = Duration::from_secs(30);
/// Says what it hears in capitals, once.
const SERVER: &str = "import socket
s = socket.create_server(('', 8080))
print('listening', flush=True)
c, peer = s.accept()
c.sendall(c.recv(100).upper())
c.close()";

/// Forks the machine: what `gc clone` prints is all that tells one from the other.
const FORK: &str = "echo I am $(gc clone 1) > /tmp/fork";

/// Why the demo did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Something could not be built.
    #[error("build the demo's programs")]
    Build(#[from] BuildError),
    /// The machine cannot run guests.
    #[error("run guests on this machine")]
    Machine(#[from] Missing),
    /// `vmmd`, `vmctl` or the guest failed.
    #[error("run the demo")]
    Host(#[from] HostError),
    /// The published port does not reach the guest's server.
    #[error("reach the guest's server: {what}")]
    Tcp {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The guest's server said something else.
    #[error("the guest's server answered {0:?} instead of {1:?}")]
    Answer(String, &'static str),
    /// Standard output takes no more.
    #[error("write to standard output")]
    Print(#[source] io::Error),
}

/// The whole demo.
pub fn demo() -> Result<(), DemoError> {
    let steps = Steps::new();
    // Said before half an hour of building rather than after it.
    if !rustix::process::geteuid().is_root() {
        return Err(Missing::Root.into());
    }
    let setup = build::everything(&steps, build::DEFAULT_RECIPE)?;
    // The same as the end-to-end tests': the first run boots its guest, the next ones need not.
    let setup = setup.with_images(Some(run::target_dir().join("tmp/images-of-vms")));
    setup.check()?;
    // From here on there is something to clean up.
    let _guarded = Guarded::new();
    let host = steps.step("start vmmd", || Host::start(&setup))?;
    let shown = show(&steps, &host);
    if shown.is_err() {
        explain(&host);
    }
    let stopped = steps.step("stop vmmd and look for what is left", || host.stop());
    shown?;
    stopped?;
    print("demo: ok")
}

/// What a user would type, and what comes of it.
fn show(steps: &Steps, host: &Host) -> Result<(), DemoError> {
    let port = free_port().map_err(|source| DemoError::Tcp { what: "find a free port", source })?;
    let publish = format!("{port}:{GUEST_PORT}");
    say(host, &["doctor"])?;
    steps
        .step("start a guest", || say(host, &["run", "--name", NAME, "--memory", "256M", "-p", &publish]))?;
    say(host, &["ls"])?;
    for program in [
        &["gc", "vmid"][..],
        &["gc", "my-ip"],
        &["gc", "list"],
        &["uname", "-a"],
        &["python3", "-c", "import sys; print(sys.version)"],
    ] {
        say(host, &[&["exec", NAME, "--"], program].concat())?;
    }
    steps.step("TCP through the published port", || round_trip(host, port))?;
    let family = [NAME, "demo.1", "demo.2", "demo.3"];
    steps.step("clone the running guest from inside", || {
        say(host, &["exec", NAME, "--", "sh", "-c", FORK])?;
        say(host, &["wait", "demo.1", "--until", "ready"])
    })?;
    say(host, &["exec", NAME, "--", "cat", "/tmp/fork"])?;
    // It goes on as soon as it knows who it is, and writes then.
    say(host, &["exec", "demo.1", "--", "sh", "-c", "until grep . /tmp/fork; do :; done"])?;
    steps.step("clone it from outside", || say(host, &["clone", NAME, "--count", "2"]))?;
    for name in family {
        say(host, &["exec", name, "--", "gc", "vmid"])?;
    }
    say(host, &["exec", NAME, "--", "gc", "list"])?;
    say(host, &["ls"])?;
    say(host, &[&["kill"], &family[..]].concat())?;
    say(host, &[&["rm"], &family[..]].concat())
}

/// Runs `vmctl` as a user would, and prints the command and what it printed.
fn say(host: &Host, arguments: &[&str]) -> Result<(), DemoError> {
    let words = arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>();
    print(&format!("$ vmctl {}", words.join(" ")))?;
    let text = host.call(arguments)?;
    if text.is_empty() { Ok(()) } else { print(&text) }
}

/// Prints a line on standard output.
fn print(line: &str) -> Result<(), DemoError> {
    writeln!(io::stdout(), "{line}").map_err(DemoError::Print)
}

/// A word as it is typed into a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+:./,@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Starts a small server in the guest and talks to it through the published port.
fn round_trip(host: &Host, port: u16) -> Result<(), DemoError> {
    let tcp = |what| move |source| DemoError::Tcp { what, source };
    let mut server = host
        .vmctl_command(&["exec", NAME, "--", "python3", "-c", SERVER])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(tcp("start the server"))?;
    let talked = (|| {
        let mut line = String::new();
        if let Some(stdout) = server.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(tcp("wait for the server"))?;
        }
        if line.trim_end() != "listening" {
            return Err(DemoError::Answer(line, "listening"));
        }
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(tcp("connect to the published port"))?;
        stream.set_read_timeout(Some(TCP_DEADLINE)).map_err(tcp("set a deadline"))?;
        stream.write_all(b"hello, guest").map_err(tcp("write"))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(tcp("read"))?;
        print(&format!("127.0.0.1:{port} said \"hello, guest\" and heard \"{answer}\""))?;
        if answer == "HELLO, GUEST" { Ok(()) } else { Err(DemoError::Answer(answer, "HELLO, GUEST")) }
    })();
    if talked.is_err() {
        server.kill().map_err(tcp("kill the server"))?;
    }
    server.wait().map_err(tcp("wait for the server's end"))?;
    talked
}

/// What helps to see why the demo failed.
fn explain(host: &Host) {
    for (title, arguments) in [
        ("console", &["logs", NAME][..]),
        ("vmm log", &["logs", "--vmm", NAME]),
        ("state", &["inspect", NAME]),
    ] {
        match host.vmctl(arguments) {
            Ok(output) => {
                patina_daemon::say!("--- {title} ---\n{}{}", tail(&output.text(), 60), output.errors())
            }
            Err(error) => patina_daemon::say!("--- {title}: {error}"),
        }
    }
    patina_daemon::say!("--- vmmd log ---\n{}", host.vmmd_log());
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_shown_as_they_are_typed() {
        let words = ["--memory", "8080:80", "a b", "it's", ""].map(quoted);
        assert_eq!(words, ["--memory", "8080:80", "'a b'", r"'it'\''s'", "''"]);
    }
}
