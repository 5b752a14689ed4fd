//! The children of process 1: the agent, the start script, a shell on the console, and all orphans.
//! All except the agent are in the guest's cgroup. The agent freezes it for a moment while the
//! machine is cloned. If a shell is started in that moment, process 1 waits until the cgroup runs
//! again.

use crate::agent::exec::program::PATH_DEFAULT;
use crate::cgroup::{self, Cgroup};
use crate::console::say;
use crate::sys::spawn::{Spawn, Stdio, spawn};
use rustix::fs::Access;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::time::{Duration, Instant};

const AGENT: &CStr = c"/sbin/gc-agent";
const SHELL: &CStr = c"/bin/sh";
/// The first that may be executed is run once the agent has been started.
const SCRIPTS: [&CStr; 2] = [c"/etc/patina/start", c"/etc/rc.local"];
/// The terminals that the console's output goes to, the last of them being /dev/console's.
const CONSOLES: &str = "/sys/class/tty/console/active";

/// An agent that lived shorter died rapidly.
const RAPID: Duration = Duration::from_secs(10);
/// So many rapid deaths in a row, and the agent is not started again.
const RAPID_DEATHS_MAX: u32 = 5;

/// Decides whether an agent that died is started again.
#[derive(Debug, Default)]
struct Restarts {
    rapid_deaths: u32,
}

impl Restarts {
    fn again(&mut self, lived: Duration) -> bool {
        self.rapid_deaths = if lived < RAPID { self.rapid_deaths + 1 } else { 0 };
        self.rapid_deaths < RAPID_DEATHS_MAX
    }
}

/// The children that are known by name.
#[derive(Debug)]
pub struct Children {
    /// None: a kernel without cgroup2.
    cgroup: Option<Cgroup>,
    agent: Option<(Pid, Instant)>,
    restarts: Restarts,
    shell: Option<Pid>,
}

impl Children {
    /// None yet.
    pub fn new() -> Self {
        let made = Cgroup::make(Path::new(cgroup::GUEST));
        let tell = |error| {
            let text = "clones will not have their programs held";
            say(&format!("make the cgroup {}: {error}; {text}", cgroup::GUEST));
        };
        let cgroup = made.map_err(tell).ok();
        Self { cgroup, agent: None, restarts: Restarts::default(), shell: None }
    }

    /// Starts the agent.
    pub fn start_agent(&mut self) {
        self.agent = start(AGENT, &[AGENT], Stdio::Inherit, None).map(|pid| (pid, Instant::now()));
    }

    /// Starts the user's script, if there is one.
    pub fn start_script(&mut self) {
        let may_run = |path: &&&CStr| rustix::fs::access(**path, Access::EXEC_OK).is_ok();
        if let Some(script) = SCRIPTS.iter().find(may_run) {
            start(script, &[script], Stdio::Inherit, self.cgroup.as_ref());
        }
    }

    /// Whether the console is a shell's.
    #[must_use]
    pub fn shell_runs(&self) -> bool {
        self.shell.is_some()
    }

    /// Starts a shell on the console. /dev/console itself cannot be a controlling terminal, so the
    /// terminal behind it is looked up.
    pub fn start_shell(&mut self) {
        let active = crate::identity::read_small(Path::new(CONSOLES), 4096).unwrap_or_default();
        let name = active.split_whitespace().last().unwrap_or("ttyS0");
        let Ok(terminal) = CString::new(format!("/dev/{name}")) else { return };
        self.shell = start(SHELL, &[c"-sh"], Stdio::Terminal(&terminal), self.cgroup.as_ref());
    }

    /// Reaps all that ended.
    pub fn reap(&mut self) {
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if self.shell == Some(pid) {
                self.shell = None;
                say("press Enter for a shell");
            }
            if let Some((_, since)) = self.agent.filter(|(agent, _)| *agent == pid) {
                self.agent_died(status, since.elapsed());
            }
        }
    }

    fn agent_died(&mut self, status: WaitStatus, lived: Duration) {
        self.agent = None;
        // What it held must not wait for the next one, of which there may be none.
        if let Some(Err(error)) = self.cgroup.as_ref().map(|cgroup| cgroup.freeze(false)) {
            say(&format!("release the guest's programs: {error}"));
        }
        let how = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        if self.restarts.again(lived) {
            say(&format!("gc-agent ended with {how}; starting it again"));
            self.start_agent();
        } else {
            say(&format!(
                "gc-agent ended with {how}, {RAPID_DEATHS_MAX} times within {} s each; not starting it \
                 again, this VM does not answer any more",
                RAPID.as_secs()
            ));
        }
    }
}

fn start(path: &CStr, argv: &[&CStr], stdio: Stdio<'_>, cgroup: Option<&Cgroup>) -> Option<Pid> {
    let argv: Vec<CString> = argv.iter().map(|a| CString::from(*a)).collect();
    let envp = [format!("PATH={PATH_DEFAULT}"), "HOME=/root".into(), "TERM=linux".into()];
    let envp: Vec<CString> = envp.into_iter().filter_map(|v| CString::new(v).ok()).collect();
    let cgroup = cgroup.map(Cgroup::directory);
    // The agent is all that the guest is heard by.
    let is_protected = path == AGENT;
    match spawn(&Spawn { path, argv: &argv, envp: &envp, cwd: None, stdio, cgroup, is_protected }) {
        Ok((pid, _)) => Some(pid),
        Err(error) => {
            say(&format!("start {}: {error}", path.to_string_lossy()));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_dies_rapidly_is_given_up_and_one_that_lived_is_not() {
        let mut restarts = Restarts::default();
        let short = Duration::from_secs(1);
        assert_eq!([short; 4].map(|lived| restarts.again(lived)), [true; 4]);
        assert!(restarts.again(RAPID));
        assert_eq!([short; 5].map(|lived| restarts.again(lived)), [true, true, true, true, false]);
    }
}
