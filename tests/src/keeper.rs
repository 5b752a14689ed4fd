//! A process beside a test harness. If the harness is killed and cannot clean up, this process
//! does.
//!
//! ```text
//!  harness ──pipe──▶ keeper: the same program, started again
//!     cleans up, reports it ──▶ ends
//!     dies: the pipe closes ──▶ ends the processes that it was told of, then ends
//! ```
//!
//! It has its own process group, so signals to the harness's group do not reach it.

use crate::{
    place::Place,
    process::{ended, pidfd, send},
};
use rustix::process::{Signal, kill_current_process_group};
use serde_json::{Value, json};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::{
    env,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Says to a program that it is a keeper.
const KEEPER: &str = "PATINA_KEEPER";
/// The harness has done all itself.
const DONE: &str = "done\n";
/// How long a process that was killed may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// This program starts with [`run_if_asked`].
static CAN_KEEP: AtomicBool = AtomicBool::new(false);

/// What is to be ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Orphan {
    /// The keeper's own process group, which is told to end.
    Group,
    /// A process, which is killed.
    Process(u32),
    /// A vmmd and all its VMs.
    Host(Box<Place>),
}

/// A keeper that runs; dropped by who has cleaned up.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
}

/// Comes first in `main` of each program that wants keepers: what it returns is the program's exit
/// code, where it is one.
pub fn run_if_asked() -> Option<ExitCode> {
    CAN_KEEP.store(true, Ordering::SeqCst);
    env::var_os(KEEPER)?;
    match keep(io::stdin().lock()) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            patina_daemon::say!("clean up after a run that was killed: {error}");
            Some(ExitCode::FAILURE)
        }
    }
}

impl Keeper {
    /// Tells its own process group to end when this process dies before it drops what is returned.
    /// Others join that group: it is there before they are, so that there is no moment at which
    /// nobody keeps them.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn of_group() -> io::Result<Option<Self>> {
        Self::of(&Orphan::Group)
    }

    /// Its process, and its process group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// None where this program has no [`run_if_asked`].
    pub(crate) fn of(orphan: &Orphan) -> io::Result<Option<Self>> {
        if !CAN_KEEP.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let mut child = Command::new("/proc/self/exe")
            .env(KEEPER, "1")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        if let Some(pipe) = &mut child.stdin {
            pipe.write_all(format!("{}\n", orphan.to_json()).as_bytes())?;
        }
        Ok(Some(Self { child }))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let told = self.child.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(DONE.as_bytes()));
        // It may have been killed.
        if let Err(error) = self.child.wait().and(told) {
            patina_daemon::say!("end the keeper: {error}");
        }
    }
}

impl Orphan {
    fn to_json(&self) -> Value {
        match self {
            Self::Group => json!({"group": true}),
            Self::Process(pid) => json!({"process": pid}),
            Self::Host(place) => json!({"host": place.to_json()}),
        }
    }

    fn of_json(value: &Value) -> Option<Self> {
        let pid = |name: &str| value[name].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let group = (value["group"] == true).then_some(Self::Group);
        group
            .or_else(|| pid("process").map(Self::Process))
            .or_else(|| Place::of_json(&value["host"]).map(|place| Self::Host(Box::new(place))))
    }
}

/// Waits for the harness's end, and does what it could not.
fn keep(input: impl io::Read) -> Result<(), Box<dyn std::error::Error>> {
    let mut input = BufReader::new(input);
    let (mut told, mut last) = (String::new(), String::new());
    input.read_line(&mut told)?;
    let orphan = serde_json::from_str(&told).ok().and_then(|value| Orphan::of_json(&value));
    let orphan = orphan.ok_or_else(|| format!("what is to be ended is not understood: {told}"))?;
    // By this the process is known, whoever has its number later.
    let process = match &orphan {
        Orphan::Process(pid) => Some(pidfd(*pid)?),
        Orphan::Group | Orphan::Host(_) => None,
    };
    if orphan == Orphan::Group {
        // What the group is told is not for its keeper.
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::default())?;
        }
    }
    input.read_line(&mut last)?;
    if last == DONE {
        return Ok(());
    }
    match orphan {
        Orphan::Group => kill_current_process_group(Signal::TERM)?,
        Orphan::Process(_) => {
            if let Some(process) = process {
                send(&process, Signal::KILL)?;
                ended(&process, KILL_DEADLINE)?;
            }
        }
        Orphan::Host(place) => place.clean_orphaned()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{place::sample, process::wait};
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn orphans_are_told_whole() {
        let place = sample(std::path::Path::new("/tmp/x"));
        for orphan in [Orphan::Group, Orphan::Process(8), Orphan::Host(Box::new(place))] {
            assert_eq!(Orphan::of_json(&orphan.to_json()), Some(orphan));
        }
        assert_eq!(Orphan::of_json(&json!({"group": "x"})), None);
    }

    #[test]
    fn what_a_dead_harness_leaves_is_ended_and_what_a_live_one_has_is_not() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let told = format!("{}\n", Orphan::Process(child.id()).to_json());
        keep(format!("{told}{DONE}").as_bytes()).unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        keep(told.as_bytes()).unwrap();
        let status = wait(&mut child, Duration::from_secs(10)).unwrap().unwrap();
        assert_eq!(status.signal(), Some(9));
        assert!(keep(&b"nonsense\n"[..]).is_err());
    }
}
