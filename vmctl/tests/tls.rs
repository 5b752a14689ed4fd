//! Certificates from `vmctl pki`, and what `vmctl` says with and without them, against the real
//! scheduler over TCP.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    ffi::OsStr,
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// For whatever should happen soon.
const SOON: Duration = Duration::from_secs(30);

struct Place {
    folder: TempDir,
    port: u16,
    scheduler: Option<Child>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(child) = &mut self.scheduler {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

impl Place {
    fn new() -> Self {
        // Nobody else is likely to take the port in between.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { folder: tempfile::tempdir().unwrap(), port, scheduler: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs vmctl in the folder, with these words.
    fn vmctl(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmctl"));
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        for name in ["PATINA_HOST", "PATINA_SCHEDULER", "PATINA_TLS_DIR", "PATINA_PKI_DIR"] {
            command.env_remove(name);
        }
        command.args(words.split_whitespace()).output().unwrap()
    }

    fn made(&self, words: &str) -> String {
        let output = self.vmctl(words);
        assert!(output.status.success(), "{words}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Asks the scheduler: the exit code, and what is printed on standard error.
    fn ask(&self, words: &str) -> (i32, String) {
        let output = self.vmctl(&format!("--scheduler tcp:127.0.0.1:{} {words}", self.port));
        (code(&output), text(&output.stderr))
    }

    /// Starts the scheduler, and waits until it is ready.
    fn start(&mut self, wrap: &[&str], listen: &str, options: &[&str]) {
        let program = Path::new(env!("CARGO_BIN_EXE_vmctl")).with_file_name("examples/scheduler_for_vmctl");
        let manager = UnixDatagram::bind(self.path("notify")).unwrap();
        manager.set_read_timeout(Some(SOON)).unwrap();
        let mut words = wrap.iter().map(OsStr::new).chain([program.as_os_str()]);
        let child = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.folder.path())
            .args([&format!("--listen={listen}"), "--state-dir=state"])
            .args(options)
            .env("NOTIFY_SOCKET", self.path("notify"))
            .spawn()
            .unwrap();
        self.scheduler = Some(child);
        manager.recv(&mut [0; 16]).unwrap();
    }

    fn start_on_tcp(&mut self, options: &[&str]) {
        let listen = format!("tcp:127.0.0.1:{}", self.port);
        self.start(&[], &listen, options);
    }

    /// On a socket, by way of another command.
    fn start_wrapped(&mut self, wrap: &[&str]) {
        let listen = format!("unix:{}", self.path("s.sock").display());
        self.start(wrap, &listen, &[]);
    }
}

#[test]
fn certificates_are_made_with_few_words_and_nothing_is_written_over() {
    let place = Place::new();
    let said = place.made("pki init");
    assert!(said.contains("patina-pki/ca-key.pem") && said.contains("vmctl pki host"), "{said}");
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("patina-pki"), mode("patina-pki/ca-key.pem")), (0o700, 0o600));
    assert_eq!(code(&place.vmctl("pki init")), 4);
    let said = place.made("pki host h1 --address 10.0.0.1 --address h1.lan");
    assert!(said.contains("patina-pki/hosts/h1") && said.contains("--tls-dir"), "{said}");
    assert_eq!(mode("patina-pki/hosts/h1/key.pem"), 0o600);
    assert_eq!(code(&place.vmctl("pki host h1")), 4);
    place.made("pki host h1 --renew");
    let said = place.made("-o json pki host h2 --id 6f0b4b8e-9a53-4b8e-9a53-2d1f3a3c1b11");
    assert!(said.contains("\"host_id\": \"6f0b4b8e-9a53-4b8e-9a53-2d1f3a3c1b11\""), "{said}");
    let said = place.made("pki operator ada --role use");
    assert!(said.contains("operator ada (use)") && said.contains("PATINA_TLS_DIR"), "{said}");
    for wrong in [
        "pki host ../h",
        "pki host a/b",
        "pki host h3 --address a:1",
        "pki operator a",
        "pki operator a --role root",
        "pki operator a --role use --days 0",
    ] {
        assert_eq!(code(&place.vmctl(wrong)), 2, "{wrong}");
    }
    let none = place.vmctl("pki host a --dir elsewhere");
    assert!(text(&none.stderr).contains("vmctl pki init") && !place.path("elsewhere/hosts/a").exists());
}

#[test]
fn vmctl_says_whose_certificate_is_at_fault_and_what_to_do() {
    let mut place = Place::new();
    place.made("pki init");
    place.made("pki host s --address 127.0.0.1");
    place.made("pki operator ada --role view");
    place.made("pki init --dir other");
    place.made("pki operator eve --role admin --dir other");
    place.start_on_tcp(&["--tls-dir=patina-pki/hosts/s"]);
    let (code, said) = place.ask("host ls --tls-dir patina-pki/operators/ada");
    assert_eq!(code, 0, "{said}");
    let (code, said) = place.ask("host ls");
    assert!(code == 2 && said.contains("--tls-dir or PATINA_TLS_DIR"), "{code}: {said}");
    let (code, said) = place.ask("host ls --tls-dir nowhere");
    assert!(code == 1 && said.contains("nowhere") && said.contains("vmctl pki"), "{code}: {said}");
    let (code, said) = place.ask("host ls --tls-dir other/operators/eve");
    assert!(code == 6 && said.contains("its certificate is of another authority"), "{code}: {said}");
    // With the right authority, and a certificate of another one: the scheduler refuses it.
    let both =
        ["patina-pki/ca.pem", "other/ca.pem"].map(|name| fs::read_to_string(place.path(name)).unwrap());
    fs::write(place.path("other/operators/eve/ca.pem"), both.concat()).unwrap();
    let (code, said) = place.ask("host ls --tls-dir other/operators/eve");
    assert!(code == 6 && said.contains("it says that the certificate"), "{code}: {said}");
    let (code, said) =
        place.ask("ticket release 6f0b4b8e-9a53-4b8e-9a53-2d1f3a3c1b11 --tls-dir patina-pki/operators/ada");
    assert!(
        code == 5 && said.contains("operator ada (view)") && said.contains("the role use"),
        "{code}: {said}"
    );
    let (code, said) = place.ask("host ls --insecure");
    assert!(code != 0, "{said}");
    let output = place.vmctl(&format!(
        "--scheduler http://127.0.0.1:{} --tls-dir patina-pki/operators/ada host ls",
        place.port
    ));
    assert!(text(&output.stderr).contains("without TLS"), "{output:?}");
    let output = place.vmctl(&format!(
        "--scheduler https://127.0.0.1:{} --tls-dir patina-pki/operators/ada host ls",
        place.port
    ));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn without_tls_both_sides_have_to_say_so() {
    let mut place = Place::new();
    place.start_on_tcp(&["--insecure"]);
    assert_eq!(place.ask("host ls --insecure").0, 0);
    assert_eq!(place.ask("host ls").0, 2);
}

/// As user 65534 with this group, in front of a socket that everybody may open.
fn as_stranger(place: &Place, group: &str) -> (i32, String) {
    let vmctl = place.path("vmctl");
    if !vmctl.exists() {
        fs::copy(env!("CARGO_BIN_EXE_vmctl"), &vmctl).unwrap();
    }
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", &format!("--groups={group}")])
        .arg(vmctl)
        .arg(format!("--scheduler=unix:{}", place.path("s.sock").display()))
        .args(["host", "ls"])
        .output()
        .unwrap();
    (code(&output), text(&output.stderr))
}

#[test]
#[ignore = "needs root"]
fn members_of_the_group_use_the_socket_and_others_do_not() {
    let mut place = Place::new();
    fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let group = fs::read_to_string("/etc/group").unwrap();
    let others = group.lines().filter(|line| !line.starts_with("patina:")).map(|line| format!("{line}\n"));
    fs::write(place.path("group"), others.chain(["patina:x:54321:\n".to_owned()]).collect::<String>())
        .unwrap();
    // The machine's own list of groups stays as it is: the scheduler alone sees another one.
    let script = format!("mount --bind {} /etc/group && exec \"$@\"", place.path("group").display());
    place.start_wrapped(&["unshare", "--mount", "--propagation=private", "sh", "-ec", &script, "sh"]);
    let socket = place.path("s.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
    assert_eq!(as_stranger(&place, "54321").0, 0, "{}", as_stranger(&place, "54321").1);
    assert_eq!(as_stranger(&place, "1").0, 6);
    // Also where the socket's mode lets everybody in.
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let (code, said) = as_stranger(&place, "1");
    assert!(code == 5 && said.contains("user 65534") && said.contains("group patina"), "{code}: {said}");
    assert_eq!(as_stranger(&place, "54321").0, 0);
}
